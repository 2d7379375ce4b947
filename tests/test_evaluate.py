"""`chimap evaluate` as a user calls it: files in, tables and one JSON out."""

import json
import math

import nibabel
import numpy as np
import pytest
import torch

from chimap import metrics, regional
from chimap.cli import main
from chimap.segmentation import identify

AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


def write(path, values, affine=AFFINE):
    nibabel.nifti1.Nifti1Image(np.asarray(values, dtype=np.float32), affine).to_filename(path)
    return str(path)


def read(path):
    """Refuses what strict JSON does not know: NaN and infinities."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture
def volumes():
    """chi, truth, mask and challenge numbers with one calcification, and one region that the truth holds constant."""
    rng = np.random.default_rng(4)
    shape = (30, 28, 26)
    labels = np.kron(rng.integers(1, 12, (5, 4, 2)), np.ones((6, 7, 13)))
    labels[4:9, 4:9, 4:9] = 8
    labels[15, 14, 13] = 16
    truth = 0.02 * labels + 0.002 * rng.standard_normal(shape)
    truth[labels == 16] = -3.0
    truth[labels == 10] = 0.25
    chi = 0.8 * truth + 0.01 * rng.standard_normal(shape)
    mask = np.zeros(shape)
    mask[1:-1, 2:, 2:-1] = 1
    return {"chi": chi * mask, "truth": truth, "mask": mask, "labels": labels}


@pytest.fixture
def files(tmp_path, volumes):
    return {name: write(tmp_path / f"{name}.nii.gz", values) for name, values in volumes.items()}


def arguments(files, *extra):
    return ["evaluate", files["chi"], "--truth", files["truth"], "--mask", files["mask"], *map(str, extra)]


def test_tables_and_record(files, volumes, tmp_path, capsys):
    assert main(arguments(files, "--segmentation", files["labels"])) == 0
    printed = capsys.readouterr().out
    assert "2019 reconstruction challenge" in printed and "NRMSE, demeaned [%]" in printed
    assert "dNRMSE, tissue [%]" in printed and "calcification: streak" in printed and "white matter" in printed
    record = read(tmp_path / "chi_evaluation.json")
    chi, truth, labels = (torch.from_numpy(volumes[name]).float() for name in ("chi", "truth", "labels"))
    mask = torch.from_numpy(volumes["mask"]) > 0
    segmentation, note = identify(labels, source="labels")
    assert record["whole mask"] == pytest.approx(metrics.summary(chi, truth, mask))
    assert record["challenge"] == pytest.approx(
        regional.summary(chi, truth, mask, segmentation, (1.0, 1.5, 2.0)), rel=1e-6
    )
    assert record["inputs"] == {
        "chi": "chi.nii.gz",
        "truth": "truth.nii.gz",
        "mask": "mask.nii.gz",
        "segmentation": "labels.nii.gz",
        "table of names": None,
    }
    assert record["scheme of the segmentation"] == "challenge" and record["assumed about the segmentation"] == note
    row = record["regions"]["caudate"]
    assert row["volume [mm3]"] == 3 * row["voxels"] == 3 * int((mask & (labels == 1)).sum())
    difference = (chi - chi[mask].mean()) - (truth - truth[mask].mean())
    assert row["mean error [ppm]"] == pytest.approx(float(difference[mask & (labels == 1)].mean()), rel=1e-4)
    assert record["lesions"]["calcification"][0]["true moment [ppm voxel]"] == pytest.approx(
        -3 - float(truth[mask].mean()), rel=1e-4
    )
    assert record["versions"].keys() >= {"chimap", "torch", "numpy"} and record["voxel size [mm]"] == [1, 1.5, 2]
    assert str(tmp_path) not in (tmp_path / "chi_evaluation.json").read_text()


def test_what_is_no_number_becomes_null(files, tmp_path):
    same = arguments(files | {"chi": files["truth"]}, "--segmentation", files["labels"])
    assert main([*same, "--output", str(tmp_path / "new" / "record.json")]) == 0
    record = read(tmp_path / "new" / "record.json")
    assert record["whole mask"]["PSNR [dB]"] is None  # infinite: the maps are equal
    assert record["regions"]["csf"]["slope"] is None  # the truth is constant there
    assert record["regions"]["caudate"]["slope"] == pytest.approx(1)
    assert not (tmp_path / "truth_evaluation.json").exists()


def test_a_table_beside_the_segmentation_names_the_regions(files, volumes, tmp_path, capsys):
    (tmp_path / "labels.tsv").write_text(
        "index\tname\n"
        + "".join(f"{number}\tpart {number}\n" for number in (*range(1, 12), 16)).replace(
            "part 5", "Left-Pallidum [mine]"
        )
    )
    assert main(arguments(files, "--segmentation", files["labels"])) == 0
    assert "Left-Pallidum [mine]" in capsys.readouterr().out
    record = read(tmp_path / "chi_evaluation.json")
    assert record["inputs"]["table of names"] == "labels.tsv" and record["scheme of the segmentation"] == "table"
    assert set(record["regions"]) == {"Left-Pallidum [mine]", *(f"part {n}" for n in (*range(1, 12), 16) if n != 5)}


def test_without_mask_and_segmentation(files, volumes, tmp_path, capsys):
    path = write(tmp_path / "masked.nii", volumes["truth"] * volumes["mask"])
    assert main(["evaluate", files["chi"], "--truth", path]) == 0
    record = read(tmp_path / "chi_evaluation.json")
    assert record["inputs"]["mask"] == "where the truth is not zero" and "regions" not in record
    assert record["voxels in the mask"] == volumes["mask"].sum()
    assert record["notes"] == [] and "warning" not in capsys.readouterr().err


def test_voxels_that_chi_lacks_are_told(files, volumes, tmp_path, capsys):
    half = volumes["chi"].copy()
    half[:15] = 0
    path = write(tmp_path / "half.nii.gz", half)
    assert main(arguments(files | {"chi": path})) == 0
    assert "half.nii.gz is exactly 0 in 50% of the mask" in capsys.readouterr().err
    assert "50%" in read(tmp_path / "half_evaluation.json")["notes"][0]


@pytest.mark.parametrize(
    ("name", "values", "affine", "message"),
    [
        ("chi", np.zeros((30, 28, 26)), AFFINE, "chi.nii.gz is 0 in every voxel of the mask"),
        ("truth", np.full((30, 28, 26), 0.1), AFFINE, "truth.nii.gz is 0.1 in every voxel of the mask"),
        ("truth", np.ones((30, 28, 25)), AFFINE, "(30, 28, 25)"),
        ("chi", None, np.diag([1.0, 1.5, 3.0, 1.0]), "does not lie on the grid"),
        ("mask", np.zeros((30, 28, 26)), AFFINE, "the mask is empty"),
        ("mask", None, np.diag([2.0, 1.5, 2.0, 1.0]), "does not lie on the grid"),
        ("labels", None, np.diag([-1.0, 1.5, 2.0, 1.0]), "no region inside the mask"),
        ("labels", None, AFFINE + 500 * np.eye(4, k=3), "marks nothing on the map's grid"),
        ("labels", np.full((30, 28, 26), 93), AFFINE, "labels.nii.gz holds 93, which neither"),
        ("labels", np.full((30, 28, 26), 2.5), AFFINE, "holds 2.5, needed whole numbers"),
        ("labels", np.pad(np.ones((1, 1, 1)), ((0, 29), (0, 27), (0, 25))), AFFINE, "no region inside the mask"),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(
    files, volumes, tmp_path, capsys, name, values, affine, message
):
    write(tmp_path / f"{name}.nii.gz", volumes[name] if values is None else values, affine)
    before = {path.name for path in tmp_path.iterdir()}
    assert main(arguments(files, "--segmentation", files["labels"])) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and error.strip().count("\n") == 0
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_segmentation_on_another_grid_is_brought_onto_the_maps(files, volumes, tmp_path, capsys):
    assert main(arguments(files, "--segmentation", files["labels"])) == 0
    same = read(tmp_path / "chi_evaluation.json")
    finer = np.kron(volumes["labels"], np.ones((2, 2, 2)))
    steps = np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25], [0, 0, 0, 1]])
    write(tmp_path / "labels.nii.gz", finer, AFFINE @ steps)
    capsys.readouterr()
    assert main(arguments(files, "--segmentation", files["labels"])) == 0
    other = read(tmp_path / "chi_evaluation.json")
    assert other["regions"] == same["regions"] and other["challenge"] == same["challenge"]
    said = "labels.nii.gz lies on another grid and was brought onto the map's by the nearest neighbour"
    assert said in capsys.readouterr().out and said in other["assumed about the segmentation"]
    assert "another grid" not in same["assumed about the segmentation"]


def test_a_damaged_table_and_a_wrong_output_are_refused(files, tmp_path, capsys):
    before = (tmp_path / "chi.nii.gz").read_bytes()
    assert main(arguments(files, "--output", files["chi"])) == 2
    assert "ends in .json" in capsys.readouterr().err and (tmp_path / "chi.nii.gz").read_bytes() == before
    (tmp_path / "labels.tsv").write_bytes(b"index\tname\n1\t\xff\n")
    assert main(arguments(files, "--segmentation", files["labels"])) == 2
    assert "labels.tsv cannot be read as text" in capsys.readouterr().err
    (tmp_path / "labels.tsv").write_text("number\tname\n1\tcaudate\n")
    assert main(arguments(files, "--segmentation", files["labels"])) == 2
    assert "needed index and name" in capsys.readouterr().err
    assert main(arguments(files, "--segmentation", tmp_path / "no.nii.gz")) == 2
    assert not list(tmp_path.glob("*.json"))


def test_an_old_record_survives_an_error(files, tmp_path, monkeypatch):
    old = tmp_path / "chi_evaluation.json"
    old.write_text("old")
    monkeypatch.setattr(regional, "report", lambda *_: {"whole mask": {"broken": object()}})
    with pytest.raises(TypeError):
        main(arguments(files))
    assert old.read_text() == "old" and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_infinity_is_null_too():
    from chimap.commands.evaluation import _plain

    assert _plain({"a": [math.inf, (math.nan, 1)], "b": 1.5}) == {"a": [None, [None, 1]], "b": 1.5}
