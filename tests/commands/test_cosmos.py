"""Three orientations of one head by `chimap simulate`, combined by `chimap cosmos`."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from chimap import metrics
from chimap.cli import main
from chimap.commands import orientations
from chimap.inversion.orientations import conditioning

TURNS = [(0, 0, 0), (30, 0, 5), (-5, 30, 0)]
ANATOMY = "derivatives/truth/sub-01/anat/sub-01_"


def load(path):
    return torch.from_numpy(nib.load(path).get_fdata(dtype=np.float32))


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """Folders of three acquisitions of the same head."""
    folder = tmp_path_factory.mktemp("orientations")
    common = ["--shape", "44", "44", "44", "--voxel-size", "4", "4", "4", "--seed", "4", "--field-error", "0"]
    for index, turn in enumerate(TURNS):
        turned = ["--head-rotation", *map(str, turn), "--echo-times", "0.008", "0.02"]
        assert main(["simulate", *common, *turned, "--output", str(folder / str(index))]) == 0
    return folder


def files(head, name):
    return [str(head / str(index) / f"{ANATOMY}{name}") for index in range(len(TURNS))]


def magnitudes(head):
    return [str(head / str(i) / "sub-01/anat/sub-01_echo-1_part-mag_MEGRE.nii.gz") for i in range(len(TURNS))]


def transforms(head):
    return files(head, "from-scanner_to-upright_mode-points_xfm.txt")


def arguments(head, output, *more):
    fields, masks = files(head, "desc-local_fieldmap.nii.gz"), files(head, "desc-brain_mask.nii.gz")
    return ["cosmos", "--local-field", *fields, "--mask", *masks, *more, "--output", str(output)]


def test_orientations_of_a_head_give_a_better_chi_than_one(head, tmp_path, capsys):
    output = tmp_path / "new" / "chi.nii.gz"
    assert main(arguments(head, output, "--transforms", *transforms(head), "--magnitude", *magnitudes(head))) == 0
    assert "warning" not in capsys.readouterr().err
    truth, mask = load(files(head, "Chimap.nii.gz")[0]), load(files(head, "desc-brain_mask.nii.gz")[0]) > 0
    error = metrics.nrmse(load(output), truth, mask, demean=True)
    single = tmp_path / "single.nii.gz"
    field, brain = files(head, "desc-local_fieldmap.nii.gz")[0], files(head, "desc-brain_mask.nii.gz")[0]
    assert main(["invert", "--local-field", field, "--mask", brain, "--output", str(single)]) == 0
    assert error < 0.75 * metrics.nrmse(load(single), truth, mask, demean=True)

    record = json.loads((tmp_path / "new" / "chi.json").read_text())
    angles = record["angles between the directions of B0 [degrees]"]
    assert angles[:2] == pytest.approx([30, 30.4], abs=0.5) and len(angles) == 3
    directions = [scan["B0 direction (voxel axes of the first scan)"] for scan in record["scans"]]
    expected = conditioning([tuple(one) for one in directions])
    assert record["conditioning"]["condition number"] == pytest.approx(expected.condition_number)
    assert record["method"] == "cosmos" and record["units"] == "ppm" and "doi:10.1002/mrm.21828" in record["reference"]
    assert all(scan["Dice coefficient of its mask and the first"] > 0.93 for scan in record["scans"])
    assert all(scan["share of its field that chi leaves unexplained"] < 0.4 for scan in record["scans"])
    assert str(head) not in (tmp_path / "new" / "chi.json").read_text()


def test_the_whole_chain_from_phase_to_chi(head, tmp_path):
    fields, masks = [], []
    for index, mask in enumerate(files(head, "desc-brain_mask.nii.gz")):
        anatomy, output = head / str(index) / "sub-01" / "anat", tmp_path / str(index)
        phase, magnitude = (sorted(map(str, anatomy.glob(f"*{part}*.nii.gz"))) for part in ("phase", "mag"))
        options = ["--plan", "quick", "--background", "resharp", "--mask", mask]
        assert main(["run", "--phase", *phase, "--magnitude", *magnitude, *options, "--output", str(output)]) == 0
        fields.append(str(output / "local_field.nii.gz"))
        masks.append(str(output / "mask.nii.gz"))
    command = ["cosmos", "--local-field", *fields, "--mask", *masks, "--transforms", *transforms(head)]
    assert main([*command, "--reference", "mask", "--output", str(tmp_path / "chi.nii.gz")]) == 0
    truth, mask = load(files(head, "Chimap.nii.gz")[0]), load(masks[0]) > 0
    together = metrics.correlation(load(tmp_path / "chi.nii.gz"), truth, mask)
    assert together > 0.6 and together > metrics.correlation(load(tmp_path / "0" / "chi.nii.gz"), truth, mask)


def test_the_wrong_way_round_is_noticed(head, tmp_path, capsys):
    turned = []
    for index, path in enumerate(transforms(head)):
        turned.append(str(tmp_path / f"turned{index}.txt"))
        np.savetxt(turned[-1], np.linalg.inv(np.loadtxt(path)))
    assert main(arguments(head, tmp_path / "chi.nii.gz", "--transforms", *turned)) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "overlap better with the inverse of turned1.txt" in said and "turned2.txt" in said


def test_registration_stands_in_for_transforms(head, tmp_path, monkeypatch):
    to_first = iter([np.linalg.inv(np.loadtxt(transforms(head)[0])) @ np.loadtxt(one) for one in transforms(head)[1:]])
    monkeypatch.setattr(orientations, "register", lambda position, first: next(to_first))
    output = tmp_path / "chi.nii.gz"
    assert main(arguments(head, output, "--register", "--magnitude", *magnitudes(head))) == 0
    record = json.loads((tmp_path / "chi.json").read_text())
    assert record["angles between the directions of B0 [degrees]"][:2] == pytest.approx([30, 30.4], abs=0.5)
    assert record["head positions"].startswith("registration")


def test_fields_that_lie_on_one_grid_already_need_only_b0(head, tmp_path, capsys):
    field, mask = files(head, "desc-local_fieldmap.nii.gz")[0], files(head, "desc-brain_mask.nii.gz")[0]
    command = ["cosmos", "--local-field", field, field, "--mask", mask, mask]
    output = ["--output", str(tmp_path / "chi.nii.gz")]
    assert main([*command, "--b0-dir", "0", "0", "1", "0", "0.5", "0.8", *output]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "32 degrees apart" in said and "cones of two directions always meet" in said
    assert "the same scanner coordinates were taken for the same place" in said
    assert main([*command, *output]) == 2
    assert "give --transforms, --register, or --b0-dir for every scan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--mask", "one.nii.gz"], "--mask names 1 files for 3 local fields"),
        (["--transforms", "one.txt"], "--transforms names 1 files for 3"),
        (["--transforms", "a.txt", "b.txt", "c.txt"], "a.txt cannot be read"),
        (["--magnitude", "a.nii.gz"], "--magnitude names 1 files"),
        (["--b0-dir", "0", "0", "1"], "--b0-dir has 3 numbers for 3 scans"),
        (["--register"], "--register needs the --magnitude"),
        (["--set", "cosmos.lambda=1"], "cosmos has no parameter 'lambda'"),
        (["--output", "chi.mat"], "ends in .nii.gz"),
        (["--local-field", "one.nii.gz"], "there is one local field"),
    ],
)
def test_what_does_not_go_together_gets_one_sentence(head, tmp_path, capsys, more, words):
    assert main([*arguments(head, tmp_path / "chi.nii.gz"), *more]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_run_and_invert_say_where_cosmos_is(head, tmp_path, capsys):
    phase = sorted(map(str, (head / "0" / "sub-01" / "anat").glob("*phase*.nii.gz")))
    assert main(["run", "--phase", *phase, "--method", "cosmos", "--output", str(tmp_path / "new")]) == 2
    assert "give them to `chimap cosmos`" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_simulated_transform_leads_one_position_to_another(head):
    """The middle of the brain of every position comes to one place."""
    middles = []
    for mask, transform in zip(files(head, "desc-brain_mask.nii.gz"), transforms(head), strict=True):
        image = nib.load(mask)
        middle = np.argwhere(image.get_fdata() > 0).mean(axis=0)
        middles.append((np.loadtxt(transform) @ image.affine @ np.append(middle, 1))[:3])
    np.testing.assert_allclose(middles[1:], [middles[0]] * 2, atol=0.5)
    noise = [load(path) for path in magnitudes(head)]
    assert not torch.equal(noise[0], noise[1])
