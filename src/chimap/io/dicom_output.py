"""A susceptibility map as a DICOM series beside the series it was made from, for a PACS.

Classic MR images, one file for each slice, at the places of the source's slices. They belong to the patient, study and
frame of reference of the source, so they name the person as it does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DSfloat

from chimap import __version__
from chimap.arrays import Volume
from chimap.errors import InputError
from chimap.io.dicom_headers import Frame, Stack, read_frames, read_header, stacks_of, voxels_of
from chimap.scan import Scan

PATIENT = """SpecificCharacterSet PatientName PatientID IssuerOfPatientID PatientBirthDate PatientSex OtherPatientIDs
    OtherPatientIDsSequence PatientAge PatientSize PatientWeight EthnicGroup PatientComments PatientIdentityRemoved
    DeidentificationMethod DeidentificationMethodCodeSequence ClinicalTrialSponsorName ClinicalTrialProtocolID
    ClinicalTrialProtocolName ClinicalTrialSiteID ClinicalTrialSiteName ClinicalTrialSubjectID
    ClinicalTrialSubjectReadingID"""
STUDY = """StudyInstanceUID StudyDate StudyTime ReferringPhysicianName StudyID AccessionNumber
    IssuerOfAccessionNumberSequence StudyDescription ReferencedStudySequence ProcedureCodeSequence
    TimezoneOffsetFromUTC"""
ACQUISITION = """FrameOfReferenceUID PositionReferenceIndicator PatientPosition BodyPartExamined Laterality ProtocolName
    AcquisitionDate AcquisitionTime MagneticFieldStrength ImagingFrequency ImagedNucleus MRAcquisitionType
    ScanningSequence SequenceVariant ScanOptions RepetitionTime FlipAngle LossyImageCompression
    LossyImageCompressionRatio LossyImageCompressionMethod"""
SCANNER = "Manufacturer ManufacturerModelName InstitutionName StationName DeviceSerialNumber SoftwareVersions"
MAY_BE_EMPTY = """PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID
    AccessionNumber PositionReferenceIndicator ScanOptions RepetitionTime MRAcquisitionType EchoTime EchoTrainLength"""
WINDOW = 400  # ppb, around 0


@dataclass(frozen=True)
class Series:
    """What a derived series takes from its source, read before the work begins.

    Attributes:
        header: Of one slice.
        slices: The source's slices in the order of their normal.
        sources: For each of them all images at its place: every echo of phase and magnitude.
        affine: Of the scan made from them [mm].
    """

    header: Dataset
    slices: tuple[Frame, ...]
    sources: tuple[tuple[Frame, ...], ...]
    affine: np.ndarray


def source_of(scan: Scan) -> Series:
    """The DICOM series that a scan was read from.

    Raises:
        InputError: It was not read from DICOM, its files are gone, or they do not say whose study they belong to.
    """
    frames, _ = read_frames(Path(file) for file in scan.files)
    stacks = [stack for stack in stacks_of(frames) if _lies_on(stack, scan)]
    phase = [stack for stack in stacks if stack.first.kind in ("phase", "real")]
    if not phase:
        raise InputError("DICOM can be written only where the phase was read from DICOM, which says whose it is")
    template = phase[0]
    header = read_header(template.first.path)
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if not header.get(keyword):
            raise InputError(f"{template.first.path}: no {keyword}; DICOM output needs it")
    sources = tuple(
        tuple(frame for stack in stacks for frame in stack.frames if _same_slice(frame, own)) for own in template.frames
    )
    return Series(header, template.frames, sources, scan.affine)


def file_names(series: Series) -> list[str]:
    """One for each slice."""
    return [f"chi_{number:04d}.dcm" for number in range(1, len(series.slices) + 1)]


def write_series(folder: Path, chi: Volume, series: Series, *, description: str) -> None:
    """Write a map as one MR image per slice, in ppb, with new identifiers.

    Stored values are ppb (RescaleSlope 1), as many viewers ignore the slope of MR images; only a map beyond
    +-32767 ppb gets a larger one.

    Args:
        folder: Is made.
        chi: [ppm], on the grid of the scan.
        series: From `source_of`.
        description: How chi was made, for DerivationDescription.
    """
    values = 1000 * chi.double().numpy()
    slope = 10.0 ** max(0, int(np.ceil(np.log10(max(float(np.abs(values).max()), 1.0) / 32767))))
    made, series_uid = datetime.now(), generate_uid(prefix=None)
    common = _common(series, made, description)
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, frame) in enumerate(zip(file_names(series), series.slices, strict=True), start=1):
        data = Dataset()
        data.update(common)
        data.SeriesInstanceUID, data.SOPInstanceUID = series_uid, generate_uid(prefix=None)
        data.InstanceNumber = number
        _place(data, frame, series)
        data.SourceImageSequence = [_reference(source) for source in series.sources[number - 1]]
        stored = np.rint(values[voxels_of(frame, series.affine)] / slope).astype("<i2")
        _values(data, stored, slope)
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.save_as(folder / name, enforce_file_format=True)


def _common(series: Series, made: datetime, description: str) -> Dataset:
    """Everything that is the same for all slices."""
    header, data = series.header, Dataset()
    for keyword in f"{PATIENT} {STUDY} {ACQUISITION}".split():
        if keyword in header:
            data[keyword] = header[keyword]
    timing = _shared(header, "MRTimingAndRelatedParametersSequence")
    for keyword in ("RepetitionTime", "FlipAngle"):
        if keyword not in data and timing is not None and keyword in timing:
            data[keyword] = timing[keyword]
    if not data.get("ScanningSequence"):
        data.ScanningSequence = "GR"
    if not data.get("SequenceVariant"):
        data.SequenceVariant = "NONE"
    # asked for where the part of the body might be one of two
    for keyword in [*MAY_BE_EMPTY.split(), *([] if data.get("BodyPartExamined") else ["Laterality"])]:
        if keyword not in data:
            setattr(data, keyword, None)
    data.SOPClassUID, data.Modality = MRImageStorage, "MR"
    data.ImageType = ["DERIVED", "SECONDARY", "OTHER", "QSM"]
    data.SeriesNumber, data.SeriesDescription = 1000 + series.slices[0].series, "chimap QSM [ppb]"
    day, time = made.strftime("%Y%m%d"), made.strftime("%H%M%S")
    data.InstanceCreationDate, data.SeriesDate, data.ContentDate = day, day, day
    data.InstanceCreationTime, data.SeriesTime, data.ContentTime = time, time, time
    data.Manufacturer, data.ManufacturerModelName, data.SoftwareVersions = "chimap", "chimap", __version__
    data.DerivationDescription = description.encode("ascii", "replace").decode()[:1024]
    scanner = Dataset()
    for keyword in SCANNER.split():
        if keyword in header:
            scanner[keyword] = header[keyword]
    scanner.PurposeOfReferenceCodeSequence = [_code("109101", "DCM", "Acquisition Equipment")]
    if scanner.get("Manufacturer"):
        data.ContributingEquipmentSequence = [scanner]
    return data


def _place(data: Dataset, frame: Frame, series: Series) -> None:
    first, last = series.slices[0], series.slices[-1]
    spacing = float((last.position - first.position) @ first.normal) / (len(series.slices) - 1)
    row, column = float(np.linalg.norm(frame.along_row)), float(np.linalg.norm(frame.along_column))
    thickness = series.header.get("SliceThickness")
    if thickness is None:
        measures = _shared(series.header, "PixelMeasuresSequence")
        thickness = None if measures is None else measures.get("SliceThickness")
    data.ImagePositionPatient = _decimals(frame.position)
    data.ImageOrientationPatient = _decimals([*frame.along_row / row, *frame.along_column / column])
    data.PixelSpacing = _decimals([column, row])
    data.SliceThickness = DSfloat(float(thickness or spacing), auto_format=True)
    data.SpacingBetweenSlices = DSfloat(spacing, auto_format=True)
    data.SliceLocation = DSfloat(float(frame.position @ frame.normal), auto_format=True)


def _values(data: Dataset, stored: np.ndarray, slope: float) -> None:
    data.Rows, data.Columns = stored.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.RescaleSlope, data.RescaleIntercept, data.RescaleType = slope, 0, "ppb"
    data.WindowCenter, data.WindowWidth = 0, WINDOW
    mapping = Dataset()
    mapping.RealWorldValueFirstValueMapped, mapping.RealWorldValueLastValueMapped = -32768, 32767
    mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = slope, 0.0
    mapping.LUTExplanation, mapping.LUTLabel = "Magnetic susceptibility [ppb]", "chi"
    mapping.MeasurementUnitsCodeSequence = [_code("[ppb]", "UCUM", "parts per billion")]
    quantity = Dataset()
    quantity.ValueType = "CODE"
    quantity.ConceptNameCodeSequence = [_code("246205007", "SCT", "Quantity")]
    quantity.ConceptCodeSequence = [_code("126396", "DCM", "Magnetic Susceptibility")]
    mapping.QuantityDefinitionSequence = [quantity]
    data.RealWorldValueMappingSequence = [mapping]
    data.PixelData = stored.tobytes()


def _reference(frame: Frame) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = frame.sop_class, frame.instance
    if frame.frames > 1:
        item.ReferencedFrameNumber = frame.index + 1
    item.PurposeOfReferenceCodeSequence = [_code("121322", "DCM", "Source image for image processing operation")]
    return item


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _shared(header: Dataset, group: str) -> Dataset | None:
    """Item of a functional group of an enhanced file, of all frames or of the first."""
    for place in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        groups = header.get(place)
        if groups and groups[0].get(group):
            return groups[0].get(group)[0]
    return None


def _decimals(numbers: Sequence[float] | np.ndarray) -> list[Any]:
    """Decimal strings of at most 16 characters, as DICOM has them."""
    return [DSfloat(float(number), auto_format=True) for number in numbers]


def _lies_on(stack: Stack, scan: Scan) -> bool:
    if sorted((stack.first.columns, stack.first.rows, len(stack.frames))) != sorted(scan.shape):
        return False
    to_voxel = np.linalg.inv(scan.affine)
    corners = stack.corners() @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    return bool(np.minimum(np.abs(corners), np.abs(corners - (np.array(scan.shape) - 1))).max() < 0.1)


def _same_slice(a: Frame, b: Frame) -> bool:
    return bool(np.linalg.norm(a.position - b.position) < 0.01 * np.linalg.norm(b.along_row))
