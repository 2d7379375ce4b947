"""The commands as a user calls them, in this process; files in, files out."""

import hashlib
import json

import nibabel
import numpy as np
import pytest
import torch

from chimap import methods, metrics
from chimap.cli import main
from chimap.fields.csf import ventricles
from chimap.fields.relaxation import r2star_map
from chimap.inversion import zero_shot
from chimap.io.bids import write_megre
from chimap.io.nifti import write_volume
from chimap.report.provenance import results_of
from chimap.simulation.acquisition import acquire
from chimap.simulation.head import built_in_head

VOXEL = (3.5, 3.5, 4.0)


@pytest.fixture(scope="module")
def simulated():
    """An oblique head, small and coarse, and its acquisition."""
    head = built_in_head((56, 64, 44), VOXEL, grid_rotation=(0.5, 0.1, 0.0), seed=3)
    return acquire(head, snr=60.0, seed=3)


@pytest.fixture(scope="module")
def doll():
    """The same head at half the size: at the 1 mm of the networks an eighth of the voxels."""
    size = (VOXEL[0] / 2, VOXEL[1] / 2, VOXEL[2] / 2)
    head = built_in_head((56, 64, 44), size, grid_rotation=(0.5, 0.1, 0.0), head_scale=0.5, seed=3)
    return acquire(head, snr=60.0, seed=3)


@pytest.fixture
def files(simulated, tmp_path):
    """The acquisition as BIDS files, and its truth."""
    return as_files(simulated, tmp_path / "input")


def as_files(simulated, folder):
    scan, truth = simulated
    folder.mkdir()
    written = write_megre(folder, scan)
    for name, volume in (("mask", truth.mask), ("field", truth.local_field * truth.mask), ("chi", truth.chi)):
        write_volume(folder / f"{name}.nii.gz", volume, scan.affine, description=name)
    return folder, written


def run_arguments(written, output):
    return [
        "run",
        "--phase", *map(str, written.phase),
        "--magnitude", *map(str, written.magnitude),
        "--output", str(output),
    ]  # fmt: skip


def load(path):
    return torch.from_numpy(nibabel.nifti1.load(path).get_fdata(dtype=np.float32))


def test_run_writes_maps_report_and_provenance(files, tmp_path, simulated):
    folder, written = files
    scan, truth = simulated
    output = tmp_path / "output"
    assert main([*run_arguments(written, output), "--mask", str(folder / "mask.nii.gz"), "--method", "tv"]) == 0
    names = {path.name for path in output.iterdir()}
    assert {"chi.nii.gz", "total_field.nii.gz", "local_field.nii.gz", "mask.nii.gz", "report.html"} < names
    rate = load(output / "r2star.nii.gz")[truth.mask]
    assert 10 < rate.median() < 30 and "R2*" in (output / "report.html").read_text()
    chi, mask = load(output / "chi.nii.gz"), load(output / "mask.nii.gz") > 0
    assert metrics.correlation(chi, truth.chi, mask) > 0.5
    assert 0.4 < metrics.slope(chi, truth.chi, mask) < 1.2
    np.testing.assert_allclose(nibabel.nifti1.load(output / "chi.nii.gz").affine, scan.affine, atol=1e-5)
    assert not (mask & ~truth.mask).any()
    record = json.loads((output / "provenance.json").read_text())
    assert len(record["inputs"]) >= 10 and all(len(row["sha256"]) == 64 for row in record["inputs"])
    assert str(tmp_path) not in (output / "provenance.json").read_text()
    assert str(tmp_path) not in (output / "report.html").read_text()


def test_run_without_a_mask_and_with_the_quick_plan(files, tmp_path, simulated):
    _, truth = simulated
    output = tmp_path / "output"
    assert main([*run_arguments(files[1], output), "--plan", "quick"]) == 0
    chi, mask = load(output / "chi.nii.gz"), load(output / "mask.nii.gz") > 0
    assert metrics.correlation(chi, truth.chi, mask & truth.mask) > 0.3


def test_a_mask_of_the_user_changes_only_when_asked(files, tmp_path, simulated):
    folder, written = files
    mask = str(folder / "mask.nii.gz")
    brains = []
    for name, extra in (("as it is", []), ("limited", ["--noise-limit", "1.5"]), ("shaved", ["--erosion", "4"])):
        output = tmp_path / name
        assert main([*run_arguments(written, output), "--mask", mask, "--method", "tkd", *extra]) == 0
        brains.append(load(output / "brain_mask.nii.gz") > 0)
        said = json.loads((output / "provenance.json").read_text())
        assert said["mask_noise_limit"] == (1.5 if name == "limited" else None)
    truth = simulated[1].mask
    assert torch.equal(brains[0], truth)
    for brain in brains[1:]:
        assert brain.sum() < truth.sum() and not (brain & ~truth).any()


def test_the_wrong_sign_turns_chi_around(files, tmp_path, simulated):
    folder, written = files
    output = tmp_path / "output"
    assert main([*run_arguments(written, output), "--mask", str(folder / "mask.nii.gz"), "--phase-sign", "-1"]) == 0
    chi, mask = load(output / "chi.nii.gz"), load(output / "mask.nii.gz") > 0
    assert metrics.correlation(chi, simulated[1].chi, mask) < -0.5


# what a slow method needs to be tried on a small grid
FEW = {"dip": ["iterations=30", "base=4", "learning_rate=8e-3"]}
FEW["zs-uqsm+"] = ["patch_steps=60", "full_steps=20", "patch=24", "base=4", "learning_rate=4e-3", "variation=0.01"]

FEW["fine"] = ["iterations=1"]


def truth_fluid(simulated):
    scan, truth = simulated
    return ventricles(r2star_map(scan.magnitude, truth.mask, scan.echo_times), truth.mask, scan.voxel_size)


def test_medi_gets_its_rate_and_medi_zero_its_fluid(files, tmp_path, simulated, capsys):
    folder, _ = files
    inputs = ["invert", "--local-field", str(folder / "field.nii.gz"), "--mask", str(folder / "mask.nii.gz")]
    output = tmp_path / "chi.nii.gz"
    wrote = ["--output", str(output)]
    echo = ["--field-strength", "7", "--echo-time", "0.01"]
    fluid = truth_fluid(simulated)
    write_volume(folder / "csf.nii.gz", fluid, simulated[0].affine, description="csf")
    write_volume(folder / "magnitude.nii.gz", simulated[0].magnitude[2], simulated[0].affine, description="magnitude")
    echo += ["--magnitude", str(folder / "magnitude.nii.gz")]
    rate = 2 * np.pi * 42.577478461 * 7 * 0.01
    for extra, expected in (([], 16.0), (echo, rate), ([*echo, "--set", "medi.radians_per_ppm=9"], 9.0)):
        assert main([*inputs, *wrote, "--method", "medi", *extra]) == 0
        record = json.loads((tmp_path / "chi.json").read_text())
        assert record["parameters"]["radians_per_ppm"] == pytest.approx(expected)
        assert record["chi is relative to"] == "zero sum over the whole grid"
    assert main([*inputs, *wrote, "--method", "medi+0"]) == 2
    assert "medi+0 needs a mask of the fluid" in capsys.readouterr().err
    csf = ["--csf", str(folder / "csf.nii.gz"), "--reference", "mask"]
    assert main([*inputs, *wrote, "--method", "medi+0", *echo, *csf]) == 0
    record = json.loads((tmp_path / "chi.json").read_text())
    assert record["chi is relative to"] == "its mean in the cerebrospinal fluid"
    assert abs(float(load(output)[fluid].mean())) < 1e-5
    assert main([*inputs, *wrote, "--method", "medi", *csf]) == 2
    assert main([*inputs, *wrote, "--method", "medi", "--field-strength", "3", "--echo-time", "20"]) == 2
    assert "milliseconds" in capsys.readouterr().err


def test_regions_references_and_weighted_images_of_a_run(files, tmp_path, simulated, capsys):
    """The user's segmentation on another grid, named by its table; chi relative to one of its regions."""
    folder, written = files
    scan, truth = simulated
    pallidum, white = truth.chi > 0.08, (truth.chi < -0.02) & truth.mask
    labels = torch.zeros(truth.chi.shape).masked_fill(pallidum, 4).masked_fill(white, 2)
    file = folder / "own_seg.nii.gz"
    coarse = scan.affine @ np.diag([2, 2, 2, 1])
    coarse[:3, 3] += scan.affine[:3, :3].sum(axis=1) / 2
    write_volume(file, labels[::2, ::2, ::2], coarse, description="labels")
    (folder / "own_seg.tsv").write_text("index\tname\n2\tWhite Matter\n4\tiron\n")
    output = tmp_path / "output"
    run = [*run_arguments(written, output), "--mask", str(folder / "mask.nii.gz"), "--plan", "quick"]
    assert main([*run, "--segmentation", str(file), "--reference", "left wm", "--swi"]) == 0
    assert "regions.tsv" in capsys.readouterr().out
    chi, mask = load(output / "chi.nii.gz"), load(output / "mask.nii.gz") > 0
    found = load(output / "segmentation.nii.gz")
    assert found.shape == chi.shape and set(found.unique().tolist()) == {0, 2, 4}
    assert abs(float(chi[mask & (found == 2)].mean())) < 1e-6
    header, *rows = [line.split("\t") for line in (output / "regions.tsv").read_text().splitlines()]
    values = {row[1]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(values) == ["whole mask", "White Matter", "iron"]
    assert float(values["iron"]["chi_mean"]) == pytest.approx(float(chi[mask & (found == 4)].mean()), abs=1e-5)
    assert float(values["White Matter"]["chi_mean"]) == 0 and float(values["iron"]["r2star_mean"]) > 15
    reference = json.loads((output / "provenance.json").read_text())["chi_reference"]
    assert reference["region"] == "white matter" and reference["sd"] > 0
    assert reference["voxels"] == int(values["White Matter"]["voxels"])
    report = (output / "report.html").read_text()
    assert "relative to its mean in white matter" in report and "another grid" in report
    weighted, least = load(output / "swi.nii.gz"), load(output / "swi_mip.nii.gz")
    assert (least[truth.mask] <= weighted[truth.mask] + 1e-4).all() and (output / "true_swi_mip.nii.gz").exists()

    assert main([*run, "--segmentation", str(file), "--reference", "putamen"]) == 2
    assert "the segmentation has iron, white matter" in capsys.readouterr().err


def test_a_run_takes_the_files_of_an_earlier_one_with_it_and_no_others(files, tmp_path):
    output = tmp_path / "output"
    run = [*run_arguments(files[1], output), "--mask", str(files[0] / "mask.nii.gz"), "--plan", "quick"]
    assert main([*run, "--swi", "--segmentation", str(_regions(files[0]))]) == 0
    first = {path.name for path in output.iterdir()}
    assert {"swi.nii.gz", "true_swi_mip.nii.gz", "segmentation.nii.gz", "segmentation.tsv", "regions.tsv"} < first
    (output / "notes.txt").write_text("mine")
    (output / "segmentation.tsv").write_text("index\tname\n1\tmine by now\n")
    assert main([*run[:-1], "best", "--erosion", "1e3"]) == 2  # a run that fails leaves all as it was
    assert {path.name for path in output.iterdir()} == first | {"notes.txt"}
    assert main(run) == 0
    left = {path.name for path in output.iterdir()}
    volumes = {f"{name}.nii.gz" for name in ("chi", "total_field", "local_field", "mask", "brain_mask", "r2star")}
    assert left == volumes | {"report.html", "provenance.json", "notes.txt", "segmentation.tsv"}
    record = output / "provenance.json"
    content = json.loads(record.read_text())
    assert {row["name"] for row in content["outputs"]} == volumes | {"report.html"}
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    digest = hashlib.sha256(b"mine").hexdigest()
    content["outputs"] = [{"name": name, "sha256": digest} for name in ("../outside.txt", str(outside), "notes.txt")]
    record.write_text(json.dumps(content))
    assert results_of(output) == ["notes.txt"]
    record.write_text("{")
    assert results_of(output) == []


def _regions(folder):
    """Two halves of the mask, as a segmentation with its table."""
    image = nibabel.nifti1.load(folder / "mask.nii.gz")
    halves = np.asarray(image.dataobj).astype(np.uint8)
    halves[halves.shape[0] // 2 :] *= 2
    nibabel.nifti1.Nifti1Image(halves, image.affine).to_filename(folder / "halves.nii.gz")
    (folder / "halves.tsv").write_text("index\tname\n1\tright\n2\tcaudate\n3\tputamen\n")
    return folder / "halves.nii.gz"


def test_a_slip_in_set_or_reference_is_said_before_work_begins(files, tmp_path, capsys):
    run = run_arguments(files[1], tmp_path / "output")
    for extra, message in (
        (
            ["--set", "tkd.threshold=0.2"],
            "tkd is not used here, but brain, quality-guided, nonlinear, r2star, pdf-tv, tv",
        ),
        (["--segmentation", str(_regions(files[0])), "--reference", "putamen"], "the segmentation has no voxel"),
        (["--erosion", "-3"], "--erosion is -3, needed millimetres"),
        (["--noise-limit", "0"], "--noise-limit is 0, needed"),
    ):
        assert main([*run, *extra]) == 2
        assert message in capsys.readouterr().err
    invert = ["invert", "--local-field", str(files[0] / "field.nii.gz"), "--mask", str(files[0] / "mask.nii.gz")]
    invert += ["--output", str(tmp_path / "output" / "chi.nii.gz"), "--set", "tkd.threshold=0.2"]
    assert main(invert) == 2 and "tkd is not used here, but tv" in capsys.readouterr().err
    assert not (tmp_path / "output").exists()
    assert main([*invert, "--method", "tkd"]) == 0


def test_what_a_reference_or_a_weighted_image_lacks_is_said_before_work_begins(files, tmp_path, capsys):
    written, output = files[1], tmp_path / "output"
    one = ["run", "--phase", str(written.phase[0]), "--output", str(output)]
    for extra, said in (
        (["--reference", "csf"], "the magnitude of two echoes or more"),
        (["--reference", "hippo"], "no region is called 'hippo'"),
        (["--swi"], "made of the magnitude, and there is none"),
    ):
        assert main([*one, *extra]) == 2
        assert said in capsys.readouterr().err and not output.exists()


@pytest.mark.parametrize("method", ["medi", "medi+0"])
def test_run_with_the_magnitude_in_the_inversion(files, tmp_path, simulated, method):
    folder, written = files
    output = tmp_path / "output"
    assert main([*run_arguments(written, output), "--mask", str(folder / "mask.nii.gz"), "--method", method]) == 0
    truth = simulated[1]
    chi, mask = load(output / "chi.nii.gz"), load(output / "mask.nii.gz") > 0
    assert metrics.correlation(chi, truth.chi, mask) > 0.6
    record, report = json.loads((output / "provenance.json").read_text()), (output / "report.html").read_text()
    assert record["methods"]["inversion"]["parameters"]["radians_per_ppm"] == "that of the scan"
    assert record["methods"]["inversion"]["changed_from_default"] == {}
    assert any("a field of 1 ppm is a phase of" in note for note in record["notes"])
    assert ("cerebrospinal fluid" in record["chi_reference"]["region"]) == (method == "medi+0")
    assert ("Here the mean of chi in the cerebrospinal fluid" in report) == (method == "medi+0")
    assert ("relative to its mean in the cerebrospinal fluid" in report) == (method == "medi+0")


LEARNED = ("uqsm+", "xqsm", "xqsm+", "qsmnet", "qsmnet+", "fine")


@pytest.mark.parametrize("method", methods.names("inversion"))
def test_invert_by_every_method(tmp_path, simulated, doll, method):
    simulated = doll if method in LEARNED else simulated
    folder, _ = as_files(simulated, tmp_path / "input")
    output = tmp_path / "new" / "chi.nii.gz"
    arguments = [
        "invert",
        "--local-field",
        str(folder / "field.nii.gz"),
        "--mask",
        str(folder / "mask.nii.gz"),
    ]
    if method == "medi+0":
        write_volume(folder / "csf.nii.gz", truth_fluid(simulated), simulated[0].affine, description="csf")
        arguments += ["--csf", str(folder / "csf.nii.gz")]
    arguments += [part for setting in FEW.get(method, []) for part in ("--set", f"{method}.{setting}")]
    assert main([*arguments, "--method", method, "--output", str(output)]) == 0
    scan, truth = simulated
    assert metrics.correlation(load(output), truth.chi, truth.mask) > (0.4 if method in FEW else 0.6)
    record = json.loads((tmp_path / "new" / "chi.json").read_text())
    assert record["method"] == method and record["units"] == "ppm"
    assert ("resampled to voxels of 1 x 1 x 1 mm" in record["frame"]) == (method in LEARNED)
    np.testing.assert_allclose(record["B0 direction (voxel axes)"], scan.b0_direction, atol=1e-4)


def test_a_stopped_fit_goes_on(files, tmp_path, monkeypatch, capsys):
    folder, _ = files
    output, calls = tmp_path / "new" / "chi.nii.gz", []
    arguments = ["invert", "--local-field", str(folder / "field.nii.gz"), "--mask", str(folder / "mask.nii.gz")]
    arguments += ["--output", str(output), "--method", "dip", "--set", "dip.iterations=40", "--set", "dip.base=2"]
    learn = zero_shot._Fit.learn

    def learn_until(fit, *rest):
        calls.append(fit.step)
        if len(calls) == 30:
            raise KeyboardInterrupt
        learn(fit, *rest)

    monkeypatch.setattr(zero_shot._Fit, "learn", learn_until)
    assert main(arguments) != 0
    assert not output.exists()
    assert main([*arguments, "--resume"]) == 0
    assert calls[30:] == list(range(25, 40))
    assert sorted(path.name for path in output.parent.iterdir()) == ["chi.json", "chi.nii.gz"]
    assert main([*arguments[:-5], "tv", "--resume"]) == 2
    assert "tv does not" in capsys.readouterr().err


def test_a_field_in_hertz_and_one_in_radians_give_the_same_chi(files, tmp_path):
    folder, _ = files
    image = nibabel.nifti1.load(folder / "field.nii.gz")
    values = image.get_fdata()
    maps = []
    for units, factor, extra in (
        ("ppm", 1.0, []),
        ("hz", 42.577478461 * 3, ["--field-strength", "3"]),
        ("rad", 2 * np.pi * 42.577478461 * 3 * 0.02, ["--field-strength", "3", "--echo-time", "0.02"]),
    ):
        source, output = tmp_path / f"{units}.nii.gz", tmp_path / f"chi_{units}.nii.gz"
        nibabel.nifti1.Nifti1Image((values * factor).astype(np.float32), image.affine).to_filename(source)
        arguments = [
            "invert",
            "--local-field",
            str(source),
            "--mask",
            str(folder / "mask.nii.gz"),
            "--units",
            units,
        ]
        assert main([*arguments, "--method", "tkd", "--output", str(output), *extra]) == 0
        maps.append(load(output))
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(maps[2], maps[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--method", "magic"], "no inversion method is called 'magic'"),
        (["--set", "tv.lambda=1"], "tv has no parameter 'lambda'"),
        (["--set", "tv.progress=1"], "tv has no parameter 'progress'"),
        (["--echo-times", "4", "8", "12", "16", "20"], "milliseconds"),
        (["--echo-times", "0.004", "0.008"], "gives 2 (0.004, 0.008)"),
        (["--mask", "no.nii.gz"], "no.nii.gz"),
        (["--b0-dir", "0", "0", "0"], "length"),
        (["--dicom", "folder"], "either --phase"),
        (["--two-pass", "--method", "iqsm+"], "two passes need"),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(files, tmp_path, capsys, change, message):
    output = tmp_path / "output"
    assert main([*run_arguments(files[1], output), *change]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not output.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"input"}


def test_a_field_that_is_not_in_ppm_is_noticed(files, tmp_path, capsys):
    folder, _ = files
    image = nibabel.nifti1.load(folder / "field.nii.gz")
    source = tmp_path / "hertz.nii.gz"
    nibabel.nifti1.Nifti1Image((image.get_fdata() * 127.7).astype(np.float32), image.affine).to_filename(source)
    arguments = ["invert", "--local-field", str(source), "--mask", str(folder / "mask.nii.gz")]
    assert main([*arguments, "--output", str(tmp_path / "chi.nii.gz")]) == 2
    assert "--units hz" in capsys.readouterr().err
    assert not (tmp_path / "chi.nii.gz").exists()


def test_evaluate_prints_the_error(files, capsys):
    folder, _ = files
    truth = str(folder / "chi.nii.gz")
    assert main(["evaluate", truth, "--truth", truth, "--mask", str(folder / "mask.nii.gz")]) == 0
    assert "NRMSE [%]" in capsys.readouterr().out
    assert main(["evaluate", truth, "--truth", str(folder / "no.nii.gz")]) == 2


def test_the_demo_runs_and_compares_with_the_truth(tmp_path, capsys):
    output = tmp_path / "demo"
    size = ["--shape", "48", "56", "40", "--voxel-size", "4", "4", "4.4"]
    assert main(["demo", "--output", str(output), *size]) == 0
    printed = capsys.readouterr().out
    assert "Error against the known truth" in printed and "inversion [s]" in printed
    assert (output / "chi.nii.gz").exists() and (output / "input" / "truth_chi.nii.gz").exists()
    assert "correlation" in (output / "report.html").read_text()


def test_the_regularisation_is_chosen_and_recorded(files, tmp_path, capsys):
    folder, written = files
    invert = ["invert", "--local-field", str(folder / "field.nii.gz"), "--mask", str(folder / "mask.nii.gz")]
    choose = ["--choose-regularisation", "discrepancy"]
    output = tmp_path / "new" / "chi.nii.gz"
    assert main([*invert, *choose, "--method", "tikhonov", "--field-error", "0.002", "--output", str(output)]) == 0
    record = json.loads((tmp_path / "new" / "chi.json").read_text())
    chosen = record["choice of the regularisation"]
    assert "discrepancy principle" in chosen["how"] and "given" in chosen["how"]
    assert record["parameters"]["regularisation"] in [point["regularisation"] for point in chosen["points"]]
    nothing = ["--output", str(tmp_path / "no.nii.gz")]
    assert main([*invert, *choose, "--method", "tkd", *nothing]) == 2
    assert "tkd has no regularisation to choose" in capsys.readouterr().err
    assert main([*invert, "--field-error", "0.002", *nothing]) == 2
    assert "--field-error is for" in capsys.readouterr().err
    assert not (tmp_path / "no.nii.gz").exists()

    output = tmp_path / "output"
    mask = ["--mask", str(folder / "mask.nii.gz"), "--plan", "quick"]
    assert main([*run_arguments(written, output), *mask, *choose, "--method", "tikhonov"]) == 0
    record = json.loads((output / "provenance.json").read_text())
    value = record["methods"]["inversion"]["parameters"]["regularisation"]
    assert value != 0.01 and record["choice_of_regularisation"] == "discrepancy"
    assert any("discrepancy principle" in note for note in record["notes"] + record["warnings"])
    page = (output / "report.html").read_text()
    assert "Morozov 1966" in page and f"regularisation {value:.6g}, default 0.01" in page
    assert main([*run_arguments(written, tmp_path / "other"), *mask, *choose, "--method", "tkd"]) == 2
    assert "tkd has no regularisation to choose" in capsys.readouterr().err
