"""`chimap simulate` and `chimap pack` as a user calls them."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from chimap.cli import main
from chimap.io.nifti import read_scan
from chimap.simulation.head import built_in_head
from chimap.simulation.labels import read_packed
from chimap.simulation.tissues import TISSUES

SMALL = ["--shape", "40", "44", "36", "--voxel-size", "5", "5", "5", "--echo-times", "0.008", "0.02"]


def simulate(output, *options):
    return main(["simulate", *SMALL, *map(str, options), "--output", str(output)])


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "data"
    assert simulate(folder, "--subjects", 2, "--seed", 7) == 0
    return folder


@pytest.fixture(scope="module")
def aseg(tmp_path_factory):
    """A label map with FreeSurfer's numbers as an LIA file."""
    labels = built_in_head((40, 48, 40), (5.0, 5.0, 5.0)).labels.numpy()
    numbers = np.zeros(labels.shape, np.int16)
    for tissue, number in (
        ("white matter", 2), ("grey matter", 3), ("csf", 4), ("thalamus", 10), ("caudate", 11), ("putamen", 12),
        ("pallidum", 13), ("brain stem", 16), ("bone", 515), ("diploe", 516), ("muscle", 507), ("fat", 507),
        ("skin", 511),
    ):  # fmt: skip
        numbers[labels == TISSUES[tissue].label] = number
    affine = np.array([[-5.0, 0, 0, 100], [0, 0, 5.0, -100], [0, -5.0, 0, 100], [0, 0, 0, 1]])
    lia = np.transpose(numbers, (0, 2, 1))[::-1, ::-1, :]
    path = tmp_path_factory.mktemp("labels") / "aseg.nii.gz"
    nib.Nifti1Image(np.ascontiguousarray(lia), affine).to_filename(path)
    return path


def test_the_dataset_is_bids_and_its_truth_lies_in_derivatives(dataset):
    for subject in ("01", "02"):
        anatomy = dataset / f"sub-{subject}" / "anat"
        for echo, time in ((1, 0.008), (2, 0.02)):
            for part in ("mag", "phase"):
                stem = anatomy / f"sub-{subject}_echo-{echo}_part-{part}_MEGRE"
                assert stem.with_name(stem.name + ".nii.gz").is_file()
                sidecar = json.loads(stem.with_name(stem.name + ".json").read_text())
                assert sidecar["EchoTime"] == time and sidecar["MagneticFieldStrength"] == 3.0
        truth = dataset / "derivatives" / "truth" / f"sub-{subject}" / "anat"
        names = (
            "Chimap",
            "desc-local_fieldmap",
            "desc-total_fieldmap",
            "desc-error_fieldmap",
            "desc-brain_mask",
            "dseg",
        )
        assert all((truth / f"sub-{subject}_{name}.nii.gz").is_file() for name in names)
        assert json.loads((truth / f"sub-{subject}_Chimap.json").read_text())["Units"] == "ppm"
        assert "2\tpallidum\n" in (truth / f"sub-{subject}_dseg.tsv").read_text()
    assert json.loads((dataset / "dataset_description.json").read_text())["DatasetType"] == "raw"
    about = json.loads((dataset / "derivatives" / "truth" / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative"
    assert (dataset / "participants.tsv").read_text().count("sub-") == 2


def test_the_same_seed_writes_the_same_bytes(dataset, tmp_path):
    assert simulate(tmp_path / "again", "--subjects", 2, "--seed", 7) == 0
    assert content(tmp_path / "again") == content(dataset)
    assert simulate(tmp_path / "other", "--seed", 8) == 0
    name = "sub-01/anat/sub-01_echo-1_part-phase_MEGRE.nii.gz"
    assert (tmp_path / "other" / name).read_bytes() != (dataset / name).read_bytes()


@pytest.mark.parametrize("vendor", ["siemens", "philips", "ge"])
def test_every_vendors_files_are_read_as_the_same_phase(dataset, tmp_path, vendor):
    assert simulate(tmp_path / "data", "--seed", 7, "--vendor", vendor) == 0

    def read(folder):
        anatomy = folder / "sub-01" / "anat"
        return read_scan(sorted(anatomy.glob("*phase*.nii.gz")), sorted(anatomy.glob("*mag*.nii.gz")))

    given, expected = read(tmp_path / "data"), read(dataset)
    difference = torch.remainder(given.phase - expected.phase + torch.pi, 2 * torch.pi) - torch.pi
    assert float(difference.abs().max()) < 2 * torch.pi / 4096 * 1.01


def test_b0_field_strength_and_lesions_are_as_asked(tmp_path):
    options = ("--b0-dir", 0.3, 0, 0.954, "--field-strength", 7, "--lesions", "haemorrhage:0.9:9")
    assert simulate(tmp_path / "data", *options) == 0
    anatomy = tmp_path / "data" / "sub-01" / "anat"
    scan = read_scan(sorted(anatomy.glob("*phase*.nii.gz")))
    assert scan.field_strength == 7
    assert scan.b0_direction == pytest.approx((0.3, 0, 0.954), abs=1e-3)
    truth = tmp_path / "data" / "derivatives" / "truth" / "sub-01" / "anat"
    labels = nib.load(truth / "sub-01_dseg.nii.gz").get_fdata()
    chi = nib.load(truth / "sub-01_Chimap.nii.gz").get_fdata()
    assert chi[labels == TISSUES["haemorrhage"].label].mean() > 0.5


def test_label_maps_are_used_from_files_folders_and_packed(tmp_path, aseg):
    assert main(["pack", str(aseg.parent), "--output", str(tmp_path / "heads.npz")]) == 0
    (packed,) = read_packed(tmp_path / "heads.npz")
    assert packed.name == "aseg.nii.gz"
    for name, source in (("file", aseg), ("folder", aseg.parent), ("packed", tmp_path / "heads.npz")):
        assert simulate(tmp_path / name, "--labels", source, "--seed", 2) == 0
    assert content(tmp_path / "file") == content(tmp_path / "folder") == content(tmp_path / "packed")
    assert "aseg.nii.gz" in (tmp_path / "file" / "participants.tsv").read_text()
    # up is up: the pallidum lies above the brain stem, whatever the axes of the label map
    labels = nib.load(
        tmp_path / "file" / "derivatives" / "truth" / "sub-01" / "anat" / "sub-01_dseg.nii.gz"
    ).get_fdata()
    height = {name: np.argwhere(labels == TISSUES[name].label)[:, 2].mean() for name in ("pallidum", "brain stem")}
    assert height["pallidum"] > height["brain stem"] + 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--subjects", 0), "--subjects is 0"),
        (("--b0-dir", 0, 0, 0), "0 0 0"),
        (("--lesions", "tumour"), "tumour"),
        (("--snr", -3), "SNR"),
        (("--field-error", -1), "field error"),
        (("--labels", "nowhere.nii.gz"), "nowhere.nii.gz"),
        (("--echo-times", 8), "8"),
    ],
)
def test_what_cannot_be_simulated_gets_one_sentence_and_leaves_nothing(tmp_path, capsys, options, words):
    assert simulate(tmp_path / "data", *options) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_label_map_is_refused(tmp_path, capsys, dataset):
    magnitude = dataset / "sub-01" / "anat" / "sub-01_echo-1_part-mag_MEGRE.nii.gz"
    assert main(["pack", str(magnitude), "--output", str(tmp_path / "heads.npz")]) == 2
    assert "no label map" in capsys.readouterr().err
    assert main(["pack", str(tmp_path), "--output", str(tmp_path / "heads.npz")]) == 2
    assert "holds no label map" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
