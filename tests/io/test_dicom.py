"""A small classic Siemens series, written slice by slice, and the real one where it is there."""

import math
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dicom_files import SHAPE, SPACING, TIMES, in_scanner, stored_values, write_series
from pydicom.dataset import Dataset

from chimap.errors import InputError
from chimap.io import dicom, dicom_headers, nifti
from chimap.io.acquisition import Image
from chimap.io.sidecar import Sidecar


@pytest.mark.parametrize("degrees", [0.0, 35.0])
def test_a_multi_echo_series_is_read_with_scale_place_and_direction_of_its_headers(tmp_path, degrees):
    write_series(tmp_path / "a", "M", TIMES, number=4, degrees=degrees)
    write_series(tmp_path / "b", "P", TIMES, number=5, degrees=degrees)
    (tmp_path / "notes.txt").write_text("not an image")
    scan = dicom.read_scan(tmp_path)
    assert scan.echo_times == pytest.approx(tuple(TIMES.values())) and scan.field_strength == 3
    assert scan.voxel_size == pytest.approx(SPACING, abs=1e-4)
    assert scan.magnitude is not None
    for index, echo in enumerate(TIMES):
        phase = (stored_values("P", echo) * 2.0 - 4096) * math.pi / 4096
        np.testing.assert_allclose(in_scanner(scan.phase[index], scan.affine, degrees), phase, atol=1e-5)
        magnitude = in_scanner(scan.magnitude[index], scan.affine, degrees)
        np.testing.assert_array_equal(magnitude, stored_values("M", echo))
    angle = math.radians(degrees)
    assert np.abs(scan.b0_direction) == pytest.approx((0, math.sin(angle), math.cos(angle)), abs=1e-4)
    to_scanner = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    np.testing.assert_allclose(to_scanner @ scan.b0_direction, (0, 0, 1), atol=1e-5)
    assert scan.warnings == () and len(scan.files) == 2 * 3 * SHAPE[2]
    assert any("RescaleSlope 2" in note for note in scan.notes) and any("Left out" in note for note in scan.notes)
    for word in ("Nowhere", "Doe", "STATION", "12345"):
        assert word not in " ".join((*scan.notes, *scan.warnings))


def test_the_users_words_and_mask_reach_the_scan(tmp_path):
    write_series(tmp_path / "d", "P", TIMES, number=5)
    plain = dicom.read_scan(tmp_path / "d")
    assert plain.magnitude is None and any("No magnitude" in sentence for sentence in plain.warnings)
    nifti.write_volume(tmp_path / "mask.nii.gz", plain.phase[0] > 0, plain.affine, description="mask")
    scan = dicom.read_scan(
        tmp_path / "d",
        mask=tmp_path / "mask.nii.gz",
        echo_times=[0.01, 0.02, 0.03],
        field_strength=7.0,
        phase_range=(-8192.0, 8192.0),
        phase_sign=-1,
    )
    torch.testing.assert_close(scan.phase, -plain.phase / 2, rtol=0, atol=1e-5)
    assert scan.mask is not None and torch.equal(scan.mask, plain.phase[0] > 0)
    assert scan.echo_times == (0.01, 0.02, 0.03) and scan.field_strength == 7


def test_one_phase_beside_two_echoes_of_magnitude_is_a_difference(tmp_path):
    pair = {1: 0.00519, 2: 0.00765}
    write_series(tmp_path, "M", pair, number=2)
    write_series(tmp_path, "P", {2: 0.00765}, number=3)
    scan = dicom.read_scan(tmp_path)
    assert scan.echo_times == (0.00246,)
    assert any("is a phase difference, as it is the only phase" in sentence for sentence in scan.warnings)
    assert scan.magnitude is not None
    expected = np.sqrt((stored_values("M", 1).astype(float) ** 2 + stored_values("M", 2).astype(float) ** 2) / 2)
    np.testing.assert_allclose(in_scanner(scan.magnitude[0], scan.affine, 0), expected, rtol=1e-5)
    told = dicom.read_scan(tmp_path, echo_times=[0.00765])
    assert told.echo_times == (0.00765,) and told.magnitude is not None and told.warnings == ()
    np.testing.assert_allclose(in_scanner(told.magnitude[0], told.affine, 0), stored_values("M", 2))


def test_siemens_field_mapping_is_a_difference_without_assumption(tmp_path):
    write_series(tmp_path, "M", {1: 0.00519, 2: 0.00765}, number=2, SequenceName="*fm2d2r")
    write_series(tmp_path, "P", {2: 0.00765}, number=3, SequenceName="*fm2d2r")
    scan = dicom.read_scan(tmp_path)
    assert scan.echo_times == (0.00246,) and scan.warnings == ()


def test_phase_of_each_echo_may_be_a_series_of_its_own(tmp_path):
    for number, (echo, time) in enumerate(TIMES.items(), start=7):
        write_series(tmp_path, "P", {echo: time}, number=number)
        write_series(tmp_path, "M", {echo: time}, number=number + 10)
    scan = dicom.read_scan(tmp_path)
    assert scan.echo_times == pytest.approx(tuple(TIMES.values())) and scan.magnitude is not None


def test_several_acquisitions_are_refused_and_listed(tmp_path):
    write_series(tmp_path, "P", TIMES, number=5)
    write_series(tmp_path, "P", TIMES, number=9, protocol="other")
    with pytest.raises(InputError, match="more than one acquisition.*series 5.*series 9"):
        dicom.read_scan(tmp_path)


def test_folders_without_phase_say_what_they_hold(tmp_path):
    with pytest.raises(InputError, match="it is empty"):
        dicom.read_scan(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        dicom.read_scan(tmp_path / "missing")
    (tmp_path / "a.txt").write_text("no image")
    (tmp_path / "b.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    with pytest.raises(InputError, match="none of its 2 files"):
        dicom.read_scan(tmp_path)
    write_series(tmp_path, "M", TIMES, number=4)
    with pytest.raises(InputError, match=r"series 4 'gre M' \(magnitude, 3 echoes\)"):
        dicom.read_scan(tmp_path)
    write_series(tmp_path, "R", TIMES, number=5)
    with pytest.raises(InputError, match="no imaginary part with the same voxels"):
        dicom.read_scan(tmp_path)


def test_missing_slices_and_repeated_volumes_are_refused(tmp_path):
    write_series(tmp_path / "gap", "P", TIMES, number=5, left_out=2)
    with pytest.raises(InputError, match="some are missing"):
        dicom.read_scan(tmp_path / "gap")
    write_series(tmp_path / "twice", "P", {1: 0.01, 2: 0.01}, number=5)
    with pytest.raises(InputError, match="the same place"):
        dicom.read_scan(tmp_path / "twice")
    write_series(tmp_path / "copies", "P", TIMES, number=5)
    for file in list((tmp_path / "copies").iterdir()):
        (file.parent / f"copy_of_{file.name}").write_bytes(file.read_bytes())
    assert dicom.read_scan(tmp_path / "copies").phase.shape[0] == 3


def test_images_of_single_channels_are_refused_with_what_to_do(tmp_path):
    combine = "repetitions of one measurement, give one.*channels of a coil, combine them first"
    write_series(tmp_path / "one series", "P", {channel: 0.01 for channel in range(1, 5)}, number=5)
    with pytest.raises(InputError, match=f"series 5 .*24 images at 6 places.*{combine}"):
        dicom.read_scan(tmp_path / "one series")
    for channel in range(3):
        write_series(tmp_path / "series each", "P", TIMES, number=5 + channel)
    with pytest.raises(InputError, match=f"series 5 .*series 7 .*{combine}"):
        dicom.read_scan(tmp_path / "series each")


def test_philips_states_milliradians_and_ge_its_kind_of_image(tmp_path):
    slope = 2 * math.pi * 1000 / 4096
    write_series(
        tmp_path / "philips", "P", TIMES, number=5, manufacturer="Philips Medical Systems",
        RescaleSlope=f"{slope:.8f}", RescaleIntercept=f"{-1000 * math.pi:.6f}", RescaleType="milliradials",
    )  # fmt: skip
    scan = dicom.read_scan(tmp_path / "philips")
    expected = stored_values("P", 1) * 2 * math.pi / 4096 - math.pi
    np.testing.assert_allclose(in_scanner(scan.phase[0], scan.affine, 0), expected, atol=2e-3)
    assert not any(sentence.startswith("Guessed") for sentence in scan.warnings)
    for code, kind in enumerate(("magnitude", "phase", "real", "imaginary")):
        data = Dataset()
        data.add_new(0x0043102F, "SS", code)
        assert dicom_headers._kind({"ORIGINAL", "PRIMARY", "OTHER"}, "", data) == kind


def test_a_conversion_that_contradicts_the_headers_is_refused(tmp_path):
    write_series(tmp_path, "P", {1: 0.01}, number=5)
    frames, _ = dicom_headers.read_frames(dicom_headers.files_below(tmp_path))
    (stack,) = dicom_headers.stacks_of(frames)
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    affine[:3, 3] = (9, 8, -7)
    rescaled = (stored_values("P", 1) * 2.0 - 4096).astype(np.float32)[None]
    good = Image("series", rescaled, affine)
    assert dicom_headers.check_conversion(stack, good) == []
    moved = affine.copy()
    moved[2, 3] += 1
    flipped = affine @ np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] -= SPACING[0] * (SHAPE[0] - 1)  # same corners, rows reversed: only the values can tell
    for changes, message in (
        ({"data": rescaled / 2}, "RescaleSlope 2"),
        ({"data": rescaled + 4096}, "RescaleIntercept -4096"),
        ({"affine": moved}, "voxels away"),
        ({"affine": flipped}, "values of the converted image differ"),
        ({"data": rescaled[:, 1:]}, "the headers describe"),
        ({"sidecar": Sidecar("json", echo_times=(0.02,))}, "the converter gives the echo time 0.02 s"),
        ({"sidecar": Sidecar("json", field_strength=7.0)}, "the converter gives 7 T"),
    ):
        with pytest.raises(InputError, match=message):
            dicom_headers.check_conversion(stack, replace(good, **changes))


def test_frames_of_a_multi_frame_file_are_read_like_single_slices():
    def group(**fields) -> Dataset:
        dataset = Dataset()
        for key, value in fields.items():
            setattr(dataset, key, value)
        return dataset

    shared, frames = Dataset(), []
    shared.PlaneOrientationSequence = [group(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
    shared.PixelMeasuresSequence = [group(PixelSpacing=[SPACING[1], SPACING[0]])]
    for kind in ("MAGNITUDE", "PHASE"):
        for time in (4.0, 8.5):
            for k in (1, 0):
                frame = Dataset()
                frame.PlanePositionSequence = [group(ImagePositionPatient=[0, 0, 3 * k])]
                frame.MREchoSequence = [group(EffectiveEchoTime=time)]
                frame.MRImageFrameTypeSequence = [group(ComplexImageComponent=kind)]
                frame.PixelValueTransformationSequence = [group(RescaleSlope=2, RescaleIntercept=-4096)]
                frames.append(frame)
    data = Dataset()
    data.Modality, data.Rows, data.Columns, data.SeriesNumber = "MR", SHAPE[1], SHAPE[0], 3
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], frames
    stacks = dicom_headers.stacks_of(list(dicom_headers._frames(Path("file"), data)))
    found = [(stack.first.kind, stack.first.echo_time, [frame.index for frame in stack.frames]) for stack in stacks]
    assert found == [
        ("magnitude", 0.004, [1, 0]),
        ("magnitude", 0.0085, [3, 2]),
        ("phase", 0.004, [5, 4]),
        ("phase", 0.0085, [7, 6]),
    ]
    assert (stacks[3].first.slope, stacks[3].first.intercept) == (2, -4096)
    np.testing.assert_array_equal(stacks[0].first.along_row, (SPACING[0], 0, 0))


def test_a_converter_that_fails_is_reported_with_its_message(tmp_path, monkeypatch):
    write_series(tmp_path, "P", TIMES, number=5)
    failed = subprocess.CompletedProcess([], 3, stdout="starting\nError: out of memory\n", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(InputError, match="Error: out of memory"):
        dicom.read_scan(tmp_path)


def test_the_real_siemens_field_map_has_the_echo_time_of_its_difference(shared_data):
    scan = dicom.read_scan(shared_data / "real" / "siemens-dicom")
    assert scan.echo_times == (0.00246,) and scan.field_strength == 3
    assert scan.phase.shape == (1, 64, 64, 36) and scan.magnitude is not None
    assert scan.voxel_size == pytest.approx((3.25, 3.25, 3.6), abs=1e-5) and scan.b0_direction == (0, 0, 1)
    assert scan.phase.min() == pytest.approx(-math.pi) and scan.phase.max() == pytest.approx(math.pi, abs=2e-3)
    assert scan.warnings == () and len(scan.files) == 108
