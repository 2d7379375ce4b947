"""DICOM series as scanners write them, small."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

TIMES = {1: 0.004, 2: 0.0085, 3: 0.013}
SHAPE = (10, 12, 6)  # columns, rows, slices
SPACING = (2.0, 1.5, 3.0)
STUDY, PLACE = generate_uid(entropy_srcs=["study"]), generate_uid(entropy_srcs=["frame of reference"])


def oblique(degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Directions along a row and along a column in the patient's axes, slices tilted about left-right."""
    angle = math.radians(degrees)
    return np.array([1.0, 0, 0]), np.array([0.0, math.cos(angle), math.sin(angle)])


def stored_values(kind: str, echo: int) -> np.ndarray:
    """12-bit values (column, row, slice)."""
    seed = 100 * echo + (kind == "P")
    return np.random.default_rng(seed).integers(0, 4096, SHAPE).astype(np.uint16)


def write_series(
    folder: Path,
    kind: str,
    times: dict[int, float],
    *,
    number: int,
    degrees: float = 0.0,
    protocol: str = "gre",
    manufacturer: str = "SIEMENS",
    left_out: int | None = None,
    values: Callable[[str, int], np.ndarray] = stored_values,
    private: dict[int, tuple[str, object]] | None = None,
    series_uid: str | None = None,
    **fields,
) -> None:
    """Files of one series, `times` being {echo number: echo time [s]}; several kinds may share a number."""
    folder.mkdir(parents=True, exist_ok=True)
    along_row, along_column = oblique(degrees)
    normal = np.cross(along_row, along_column)
    uid = series_uid or generate_uid(entropy_srcs=[f"series {number}"])
    for echo, time in times.items():
        volume = values(kind, echo)
        for k in range(SHAPE[2]):
            if k == left_out:
                continue
            data = Dataset()
            data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
            data.SOPInstanceUID = generate_uid(entropy_srcs=[f"{uid} {kind} {echo} {k}"])
            data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = STUDY, uid, PLACE
            data.Modality, data.Manufacturer, data.InstitutionName = "MR", manufacturer, "Hospital of Nowhere"
            data.PatientName, data.StationName, data.DeviceSerialNumber = "Doe^Jane", "STATION", "12345"
            data.PatientID, data.StudyID, data.StudyDate, data.StudyTime = "1", "2", "20200101", "120000"
            data.SeriesNumber, data.SeriesDescription, data.ProtocolName = (
                number,
                f"{protocol} {kind}",
                protocol,
            )
            data.ImageType = ["ORIGINAL", "PRIMARY", kind, "ND"]
            data.ScanningSequence, data.SequenceVariant, data.SequenceName = "GR", "SP", f"*fl3d{len(times)}"
            data.MRAcquisitionType, data.PatientPosition = "3D", "HFS"
            data.EchoNumbers, data.EchoTime, data.RepetitionTime = echo, 1000 * time, 30
            data.MagneticFieldStrength, data.FlipAngle, data.ImagingFrequency = 3, 15, 123.2
            data.AcquisitionNumber = 1
            data.InstanceNumber = (100 * "MPRI".find(kind) + echo - 1) * SHAPE[2] + k + 1
            data.ImageOrientationPatient = [*along_row.tolist(), *along_column.tolist()]
            data.ImagePositionPatient = (np.array([-9.0, -8, -7]) + SPACING[2] * k * normal).tolist()
            data.PixelSpacing, data.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
            data.Rows, data.Columns, data.SamplesPerPixel = SHAPE[1], SHAPE[0], 1
            data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 0
            data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
            if kind == "P":
                data.RescaleSlope, data.RescaleIntercept, data.RescaleType = 2, -4096, "US"
            for key, value in fields.items():
                setattr(data, key, value)
            for tag, (form, value) in (private or {}).items():
                data.add_new(tag, form, value)
            data.PixelData = volume[:, :, k].T.tobytes()
            data.file_meta = FileMetaDataset()
            data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            data.save_as(folder / f"{number}_{kind}_{echo}_{k}.dcm", enforce_file_format=True)


def in_scanner(volume: torch.Tensor, affine: np.ndarray, degrees: float) -> np.ndarray:
    """Values of a scan's volume at the centres of the DICOM voxels, (column, row, slice)."""
    along_row, along_column = oblique(degrees)
    i, j, k = np.indices(SHAPE)[..., None]
    points = np.array([-9.0, -8, -7]) + SPACING[0] * i * along_row + SPACING[1] * j * along_column
    points = points + SPACING[2] * k * np.cross(along_row, along_column)
    back = np.linalg.inv(affine)
    voxels = (points * (-1, -1, 1)) @ back[:3, :3].T + back[:3, 3]
    np.testing.assert_allclose(voxels, np.rint(voxels), atol=1e-3)
    return volume.numpy()[tuple(np.moveaxis(np.rint(voxels).astype(int), -1, 0))]


KINDS = {"M": "MAGNITUDE", "P": "PHASE", "R": "REAL", "I": "IMAGINARY"}


def write_enhanced(
    file: Path,
    volumes: list[tuple[str, float]],
    *,
    number: int,
    manufacturer: str = "Siemens Healthineers",
    values: Callable[[str, int], np.ndarray] = stored_values,
    scales: dict[str, tuple[float, float, str]] | None = None,
    philips_slopes: dict[str, float] | None = None,
    degrees: float = 0.0,
) -> None:
    """One multi-frame file of several volumes, (kind, echo time [s]) each, with the slices of all of them mixed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    along_row, along_column = oblique(degrees)
    normal = np.cross(along_row, along_column)
    scales = {"P": (2.0, -4096.0, "US")} if scales is None else scales
    data = Dataset()
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    data.SOPInstanceUID = generate_uid(entropy_srcs=[f"enhanced {number} {volumes}"])
    data.StudyInstanceUID, data.FrameOfReferenceUID = STUDY, PLACE
    data.SeriesInstanceUID = generate_uid(entropy_srcs=[f"enhanced series {number}"])
    data.Modality, data.Manufacturer = "MR", manufacturer
    data.PatientName, data.PatientID, data.StudyDate, data.StudyTime = "Doe^Jane", "1", "20200101", "120000"
    data.StudyID = "2"
    data.SeriesNumber, data.SeriesDescription, data.ProtocolName = number, "gre", "gre"
    kinds = {kind for kind, _ in volumes}
    data.ImageType = ["ORIGINAL", "PRIMARY", kinds.pop() if len(kinds) == 1 else "MIXED", "NONE"]
    data.MagneticFieldStrength, data.PatientPosition, data.MRAcquisitionType = 3, "HFS", "3D"
    data.AcquisitionNumber, data.InstanceNumber = 1, 1
    data.Rows, data.Columns, data.SamplesPerPixel = SHAPE[1], SHAPE[0], 1
    data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.NumberOfFrames = len(volumes) * SHAPE[2]
    data.DimensionIndexSequence = [_item(DimensionIndexPointer=tag) for tag in (0x00209056, 0x00209057, 0x00189082)]
    shared = Dataset()
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=[*along_row.tolist(), *along_column.tolist()])]
    shared.PixelMeasuresSequence = [
        _item(PixelSpacing=[SPACING[1], SPACING[0]], SliceThickness=SPACING[2], SpacingBetweenSlices=SPACING[2])
    ]
    shared.MRTimingAndRelatedParametersSequence = [_item(RepetitionTime=30, FlipAngle=15)]
    data.SharedFunctionalGroupsSequence = [shared]
    frames, pixels, echoes = [], [], {time: echo for echo, time in TIMES.items()}
    for k in reversed(range(SHAPE[2])):
        for index, (kind, time) in enumerate(volumes):
            frame = Dataset()
            frame.PlanePositionSequence = [
                _item(ImagePositionPatient=(np.array([-9.0, -8, -7]) + SPACING[2] * k * normal).tolist())
            ]
            frame.MREchoSequence = [_item(EffectiveEchoTime=1000 * time)]
            frame.MRImageFrameTypeSequence = [
                _item(FrameType=["ORIGINAL", "PRIMARY", kind, "NONE"], ComplexImageComponent=KINDS[kind])
            ]
            frame.FrameContentSequence = [
                _item(StackID="1", InStackPositionNumber=k + 1, DimensionIndexValues=[1, k + 1, index + 1])
            ]
            slope, intercept, unit = scales.get(kind, (1.0, 0.0, "US"))
            frame.PixelValueTransformationSequence = [
                _item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType=unit)
            ]
            if philips_slopes is not None:
                philips = Dataset()
                philips.add_new(0x20050010, "LO", "Philips MR Imaging DD 001")
                philips.add_new(0x2005100E, "FL", philips_slopes[kind])
                frame.add_new(0x20050014, "LO", "Philips MR Imaging DD 005")
                frame.add_new(0x2005140F, "SQ", [philips])
            frames.append(frame)
            pixels.append(values(kind, echoes[time])[:, :, k].T.tobytes())
    data.PerFrameFunctionalGroupsSequence = frames
    data.PixelData = b"".join(pixels)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.save_as(file, enforce_file_format=True)


def _item(**fields) -> Dataset:
    item = Dataset()
    for key, value in fields.items():
        setattr(item, key, value)
    return item
