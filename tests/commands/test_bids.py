"""`chimap bids` as a user calls it, on small simulated subjects, some of them broken."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

from chimap import group, participant, pipeline
from chimap.cli import main
from chimap.io.nifti import read_scan
from chimap.segmentation import Segmentation

SMALL = ["--shape", "36", "44", "32", "--voxel-size", "5", "5", "5.5", "--echo-times", "0.006", "0.014"]
PLAN = ["--plan", "quick"]
MAPS = ("Chimap", "R2starmap", "desc-total_fieldmap", "desc-local_fieldmap", "desc-brain_mask", "desc-valid_mask")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "data"
    assert main(["simulate", *SMALL, "--subjects", "2", "--seed", "5", "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def dataset(simulated, tmp_path):
    """Two sound subjects; a test changes what it likes."""
    return shutil.copytree(simulated, tmp_path / "data")


@pytest.fixture
def no_report(monkeypatch):
    """Pages take most of the time and are tested elsewhere."""
    monkeypatch.setattr(participant, "write_report", lambda path, *_, **__: path.write_text("report"))


def bids(dataset, output, *options, level="participant"):
    """In this process, without Dask."""
    extra = ["--workers", "0", *PLAN] if level == "participant" else []
    return main(["bids", str(dataset), str(output), level, *extra, *map(str, options)])


def add_subject(dataset, label, *, like="01"):
    source, target = dataset / f"sub-{like}", dataset / f"sub-{label}"
    shutil.copytree(source, target)
    for path in list(target.rglob("sub-*")):
        path.rename(path.with_name(path.name.replace(f"sub-{like}", f"sub-{label}")))
    return target / "anat"


def content(folder):
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "logs" not in path.parts
    }


def table(path):
    with open(path) as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_maps_masks_fields_and_their_json(dataset, tmp_path, no_report):
    output = dataset / "derivatives" / "chimap"
    assert bids(dataset, output, "--participant-label", "sub-02", "--segmentations", dataset / "derivatives/truth") == 0
    about = json.loads((output / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative" and about["DatasetLinks"] == {"raw": "../.."}
    assert not (output / "sub-01").exists() and (output / "sub-02.html").exists()
    folder = output / "sub-02" / "anat"
    raw = nib.nifti1.load(dataset / "sub-02/anat/sub-02_echo-1_part-phase_MEGRE.nii.gz")
    for name in MAPS:
        image = nib.nifti1.load(folder / f"sub-02_{name}.nii.gz")
        assert image.shape == raw.shape and np.allclose(image.affine, raw.affine, atol=1e-5)
        beside = json.loads((folder / f"sub-02_{name}.json").read_text())
        assert beside["Description"] and "bids:raw:sub-02/anat/sub-02_echo-2_part-mag_MEGRE.nii.gz" in beside["Sources"]
    chi = json.loads((folder / "sub-02_Chimap.json").read_text())
    assert chi["Units"] == "ppm" and "its mean in the mask in which it is valid" in chi["Reference"]
    assert chi["EstimationAlgorithm"] == "tkd" and "thresholded k-space division" in chi["Methods"]
    assert chi["EchoTime"] == [0.006, 0.014] and chi["MagneticFieldStrength"] == 3.0
    assert str(tmp_path) not in json.dumps(chi)
    rows = table(folder / "sub-02_regions.tsv")
    assert rows[0]["region"] == "whole mask" and rows[0]["chi_mean"] == "0" and rows[0]["segmentation"] == "n/a"
    by_name = {row["region"]: row for row in rows}
    assert float(by_name["pallidum"]["chi_mean"]) > 0.02
    voxels = int(by_name["white matter"]["voxels"])
    assert float(by_name["white matter"]["volume_mm3"]) == pytest.approx(voxels * 5 * 5 * 5.5, rel=1e-4)
    assert rows[0].keys() <= json.loads((folder / "sub-02_regions.json").read_text()).keys()
    assert not list(output.rglob(".*"))


def test_what_is_done_is_skipped_until_something_changes(dataset, tmp_path, no_report, capsys):
    output = tmp_path / "out"
    assert bids(dataset, output) == 0
    first = content(output)
    assert bids(dataset, output) == 0
    assert "0 made, 2 done before, 0 failed" in capsys.readouterr().out
    assert content(output) == first

    # touched without a change, as by a copy: nothing to do
    os.utime(dataset / "sub-01/anat/sub-01_echo-1_part-mag_MEGRE.nii.gz")
    assert bids(dataset, output) == 0 and content(output) == first

    # another plan: neither replaced nor taken for this one's
    assert bids(dataset, output, "--method", "tikhonov") == 1
    assert "inversion tkd, now tikhonov" in capsys.readouterr().err
    assert bids(dataset, output, "--set", "tkd.threshold=0.2") == 1
    assert "tkd.threshold not given, now 0.2" in capsys.readouterr().err
    assert content(output) == first

    # a sidecar says something else: that subject again
    beside = dataset / "sub-01/anat/sub-01_echo-2_part-phase_MEGRE.json"
    beside.write_text(beside.read_text().replace("0.014", "0.015"))
    beside.with_name("sub-01_echo-2_part-mag_MEGRE.json").unlink()
    assert bids(dataset, output) == 0
    assert "1 made, 1 done before" in capsys.readouterr().out
    second = content(output)
    changed = {name for name in second if second[name] != first[name]}
    assert any("sub-01_Chimap" in name for name in changed) and not any("sub-02" in name for name in changed)

    # segmentations given later: values only
    assert bids(dataset, output, "--segmentations", dataset / "derivatives/truth") == 0
    third = content(output)
    assert {name for name in third if third[name] != second[name]} == {
        f"sub-{n}/anat/sub-{n}_regions.{ending}" for n in ("01", "02") for ending in ("tsv", "json")
    }
    assert bids(dataset, output) == 0 and content(output) == third  # and not given again: they stay
    assert bids(dataset, output, "--overwrite", "--method", "tikhonov", "--participant-label", "01") == 0
    assert json.loads((output / "sub-01/anat/sub-01_Chimap.json").read_text())["EstimationAlgorithm"] == "tikhonov"


def test_what_a_killed_process_left_goes_with_the_next_call(dataset, tmp_path, no_report):
    """Also beside a subject that is done: another worker finished it after the one that died."""
    output = tmp_path / "out"
    assert bids(dataset, output) == 0
    first = content(output)
    folder = output / "sub-01" / "anat"
    (folder / ".0123456789ab-sub-01_regions.tsv").touch()
    (output / ".0123456789ab-sub-01.html").touch()
    (folder.parent / ".anat-0123456789ab").mkdir()
    assert bids(dataset, output) == 0
    assert content(output) == first and not list(output.rglob(".*"))


def test_broken_subjects_are_named_and_the_others_finished(dataset, tmp_path, no_report, capsys):
    cut = add_subject(dataset, "03") / "sub-03_echo-1_part-phase_MEGRE.nii.gz"
    cut.write_bytes(cut.read_bytes()[:5000])
    (add_subject(dataset, "04") / "sub-04_echo-2_part-mag_MEGRE.nii.gz").unlink()
    (add_subject(dataset, "05") / "sub-05_echo-1_part-phase_MEGRE.json").write_text('{"EchoTime": 0.0')
    for path in add_subject(dataset, "06").glob("*echo-2*.json"):
        path.write_text(path.read_text().replace("0.014", "14"))
    shutil.rmtree(add_subject(dataset, "07"))
    output = tmp_path / "out"
    assert bids(dataset, output) == 1
    printed = capsys.readouterr()
    assert "2 made, 0 done before, 5 failed" in printed.out
    listed = dict(line.strip().split(": ", 1) for line in printed.err.split("Failed:\n")[1].strip().splitlines())
    for name, why in {
        "sub-03": "sub-03/anat/sub-03_echo-1_part-phase_MEGRE.nii.gz is damaged or cut short",
        "sub-04": "echo 2 has no magnitude",
        "sub-05": "sub-05/anat/sub-05_echo-1_part-phase_MEGRE.json cannot be read as JSON",
        "sub-06": "milliseconds",
        "sub-07": "no phase of a gradient echo",
    }.items():
        assert why in listed.pop(name)
    assert not listed and "Traceback" not in printed.err
    done = {path.name for path in output.glob("sub-*/anat/*_Chimap.json")}
    assert done == {"sub-01_Chimap.json", "sub-02_Chimap.json"}
    assert not (output / "sub-03").exists() and not list(output.rglob(".*"))
    (log,) = (output / "logs").iterdir()
    assert {row["acquisition"]: row["status"] for row in table(log)}["sub-04"] == "failed"


def test_sessions_runs_ten_echoes_and_inherited_json(dataset, tmp_path, no_report):
    """One subject as two sessions of several runs, its JSON moved up, and echoes 2 and 10."""
    shutil.rmtree(dataset / "sub-02")
    anat = dataset / "sub-01" / "anat"
    stems = ["sub-01_ses-a_run-1", "sub-01_ses-a_run-2", "sub-01_ses-b_acq-lo"]
    for stem in stems:
        folder = dataset / "sub-01" / stem.split("_")[1] / "anat"
        folder.mkdir(parents=True, exist_ok=True)
        for path in anat.glob("*.nii.gz"):
            name = path.name.replace("echo-2", "echo-10").replace("echo-1_", "echo-2_").replace("sub-01", stem)
            shutil.copy(path, folder / name)
    shutil.rmtree(anat)
    for name, fields in {
        "MEGRE": {"MagneticFieldStrength": 3},
        "echo-2_MEGRE": {"EchoTime": 0.006},
        "echo-10_MEGRE": {"EchoTime": 0.014},
        "part-phase_MEGRE": {"Units": "rad"},
    }.items():
        (dataset / f"{name}.json").write_text(json.dumps(fields))
    output = tmp_path / "out"
    assert bids(dataset, output) == 0
    found = sorted(str(path.relative_to(output)) for path in output.rglob("*_Chimap.nii.gz"))
    assert found == [f"sub-01/{stem.split('_')[1]}/anat/{stem}_Chimap.nii.gz" for stem in stems]
    maps = [nib.nifti1.load(output / path).get_fdata() for path in found]
    assert np.array_equal(maps[0], maps[1]) and np.array_equal(maps[0], maps[2])
    times = json.loads((output / found[0].replace(".nii.gz", ".json")).read_text())["EchoTime"]
    assert times == [0.006, 0.014]
    assert bids(dataset, tmp_path / "one", "--session-label", "b") == 0
    assert len(list((tmp_path / "one").rglob("*_Chimap.nii.gz"))) == 1
    assert bids(dataset, output, level="group") == 0
    rows = table(output / "group_regions.tsv")
    assert [(row["session_id"], row["acquisition"]) for row in rows] == [
        ("ses-a", "run-1"), ("ses-a", "run-2"), ("ses-b", "acq-lo"),
    ]  # fmt: skip


def test_masks_of_another_program(dataset, tmp_path, no_report):
    masks = dataset / "derivatives" / "truth"
    other = masks / "sub-02/anat/sub-02_desc-brain_mask.nii.gz"
    image = nib.nifti1.load(other)
    expected = np.asarray(image.dataobj) > 0
    twice = np.repeat(np.repeat(np.repeat(expected.astype(np.uint8), 2, 0), 2, 1), 2, 2)
    affine = image.affine @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25], [0, 0, 0, 1]])
    nib.nifti1.Nifti1Image(twice, affine).to_filename(other)
    output = tmp_path / "out"
    assert bids(dataset, output, "--masks", masks) == 0
    for subject in ("01", "02"):
        stem = output / f"sub-{subject}/anat/sub-{subject}"
        truth = read_scan(sorted((dataset / f"sub-{subject}/anat").glob("*phase*.nii.gz"))).shape
        used = nib.nifti1.load(f"{stem}_desc-brain_mask.nii.gz").get_fdata() > 0
        assert used.shape == truth
        warned = (
            "brought onto the map's by the nearest neighbour"
            in (stem.with_name(stem.name + "_Chimap.json")).read_text()
        )
        assert warned == (subject == "02")
    assert np.array_equal(
        nib.nifti1.load(output / "sub-02/anat/sub-02_desc-brain_mask.nii.gz").get_fdata() > 0, expected
    )
    other.unlink()
    assert bids(dataset, tmp_path / "again", "--masks", masks) == 1
    assert (tmp_path / "again/sub-01/anat/sub-01_Chimap.json").exists()


def test_chi_relative_to_a_region_and_weighted_images(dataset, tmp_path, no_report, capsys):
    truth, output = dataset / "derivatives" / "truth", tmp_path / "out"
    options = ["--participant-label", "01", "--segmentations", truth, "--reference", "white matter", "--swi"]
    assert bids(dataset, output, *options) == 0
    stem = str(output / "sub-01/anat/sub-01")
    rows = {row["region"]: row for row in table(f"{stem}_regions.tsv")}
    assert float(rows["white matter"]["chi_mean"]) == 0 and float(rows["whole mask"]["chi_mean"]) != 0
    about = json.loads(Path(f"{stem}_Chimap.json").read_text())
    assert "relative to its mean in white matter" in about["Reference"] and "SD" in about["Reference"]
    for name in ("swi", "minIP", "desc-true_swi", "desc-true_minIP"):
        assert nib.nifti1.load(f"{stem}_{name}.nii.gz").get_fdata().max() > 0
    assert "brought onto" not in json.dumps(about) and "Notes" not in json.loads(
        Path(f"{stem}_regions.json").read_text()
    )
    capsys.readouterr()
    assert bids(dataset, output, *options) == 0
    assert "1 done before" in capsys.readouterr().out
    labels = truth / "sub-01/anat/sub-01_dseg.nii.gz"
    image = nib.nifti1.load(labels)
    values = np.asarray(image.dataobj).copy()
    values[: values.shape[0] // 2][values[: values.shape[0] // 2] == 8] = 9  # half of the white matter is no longer
    nib.nifti1.Nifti1Image(values, image.affine).to_filename(labels)
    assert bids(dataset, output, *options) == 0  # the map itself depends on the segmentation: it is made again
    again = {row["region"]: row for row in table(f"{stem}_regions.tsv")}
    assert float(again["white matter"]["chi_mean"]) == 0
    assert again["whole mask"]["chi_mean"] != rows["whole mask"]["chi_mean"]

    halves = np.repeat(np.repeat(np.repeat(values, 2, 0), 2, 1), 2, 2)
    finer = image.affine @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25], [0, 0, 0, 1]])
    nib.nifti1.Nifti1Image(halves, finer).to_filename(labels)
    own = output / "sub-01/anat/sub-01_notes.txt"
    own.write_text("mine")
    assert bids(dataset, output, *options[:-1], "--overwrite") == 0  # without --swi
    assert "dseg.nii.gz lies on another grid" in json.dumps(json.loads(Path(f"{stem}_Chimap.json").read_text()))
    assert "dseg.nii.gz lies on another grid" in json.loads(Path(f"{stem}_regions.json").read_text())["Notes"][0]
    assert not list(own.parent.glob("*swi*")) and not list(own.parent.glob("*minIP*")) and own.exists()
    assert {row["region"]: row for row in table(f"{stem}_regions.tsv")} == again


def test_regions_that_were_found_stand_beside_the_map(dataset, tmp_path, no_report, monkeypatch):
    def halves(magnitude, chi, mask, voxel_size, affine):
        labels = mask.long()
        labels[: len(labels) // 2] *= 2
        return Segmentation(labels, {1: "one half", 2: "other half"}, "network")

    monkeypatch.setattr(pipeline, "segment", halves)
    output = tmp_path / "out"
    assert bids(dataset, output, "--participant-label", "01", "--regions") == 0
    stem = str(output / "sub-01/anat/sub-01")
    assert [(row["segmentation"], row["region"]) for row in table(f"{stem}_regions.tsv")] == [
        ("n/a", "whole mask"),
        ("network", "one half"),
        ("network", "other half"),
    ]
    assert set(np.unique(np.asarray(nib.nifti1.load(f"{stem}_desc-network_dseg.nii.gz").dataobj))) == {0, 1, 2}
    assert "other half" in Path(f"{stem}_desc-network_dseg.tsv").read_text()
    assert bids(dataset, output, level="group") == 0
    assert {row["region"] for row in table(next(output.glob("group*.tsv")))} == {
        "whole mask",
        "one half",
        "other half",
    }
    assert bids(dataset, output, "--participant-label", "01", "--overwrite") == 0  # without regions: none stay behind
    assert [row["region"] for row in table(f"{stem}_regions.tsv")] == ["whole mask"]
    assert not list((output / "sub-01/anat").glob("*dseg*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--participant-label", "09"], "no sub-09; there are 01, 02"),
        (["--session-label", "x"], "no subject has a session x"),
        (["--method", "magic"], "no inversion"),
        (["--set", "tkd.limit=1"], "tkd has no parameter"),
        (["--workers", "-1"], "--workers is -1"),
        (["--masks", "nowhere"], "--masks nowhere is no folder"),
        (["--segmentations", "nowhere"], "--segmentations nowhere is no folder"),
        (["--slurm", "--scheduler", "tcp://127.0.0.1:1"], "either --scheduler or --slurm"),
    ],
)
def test_a_call_that_cannot_work_is_refused_before_anything_is_made(dataset, tmp_path, capsys, options, message):
    assert bids(dataset, tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_folders_that_are_something_else_are_refused(dataset, tmp_path, no_report, capsys):
    assert bids(dataset, dataset) == 2
    assert bids(dataset, dataset / "derivatives" / "truth", "--overwrite") == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "dataset_description.json").write_text('{"Name": "mine", "BIDSVersion": "1.8.0"}')
    assert bids(dataset, tmp_path / "mine") == 2
    assert "not of chimap's derivatives" in capsys.readouterr().err
    (dataset / "dataset_description.json").unlink()
    assert bids(dataset, tmp_path / "out") == 2
    assert "--skip-bids-validation" in capsys.readouterr().err
    assert bids(dataset, tmp_path / "out", "--skip-bids-validation", "--participant_label", "01") == 0


def fake_derivatives(output, values):
    """Derivatives of subjects with one region, as far as `group` looks at them."""
    for n, value in enumerate(values, start=1):
        stem = output / f"sub-{n:02d}" / "anat" / f"sub-{n:02d}"
        stem.parent.mkdir(parents=True)
        (stem.parent / f"{stem.name}_Chimap.json").write_text(json.dumps({"Settings": {"Version": "1"}}))
        (stem.parent / f"{stem.name}_regions.json").write_text(json.dumps({"chi_mean": {"Units": "ppm"}, "Inputs": []}))
        text = f"segmentation\tregion\tvolume_mm3\tchi_mean\naseg\tpallidum\t{1000 + n}\t{value}\n"
        (stem.parent / f"{stem.name}_regions.tsv").write_text(text)


def test_group_writes_one_table_and_calls_outliers_so(tmp_path, capsys):
    values = [0.11, 0.12, 0.10, 0.115, 0.105, 0.45, "n/a"]
    fake_derivatives(tmp_path, values)
    assert bids(tmp_path / "no dataset", tmp_path, level="group") == 0
    rows = table(tmp_path / "group_regions.tsv")
    assert [row["participant_id"] for row in rows] == [f"sub-{n:02d}" for n in range(1, 8)]
    assert [row["outlier"] for row in rows] == ["n/a"] * 5 + ["chi_mean"] + ["n/a"]
    known = np.array(values[:6])
    spread = np.median(np.abs(known - np.median(known)))
    assert float(rows[5]["chi_mean_z"]) == pytest.approx(0.6745 * (0.45 - np.median(known)) / spread, rel=1e-2)
    assert rows[6]["chi_mean_z"] == "n/a"
    described = json.loads((tmp_path / "group_regions.json").read_text())
    assert described.keys() == rows[0].keys()
    assert "sub-06, pallidum: chi_mean" in capsys.readouterr().out

    (tmp_path / "sub-03/anat/sub-03_Chimap.json").write_text(json.dumps({"Settings": {"Version": "2"}}))
    (tmp_path / "sub-04/anat/sub-04_Chimap.json").unlink()
    assert bids(tmp_path / "no dataset", tmp_path, level="group") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "2 plans or versions" in said and "sub-03 unlike the others" in said
    assert "sub-04 has region values and no finished map" in said
    assert len(table(tmp_path / "group_regions.tsv")) == 6
    assert bids(tmp_path, tmp_path / "nothing", level="group") == 2


def test_group_writes_a_page_that_knows_who_failed(tmp_path):
    output, dataset = tmp_path / "out", tmp_path / "data"
    fake_derivatives(output, [0.11, 0.12])
    for label in ("01", "02", "03", "04"):
        (dataset / f"sub-{label}" / "anat").mkdir(parents=True)
    (dataset / "sub-04/anat/sub-04_part-phase_MEGRE.nii.gz").write_text("")
    (output / "logs").mkdir()
    lines = ["acquisition\tstatus\tseconds\tsentence", "sub-02\tfailed\t1.0\tno memory", "sub-99\tfailed\t1.0\tgone"]
    (output / "logs/20250101T000000-1.tsv").write_text("\n".join(lines) + "\n")
    assert bids(dataset, output, level="group") == 0
    text = (output / "group.html").read_text()
    assert "2 people, 2 acquisitions" in text and "2 people without values" in text
    assert "no memory" in text and "no phase of a gradient echo" in text and "sub-99" not in text
    assert str(tmp_path) not in text
    assert bids(dataset, output, "--participant-label", "01", level="group") == 0
    assert "no memory" not in (output / "group.html").read_text()


def test_robust_z_of_few_or_equal_values_is_nothing():
    assert all(np.isnan(group.robust_z([1.0, 2.0, 3.0, 4.0])))
    assert all(np.isnan(group.robust_z([0.0] * 9 + [1.0])))


def test_group_needs_no_torch(tmp_path):
    fake_derivatives(tmp_path, [0.1])
    code = (
        "import sys; from chimap.cli import main\n"
        f"status = main(['bids', 'nothing', {str(tmp_path)!r}, 'group'])\n"
        "sys.exit(status or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_workers_killed_and_the_whole_call_killed(dataset, tmp_path):
    """On a real local cluster: the workers die when the first subject is finished, later the call itself."""
    add_subject(dataset, "03")
    add_subject(dataset, "04")
    output = tmp_path / "out"
    command = [sys.executable, "-m", "chimap.cli", "bids", str(dataset), str(output), "participant", *PLAN]
    command += ["--workers", "2", "--threads", "1"]
    done = lambda: {path: path.stat().st_mtime_ns for path in output.glob("sub-*/anat/sub-*_Chimap.json")}  # noqa: E731

    def wait_for(number):
        while len(done()) < number and call.poll() is None:
            time.sleep(0.02)

    call = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(1)
    first = done()
    for child in psutil.Process(call.pid).children(recursive=True):
        if "spawn_main" in " ".join(child.cmdline()):
            child.kill()
    wait_for(2)
    second = done()
    call.send_signal(signal.SIGKILL)
    call.communicate()
    assert 1 <= len(first) < 3 and 2 <= len(second) < 4  # two may end at the same moment
    assert all(second[path] == when for path, when in first.items())
    for path in second:  # what is called done is whole
        assert np.isfinite(nib.nifti1.load(path.with_name(path.name.replace(".json", ".nii.gz"))).get_fdata()).all()

    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "0 failed" in result.stdout
    last = done()
    assert len(last) == 4 and all(last[path] == when for path, when in second.items())
    assert not list(output.rglob(".*"))


def test_an_interrupt_leaves_what_is_finished(dataset, tmp_path, no_report, monkeypatch, capsys):
    make, calls = participant.make, []

    def once(job):
        calls.append(job.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return make(job)

    monkeypatch.setattr(participant, "make", once)
    assert bids(dataset, tmp_path / "out") == 130
    assert "the same command goes on" in " ".join(capsys.readouterr().err.split())
    assert bids(dataset, tmp_path / "out") == 0
    assert calls == ["sub-01", "sub-02", "sub-02"]
