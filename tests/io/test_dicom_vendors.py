"""Habits of the vendors, written as their scanners do: kinds of images, scales, signs, multi-frame files."""

import math
import warnings

import numpy as np
import pydicom
import pytest
from dicom_files import SHAPE, TIMES, in_scanner, stored_values, write_enhanced, write_series
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless, generate_uid

from chimap.errors import InputError
from chimap.io import dicom

GE = {"manufacturer": "GE MEDICAL SYSTEMS", "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"]}
PHILIPS = {"manufacturer": "Philips Medical Systems"}


def smooth(echo: int) -> tuple[np.ndarray, np.ndarray]:
    """Magnitude and phase [rad] of a bright middle and a field that wraps once."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, count) for count in SHAPE), indexing="ij")
    magnitude = 1500 * np.exp(-2 * (x**2 + y**2 + z**2))
    return magnitude, np.angle(np.exp(1j * (2.5 * x + 1.2 * y * z + 0.6 * z) * (0.7 + 0.4 * echo)))


def ge_values(kind: str, echo: int, *, alternating: bool) -> np.ndarray:
    """Signed integers; phase in milliradians, falling where the field is stronger."""
    magnitude, phase = smooth(echo)
    signal = magnitude * np.exp(-1j * phase)
    if alternating:
        signal = signal * (-1.0) ** np.arange(SHAPE[2])
    part = {"M": np.abs(signal), "P": 1000 * np.angle(signal), "R": signal.real, "I": signal.imag}[kind]
    return np.rint(part).astype(np.int16)


def write_ge(folder, kinds: str, *, alternating: bool = False, number: int = 3, times=TIMES) -> None:
    """All kinds and echoes in one series, told apart by a private number."""
    for kind in kinds:
        write_series(
            folder, kind, times, number=number, **GE, PixelRepresentation=1, BitsStored=16, HighBit=15,
            values=lambda kind, echo: ge_values(kind, echo, alternating=alternating),
            RescaleSlope=1, RescaleIntercept=0, RescaleType="US",
            private={0x00430010: ("LO", "GEMS_PARM_01"), 0x0043102F: ("SS", "MPRI".index(kind))},
        )  # fmt: skip


def angle_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(np.angle(np.exp(1j * (a - b))))


@pytest.mark.parametrize("alternating", [False, True])
@pytest.mark.parametrize("kinds", ["RI", "MP", "MPRI"])
def test_ge_phase_is_turned_to_our_sign_and_its_alternation_undone(tmp_path, kinds, alternating):
    write_ge(tmp_path, kinds, alternating=alternating)
    scan = dicom.read_scan(tmp_path)
    assert scan.echo_times == pytest.approx(tuple(TIMES.values())) and scan.magnitude is not None
    for index, echo in enumerate(TIMES):
        magnitude, phase = smooth(echo)
        bright = magnitude > 100
        off = angle_between(in_scanner(scan.phase[index], scan.affine, 0), phase)[bright]
        if alternating:  # which half of the slices is the turned one cannot be known, and does not matter
            off = np.minimum(off, np.abs(off - np.pi))
        assert off.max() < 0.02
        np.testing.assert_allclose(in_scanner(scan.magnitude[index], scan.affine, 0), magnitude, atol=1.5)
    assert any("half a turn off" in sentence for sentence in scan.warnings) == alternating
    assert any("by GE MEDICAL SYSTEMS falls where" in sentence for sentence in scan.warnings)
    computed = any("computed from real and imaginary parts in DICOM series 3" in note for note in scan.notes)
    assert computed == (kinds == "RI") and len(scan.files) == 2 * 3 * SHAPE[2]


def test_undoing_the_alternation_leaves_one_constant_for_all_slices_and_echoes(tmp_path):
    write_ge(tmp_path, "RI", alternating=True)
    scan = dicom.read_scan(tmp_path)
    for index, echo in enumerate(TIMES):
        magnitude, phase = smooth(echo)
        turned = np.exp(1j * (in_scanner(scan.phase[index], scan.affine, 0) - phase))[magnitude > 100]
        assert np.abs(turned - turned.mean()).max() < 0.03 and abs(abs(turned.mean()) - 1) < 1e-3


def test_other_vendors_phase_is_never_turned_slice_by_slice(tmp_path):
    def values(kind, echo):
        _, phase = smooth(echo)
        turned = np.angle(np.exp(1j * (phase + np.pi * np.arange(SHAPE[2]))))
        return np.clip(np.rint((turned / np.pi + 1) * 2048), 0, 4095).astype(np.uint16)

    write_series(tmp_path, "P", TIMES, number=3, values=values)
    scan = dicom.read_scan(tmp_path)
    assert not any("half a turn off" in sentence for sentence in scan.warnings)


def test_a_missing_imaginary_part_or_one_without_zero_is_refused(tmp_path):
    write_ge(tmp_path / "a", "R")
    write_ge(tmp_path / "a", "I", times={1: TIMES[1]})
    with pytest.raises(InputError, match=r"series 3 \(real, echo time 8.5 ms\): no imaginary part"):
        dicom.read_scan(tmp_path / "a")
    for kind in "RI":
        write_series(tmp_path / "b", kind, TIMES, number=4)
    with pytest.raises(InputError, match="no value is below 0"):
        dicom.read_scan(tmp_path / "b")


def test_philips_images_of_one_series_get_their_private_scales(tmp_path):
    """Magnitude of each echo is stretched on its own for the console; scale slopes bring it back."""
    turn = 2000 * math.pi / 4095
    slopes = {1: (2.0, 0.004), 2: (1.5, 0.003), 3: (1.25, 0.005)}
    for echo, time in TIMES.items():
        rescale, scale = slopes[echo]
        write_series(
            tmp_path, "M", {echo: time}, number=4, **PHILIPS, ImageType=["ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"],
            RescaleSlope=str(rescale), RescaleIntercept="0", RescaleType="normalized",
            private={0x20050010: ("LO", "Philips MR Imaging DD 001"), 0x2005100E: ("FL", scale)},
        )  # fmt: skip
    write_series(
        tmp_path, "P", TIMES, number=4, **PHILIPS, ImageType=["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"],
        RescaleSlope=f"{turn:.8f}", RescaleIntercept=f"{-1000 * math.pi:.6f}", RescaleType="milliradials",
        private={0x20050010: ("LO", "Philips MR Imaging DD 001"), 0x2005100E: ("FL", 1.0)},
    )  # fmt: skip
    scan = dicom.read_scan(tmp_path)
    assert scan.magnitude is not None and scan.warnings == ()
    for index, echo in enumerate(TIMES):
        expected = stored_values("P", echo) * 2 * math.pi / 4095 - math.pi
        np.testing.assert_allclose(in_scanner(scan.phase[index], scan.affine, 0), expected, atol=2e-3)
        magnitude = in_scanner(scan.magnitude[index], scan.affine, 0)
        np.testing.assert_allclose(magnitude, stored_values("M", echo) / slopes[echo][1], rtol=1e-5)
    assert any("Philips' scale slopes were applied to DICOM series 4" in note for note in scan.notes)


def test_philips_real_and_imaginary_parts_with_scales_of_their_own(tmp_path):
    def values(kind, echo):
        magnitude, phase = smooth(echo)
        part = magnitude * (np.cos(phase) if kind == "R" else np.sin(phase)) / 1500
        return np.rint(2047 + (2000 if kind == "R" else 1000) * part).astype(np.uint16)

    for kind, rescale, scale in (("R", 2.0, 2000.0), ("I", 1.0, 1000.0)):
        write_series(
            tmp_path, kind, TIMES, number=4, **PHILIPS, values=values,
            RescaleSlope=str(rescale), RescaleIntercept=str(-2047 * rescale), RescaleType="normalized",
            private={0x20050010: ("LO", "Philips MR Imaging DD 001"), 0x2005100E: ("FL", scale)},
        )  # fmt: skip
    scan = dicom.read_scan(tmp_path)
    assert scan.magnitude is not None
    for index, echo in enumerate(TIMES):
        magnitude, phase = smooth(echo)
        off = angle_between(in_scanner(scan.phase[index], scan.affine, 0), phase)[magnitude > 100]
        assert off.max() < 0.01
        ratio = in_scanner(scan.magnitude[index], scan.affine, 0) / magnitude * 1500
        np.testing.assert_allclose(ratio[magnitude > 100], 1, atol=0.02)


def check_noise_scan(scan, degrees=0.0, slope=math.pi / 2048) -> None:
    for index, echo in enumerate(TIMES):
        phase = stored_values("P", echo) * slope - math.pi
        np.testing.assert_allclose(in_scanner(scan.phase[index], scan.affine, degrees), phase, atol=2e-3)
        np.testing.assert_allclose(in_scanner(scan.magnitude[index], scan.affine, degrees), stored_values("M", echo))


@pytest.mark.parametrize("degrees", [0.0, 25.0])
def test_siemens_enhanced_files_with_one_volume_or_with_all(tmp_path, degrees):
    for kind, number in (("M", 4), ("P", 5)):
        for time in TIMES.values():
            write_enhanced(tmp_path / "one" / f"{kind}{time}.dcm", [(kind, time)], number=number, degrees=degrees)
        volumes = [(kind, time) for time in TIMES.values()]
        write_enhanced(tmp_path / "echoes" / f"{kind}.dcm", volumes, number=number, degrees=degrees)
    volumes = [(kind, time) for kind in "PM" for time in TIMES.values()]
    write_enhanced(tmp_path / "all" / "a.dcm", volumes, number=6, degrees=degrees)
    scans = [dicom.read_scan(tmp_path / folder) for folder in ("one", "echoes", "all")]
    for scan in scans:
        check_noise_scan(scan, degrees)
        assert scan.warnings == ()
        # whichever program took the file apart, the grid is the same
        np.testing.assert_allclose(scan.affine, scans[0].affine, atol=1e-4)
    assert [len(scan.files) for scan in scans] == [6, 2, 1]


def test_philips_enhanced_file_with_slopes_inside_its_frames(tmp_path):
    turn = 2000 * math.pi / 4096
    volumes = [(kind, time) for time in TIMES.values() for kind in "MP"]
    write_enhanced(
        tmp_path / "a.dcm", volumes, number=6, manufacturer="Philips",
        scales={"P": (turn, -1000 * math.pi, "milliradials"), "M": (1.0, 0.0, "normalized")},
        philips_slopes={"P": 1.0, "M": 0.5},
    )  # fmt: skip
    scan = dicom.read_scan(tmp_path)
    assert scan.magnitude is not None
    scan.magnitude.mul_(0.5)
    check_noise_scan(scan)


def test_siemens_magnitude_and_phase_may_share_a_series(tmp_path):
    for kind in "MP":
        write_series(tmp_path, kind, TIMES, number=4, BitsStored=12)
    scan = dicom.read_scan(tmp_path)
    check_noise_scan(scan)
    assert scan.notes[0] == "Phase was read from DICOM series 4, magnitude from series 4."


def test_files_without_preamble_and_losslessly_packed_ones_are_read(tmp_path):
    for name in ("bare", "packed"):
        for kind, number in (("M", 4), ("P", 5)):
            write_series(tmp_path / name, kind, TIMES, number=number)
    for file in (tmp_path / "bare").iterdir():
        data = pydicom.dcmread(file)
        del data.file_meta
        pydicom.dcmwrite(file, data, implicit_vr=True, little_endian=True, enforce_file_format=False)
    for file in (tmp_path / "packed").iterdir():
        data = pydicom.dcmread(file)
        data.compress(RLELossless)
        data.save_as(file)
    for name in ("bare", "packed"):
        scan = dicom.read_scan(tmp_path / name)
        check_noise_scan(scan)
        assert not any("could not be compared" in note for note in scan.notes)


def test_pixels_that_cannot_be_unpacked_are_refused_by_name(tmp_path):
    write_series(tmp_path, "P", {1: 0.01}, number=5)
    for file in tmp_path.iterdir():
        data = pydicom.dcmread(file)
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        data.save_as(file)
    with pytest.raises(InputError, match="series 5 .*could not convert it from Deflated Explicit VR Little Endian"):
        dicom.read_scan(tmp_path)


def test_echoes_on_different_grids_are_refused(tmp_path):
    write_series(tmp_path, "P", {1: 0.004}, number=5)
    write_series(tmp_path, "P", {2: 0.008}, number=5, left_out=5)
    with pytest.raises(InputError, match=r"10 x 12 x 5 and 10 x 12 x 6.*needed echoes of one grid"):
        dicom.read_scan(tmp_path)


def test_reports_contents_and_foreign_images_do_not_disturb(tmp_path):
    write_series(tmp_path, "P", TIMES, number=5)
    write_series(tmp_path / "ct", "M", {1: 0.01}, number=6, Modality="CT")
    write_series(tmp_path / "sr", "M", {1: 0.01}, number=7, Modality="SR")
    write_series(tmp_path / "mosaic", "M", {1: 0.01}, number=8, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    directory = pydicom.dataset.Dataset()
    directory.file_meta = pydicom.dataset.FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    directory.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    directory.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    directory.FileSetID = "X"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        directory.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    scan = dicom.read_scan(tmp_path)
    assert scan.phase.shape[0] == 3 and scan.magnitude is None
    assert any("Left out were 13 files" in note for note in scan.notes)
    rows = {(row.series, row.kind): row.use for row in dicom.survey(tmp_path)}
    assert rows == {
        (5, "phase"): "phase",
        (6, ""): "not used: 6 files, CT, no MR image",
        (7, ""): "not used: 6 files, SR, no MR image",
        (8, "derived"): "not used: computed on the scanner (mosaic, projection, SWI, field map)",
        (None, ""): "not used: 1 file, list of contents of a medium",
    }
