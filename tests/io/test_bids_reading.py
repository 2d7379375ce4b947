"""Which files of a dataset belong together, and what JSON files above them say. Images are empty files here."""

import json

import numpy as np
import pytest

from chimap.errors import InputError
from chimap.io.bids_names import metadata_files, parse
from chimap.io.bids_reading import acquisitions, check_dataset, mask_for, segmentations_for
from chimap.io.sidecar import read_sidecar
from chimap.io.space import nearest


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def echoes(stem, numbers, parts=("mag", "phase"), suffix="MEGRE"):
    return [f"{stem}_echo-{echo}_part-{part}_{suffix}.nii.gz" for echo in numbers for part in parts]


def write(path, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields))


def only(root, **kwargs):
    (found,) = acquisitions(root, **kwargs)
    return found


def test_a_name_is_taken_apart():
    name = parse("sub-01_ses-a_echo-10_part-mag_MEGRE.nii.gz")
    assert name is not None and name.labels == {"sub": "01", "ses": "a", "echo": "10", "part": "mag"}
    assert (name.suffix, name.extension) == ("MEGRE", ".nii.gz")
    for odd in ("notes of the scan.txt", "sub-01_MEGRE", "sub-01__MEGRE.nii", "sub-01_sub-02_T1w.nii", ".hidden"):
        assert parse(odd) is None


def test_echo_10_comes_after_2_and_magnitude_goes_with_its_phase(tmp_path):
    touch(tmp_path, *echoes("sub-01/anat/sub-01", range(1, 13)))
    found = only(tmp_path)
    assert found.problem is None
    assert [path.name.split("_")[1] for path in found.phase] == [f"echo-{echo}" for echo in range(1, 13)]
    assert [path.name.replace("mag", "phase") for path in found.magnitude] == [path.name for path in found.phase]


def test_every_session_run_and_acquisition_is_one(tmp_path):
    for stem in ("sub-01/ses-a/anat/sub-01_ses-a_acq-hi_run-1", "sub-01/ses-a/anat/sub-01_ses-a_acq-hi_run-2"):
        touch(tmp_path, *echoes(stem, (1, 2)))
    touch(tmp_path, *echoes("sub-01/ses-a/anat/sub-01_ses-a_acq-lo", (1, 2)))
    touch(tmp_path, *echoes("sub-01/ses-b/anat/sub-01_ses-b", (1, 2), suffix="T2starw"))
    touch(tmp_path, *echoes("sub-02/anat/sub-02", (1, 2)))
    found = acquisitions(tmp_path)
    assert [one.name for one in found] == [
        "sub-01_ses-a_acq-hi_run-1", "sub-01_ses-a_acq-hi_run-2", "sub-01_ses-a_acq-lo", "sub-01_ses-b", "sub-02",
    ]  # fmt: skip
    assert [str(one.folder) for one in found[-2:]] == ["sub-01/ses-b/anat", "sub-02/anat"]
    assert not any(one.problem for one in found)
    assert only(tmp_path, subjects=["sub-01"], sessions=["b"]).suffix == "T2starw"
    with pytest.raises(InputError, match="no sub-03; there are 01, 02"):
        acquisitions(tmp_path, ["03"])
    with pytest.raises(InputError, match="no subject has a session c; there are a, b"):
        acquisitions(tmp_path, None, ["c"])


def test_a_single_echo_and_one_without_magnitude(tmp_path):
    touch(tmp_path, "sub-01/anat/sub-01_part-phase_T2starw.nii.gz", "sub-01/anat/sub-01_part-mag_T2starw.nii.gz")
    touch(tmp_path, "sub-02/anat/sub-02_part-phase_T2starw.nii", "sub-03/anat/sub-03_acq-eye_T2starw.nii.gz")
    touch(tmp_path, *echoes("sub-03/anat/sub-03", (1, 2)))
    first, second, third = acquisitions(tmp_path)
    assert len(first.phase) == len(first.magnitude) == 1
    assert len(second.phase) == 1 and not second.magnitude
    assert third.suffix == "MEGRE"  # an image to look at, without phase, is no acquisition


def test_two_kinds_of_one_name_get_two_names(tmp_path):
    for suffix in ("MEGRE", "T2starw"):
        touch(tmp_path, *echoes("sub-01/anat/sub-01_run-1", (1, 2), suffix=suffix))
    assert [one.name for one in acquisitions(tmp_path)] == ["sub-01_run-1", "sub-01_acq-T2starw_run-1"]


BROKEN = {
    "echo 3 has no magnitude": ["echo-1_part-mag", "echo-1_part-phase", "echo-3_part-phase"],
    "echo 2 has no phase": ["echo-1_part-mag", "echo-1_part-phase", "echo-2_part-mag"],
    "no part-phase": ["echo-1_part-mag", "echo-2"],
    "part-real and part-imag": ["echo-1_part-real", "echo-1_part-imag"],
    "the same image twice": ["echo-1_part-phase", "echo-01_part-phase"],
    "no echo in its name": ["echo-1_part-phase", "part-phase"],
    "is no number": ["echo-x_part-phase"],
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_cannot_be_used_says_why_and_stops_no_other(tmp_path, message):
    touch(tmp_path, *(f"sub-01/anat/sub-01_{part}_MEGRE.nii.gz" for part in BROKEN[message]))
    touch(tmp_path, *echoes("sub-02/anat/sub-02", (1, 2)))
    broken, sound = acquisitions(tmp_path)
    assert broken.problem is not None and message in broken.problem
    assert sound.problem is None and len(sound.phase) == 2


def test_a_subject_without_phase_a_wrong_folder_and_content_that_was_not_fetched(tmp_path):
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", *echoes("sub-02/anat/sub-03", (1, 2)))
    touch(tmp_path, "sub-04/anat/sub-04_echo-1_part-mag_MEGRE.nii.gz")
    (tmp_path / "sub-04/anat/sub-04_echo-1_part-phase_MEGRE.nii.gz").symlink_to(tmp_path / "annex/not-here")
    problems = [one.problem for one in acquisitions(tmp_path)]
    assert all(problems)
    assert "no phase of a gradient echo" in str(problems[0])
    assert "belongs to sub-03/anat" in str(problems[1])
    assert "fetch it first" in str(problems[2])


def test_json_is_inherited_and_the_nearer_file_wins(tmp_path):
    touch(tmp_path, *echoes("sub-01/ses-a/anat/sub-01_ses-a", (1, 2, 10)))
    write(tmp_path / "MEGRE.json", MagneticFieldStrength=3, Manufacturer="Siemens", EchoTime=0.4)
    write(tmp_path / "part-phase_MEGRE.json", Units="rad")
    write(tmp_path / "echo-1_MEGRE.json", EchoTime=0.001)
    write(tmp_path / "acq-x_MEGRE.json", MagneticFieldStrength=7)  # of an acquisition that is not this one
    write(tmp_path / "T1w.json", MagneticFieldStrength=1.5)
    write(tmp_path / "sub-01/sub-01_echo-10_MEGRE.json", EchoTime=0.04)
    write(tmp_path / "sub-01/ses-a/anat/sub-01_ses-a_echo-2_part-phase_MEGRE.json", EchoTime=0.008, Units=None)
    found = only(tmp_path)
    phase = [read_sidecar(path, tmp_path) for path in found.phase]
    assert [one.echo_times for one in phase] == [(0.001,), (0.008,), (0.04,)]
    assert {one.field_strength for one in phase} == {3.0} and {one.units for one in phase} == {"rad"}
    magnitude = [read_sidecar(path, tmp_path) for path in found.magnitude]
    assert [one.echo_times for one in magnitude] == [(0.001,), (0.4,), (0.04,)]
    assert {one.units for one in magnitude} == {None}
    assert read_sidecar(found.phase[0]).echo_times == ()  # without the dataset, only what lies beside
    assert len(found.sidecars) == 5
    listed = metadata_files(found.phase[1], tmp_path)
    assert [path.name for path in listed] == [
        "MEGRE.json", "part-phase_MEGRE.json", "sub-01_ses-a_echo-2_part-phase_MEGRE.json",
    ]  # fmt: skip


def test_files_that_contradict_each_other_and_broken_ones_are_named(tmp_path):
    touch(tmp_path, *echoes("sub-01/anat/sub-01", (1, 2)))
    write(tmp_path / "part-phase_MEGRE.json", MagneticFieldStrength=3)
    write(tmp_path / "echo-1_MEGRE.json", MagneticFieldStrength=7)
    first, second = only(tmp_path).phase
    with pytest.raises(InputError, match="both apply to .* and give different MagneticFieldStrength"):
        read_sidecar(first, tmp_path)
    assert read_sidecar(second, tmp_path).field_strength == 3
    write(tmp_path / "echo-1_MEGRE.json", MagneticFieldStrength=3)
    assert read_sidecar(first, tmp_path).field_strength == 3
    write(tmp_path / "sub-01/sub-01_MEGRE.json", EchoTime="long")
    with pytest.raises(InputError, match='sub-01_MEGRE.json: EchoTime is "long"'):
        read_sidecar(first, tmp_path)
    (tmp_path / "sub-01/sub-01_MEGRE.json").write_text('{"EchoTime": 0.0')
    with pytest.raises(InputError, match="sub-01_MEGRE.json cannot be read as JSON"):
        read_sidecar(first, tmp_path)


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(InputError, match="no folder called sub-"):
        acquisitions(tmp_path)
    with pytest.raises(InputError, match="holds no dataset_description.json"):
        check_dataset(tmp_path)
    write(tmp_path / "dataset_description.json", Name="mine")
    with pytest.raises(InputError, match="has no BIDSVersion"):
        check_dataset(tmp_path)
    write(tmp_path / "dataset_description.json", Name="mine", BIDSVersion="1.10.0")
    check_dataset(tmp_path)


def test_masks_and_segmentations_are_those_that_fit_best(tmp_path):
    raw, other = tmp_path / "raw", tmp_path / "other"
    for run in (1, 2):
        touch(raw, *echoes(f"sub-01/ses-a/anat/sub-01_ses-a_run-{run}", (1, 2)))
    first, second = acquisitions(raw)
    with pytest.raises(InputError, match="is no folder"):
        mask_for(first, other)
    touch(other, "sub-01/ses-b/anat/sub-01_ses-b_desc-brain_mask.nii.gz")
    touch(other, "sub-01/anat/sub-01_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz")
    with pytest.raises(InputError, match="holds no mask"):
        mask_for(first, other)
    touch(other, "sub-01/anat/sub-01_acq-mprage_desc-brain_mask.nii.gz", "sub-01/anat/sub-01_desc-tumour_mask.nii.gz")
    assert mask_for(first, other).name == "sub-01_acq-mprage_desc-brain_mask.nii.gz"
    touch(other, *(f"sub-01/ses-a/anat/sub-01_ses-a_run-{run}_desc-brain_mask.nii.gz" for run in (1, 2)))
    assert [mask_for(one, other).name[13:18] for one in (first, second)] == ["run-1", "run-2"]
    touch(other, "sub-01/ses-a/anat/sub-01_ses-a_run-2_res-hi_desc-brain_mask.nii.gz")
    with pytest.raises(InputError, match="equally well"):
        mask_for(second, other)
    touch(other, "sub-01/anat/sub-01_dseg.nii.gz", "sub-01/anat/sub-01_desc-aseg_dseg.nii.gz")
    touch(other, "sub-01/anat/sub-01_space-MNI152NLin6Asym_desc-aseg_dseg.nii.gz")
    assert {kind: path.name for kind, path in segmentations_for(first, other).items()} == {
        "aseg": "sub-01_desc-aseg_dseg.nii.gz",
        "dseg": "sub-01_dseg.nii.gz",
    }


def test_the_nearest_neighbour_on_another_grid():
    values = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    # another order and direction of the axes, half the voxel size
    like = np.array([[0, 0, -1, 3.4], [1, 0, 0, -0.4], [0, 1, 0, -0.6], [0, 0, 0, 1]], dtype=float)
    found = nearest(values, affine, like, (6, 8, 6))
    assert found.dtype == np.float32
    for index in np.ndindex(6, 8, 6):
        place = np.linalg.inv(affine) @ like @ (*index, 1)
        x, y, z = np.floor(place[:3] + 0.5).astype(int)
        inside = 0 <= x < 2 and 0 <= y < 3 and 0 <= z < 4
        assert found[index] == (values[x, y, z] if inside else 0)
