"""What DICOM headers say about every slice, and whether a converted image agrees with them.

Classic files (one slice each) and enhanced multi-frame files give the same records. Only fields that a scan
needs are read; names of people, places and devices are not.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from chimap.errors import InputError
from chimap.io import checks
from chimap.io.acquisition import Image

Kind = Literal["phase", "magnitude", "real", "imaginary", "derived", "other"]

GE_KIND = 0x0043102F  # GE writes 0 to 3 here and leaves the image type at OTHER
PHILIPS_SLOPE = 0x2005100E  # console values / (RescaleSlope * this) compare across images; absent or 0 elsewhere
PHILIPS_FRAME = 0x2005140F  # where enhanced files keep it
TAGS = [
    *(
        "SOPClassUID",
        "SOPInstanceUID",
        "ImageType",
        "Modality",
        "Manufacturer",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "SeriesNumber",
        "SeriesDescription",
    ),
    *("ProtocolName", "SequenceName", "EchoTime", "MagneticFieldStrength", "Rows", "Columns"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "ComplexImageComponent", "NumberOfFrames"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(GE_KIND, PHILIPS_SLOPE),
]
COMPONENTS: dict[str, Kind] = {
    "MAGNITUDE": "magnitude",
    "PHASE": "phase",
    "REAL": "real",
    "IMAGINARY": "imaginary",
}
WORDS: dict[Kind, set[str]] = {
    "phase": {"P", "PHASE", "PHASE MAP", "PHASE_MAP"},
    "real": {"R", "REAL"},
    "imaginary": {"I", "IMAGINARY"},
    "magnitude": {"M", "MAGNITUDE", "M_FFE"},
}
DERIVED = {
    "SWI",
    "MNIP",
    "MIP",
    "MINIP",
    "MIN IP",
    "MPR",
    "MOSAIC",
    "PROJECTION IMAGE",
    "FIELD MAP",
    "LOCALIZER",
    "QSM",
}


@dataclass(frozen=True)
class Frame:
    """One slice. Lengths in mm, directions in the patient's axes of DICOM (left, posterior, superior)."""

    path: Path
    index: int
    frames: int
    kind: Kind
    sop_class: str
    instance: str
    study: str
    uid: str
    series: int
    description: str
    protocol: str
    sequence: str
    manufacturer: str
    echo_time: float
    field_strength: float | None
    rows: int
    columns: int
    position: np.ndarray
    along_row: np.ndarray
    along_column: np.ndarray
    gap: float | None
    slope: float
    intercept: float
    rescale_type: str
    philips_slope: float | None

    @property
    def normal(self) -> np.ndarray:
        """Unit vector across the slice."""
        cross = np.cross(self.along_row, self.along_column)
        return cross / np.linalg.norm(cross)


@dataclass(frozen=True)
class Stack:
    """Slices of one volume, sorted along their normal: one series, one kind of image, one echo time."""

    frames: tuple[Frame, ...]

    @property
    def first(self) -> Frame:
        """The frame that stands for what all have in common."""
        return self.frames[0]

    @property
    def name(self) -> str:
        """For messages and records; holds nothing that a person typed."""
        first = self.first
        return f"DICOM series {first.series} ({first.kind}, echo time {1000 * first.echo_time:g} ms)"

    def corners(self) -> np.ndarray:
        """Centres of the eight outermost voxels in NIfTI's axes (right, anterior, superior) [mm]."""
        first = self.first
        points = [
            frame.position + i * first.along_row + j * first.along_column
            for frame in (self.frames[0], self.frames[-1])
            for i in (0, first.columns - 1)
            for j in (0, first.rows - 1)
        ]
        return np.array(points) * (-1, -1, 1)


@dataclass(frozen=True)
class Rest:
    """Files of one series that hold no MR slice, and why. Series and description are None and empty for no DICOM."""

    series: int | None
    description: str
    why: str
    files: int


def read_frames(paths: Iterable[Path]) -> tuple[list[Frame], list[Rest]]:
    """Every MR slice in some files, each once, and what the other files are."""
    frames: list[Frame] = []
    rest: Counter[tuple[int | None, str, str]] = Counter()
    seen: set[str] = set()
    for path in paths:
        series, description, found = None, "", []
        try:
            with warnings.catch_warnings():  # headers that bend the standard are common and read well enough
                warnings.simplefilter("ignore")
                dataset = read_header(path, TAGS)
                why = _no_slice(dataset)
                if not why:
                    found = list(_frames(path, dataset))
                    lacking = "position or spacing" if dataset.get("EchoTime") else "echo time"
                    why = "" if found else f"no {lacking}"
                if why != DIRECTORY:
                    series = int(dataset.get("SeriesNumber") or 0)
                    description = str(dataset.get("SeriesDescription", ""))
        except InvalidDicomError:
            why = "no DICOM file"
        except (OSError, EOFError, ValueError, AttributeError, KeyError, IndexError, TypeError, NotImplementedError):
            why = "cannot be read"
        else:
            unique = str(dataset.get("SOPInstanceUID", path))
            if unique in seen:  # folders often hold a file twice
                continue
            seen.add(unique)
        frames += found
        if not found:
            rest[series, description, why] += 1
    return frames, [Rest(*key, files) for key, files in rest.items()]


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and its subfolders, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read_header(path: Path, tags: list[Any] | None = None) -> Dataset:
    """Everything before the pixels, or some of it, also of a file that lacks the preamble."""
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
    except InvalidDicomError:
        with path.open("rb") as stream:
            start = stream.read(4)
        if start[:2] not in (b"\2\0", b"\x08\0") or start[3:] != b"\0":  # the first groups, little endian
            raise
    dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    if "SOPInstanceUID" not in dataset:
        raise InvalidDicomError(str(path))
    return dataset


DIRECTORY = "list of contents of a medium"


def _no_slice(dataset: Dataset) -> str:
    """Why a file that is DICOM holds no MR slice; empty where it does."""
    if str(dataset.file_meta.get("MediaStorageSOPClassUID", "")) == "1.2.840.10008.1.3.10":
        return DIRECTORY
    modality = dataset.get("Modality", "MR")
    return f"{modality}, no MR image" if modality != "MR" else "" if "Rows" in dataset else "no image"


def stacks_of(frames: Sequence[Frame]) -> list[Stack]:
    """Frames grouped into volumes, in the order of series and echo time."""
    groups: dict[tuple[int, str, str, int], list[Frame]] = {}
    for frame in frames:
        key = (frame.series, frame.uid, frame.kind, round(frame.echo_time * 1e6))
        groups.setdefault(key, []).append(frame)
    return [
        Stack(tuple(sorted(group, key=lambda frame: float(frame.position @ group[0].normal))))
        for _, group in sorted(groups.items(), key=lambda item: item[0])
    ]


def check_stack(stack: Stack) -> None:
    """Refuse slices that do not make one regular volume."""
    first = stack.first
    for frame in stack.frames:
        alike = (
            np.allclose(frame.along_row, first.along_row, atol=1e-4)
            and np.allclose(frame.along_column, first.along_column, atol=1e-4)
            and (frame.rows, frame.columns) == (first.rows, first.columns)
        )
        if not alike:
            raise InputError(f"{stack.name}: slices differ in size or direction, {frame.path} from {first.path}")
        if (frame.slope, frame.intercept, frame.philips_slope) != (first.slope, first.intercept, first.philips_slope):
            raise InputError(f"{stack.name}: {frame.path} is scaled unlike {first.path}; needed one scale")
    if len(stack.frames) < 2:
        raise InputError(f"{stack.name}: only one slice was found, needed a volume")
    steps = np.diff([float(frame.position @ first.normal) for frame in stack.frames])
    step = float(np.median(steps))
    if (steps < 1e-3).any():
        places = 1 + int((steps >= 1e-3).sum())
        raise InputError(
            f"{stack.name}: several slices lie at the same place, {len(stack.frames)} images at {places} places, "
            f"needed one volume for each echo; {checks.SEVERAL}"
        )
    if np.abs(steps - step).max() > 0.01 * step:
        raise InputError(
            f"{stack.name}: slices are {steps.min():.4g} to {steps.max():.4g} mm apart, so some are missing; "
            "needed equal distances"
        )


def check_conversion(stack: Stack, image: Image) -> list[str]:
    """Refuse a converted image that contradicts the headers it was made from.

    Compared are the echo time, the field strength, the places of the outermost voxels and, of the middle
    slice, every value at its place, which covers slope, intercept, order and direction of the axes at once.

    Returns:
        Sentences about what could not be compared.
    """
    first, sidecar, notes = stack.first, image.sidecar, []
    if sidecar.echo_times and not checks.same_time(sidecar.echo_times[0], first.echo_time):
        raise InputError(
            f"{stack.name}: the converter gives the echo time {sidecar.echo_times[0]:g} s, "
            f"the headers {first.echo_time:g} s"
        )
    strengths = sidecar.field_strength, first.field_strength
    if strengths[0] and strengths[1] and abs(strengths[0] / strengths[1] - 1) > 1e-2:
        raise InputError(f"{stack.name}: the converter gives {strengths[0]:g} T, the headers {strengths[1]:g} T")
    shape = np.array(image.data.shape[1:])
    if len(image.data) != 1 or sorted(shape) != sorted((first.columns, first.rows, len(stack.frames))):
        raise InputError(
            f"{stack.name}: the converter made an image of {image.data.shape[::-1]}, the headers describe "
            f"{first.columns} x {first.rows} x {len(stack.frames)} voxels"
        )
    to_voxel = np.linalg.inv(image.affine)
    corners = stack.corners() @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    ends = np.minimum(np.abs(corners), np.abs(corners - (shape - 1)))
    spread = np.abs(np.ptp(corners, axis=0) - (shape - 1))
    if ends.max() > 0.02 or spread.max() > 0.02:
        raise InputError(
            f"{stack.name}: the converted image lies {max(ends.max(), spread.max()):.2g} voxels away from "
            "where the headers put its corners"
        )
    if first.gap is not None:
        step = float((stack.frames[1].position - first.position) @ first.normal)
        if abs(first.gap - step) > 0.01 * step:
            notes.append(
                f"{stack.name}: SpacingBetweenSlices is {first.gap:g} mm, the slices' positions are "
                f"{step:.4g} mm apart; the positions were used."
            )
    frame = stack.frames[len(stack.frames) // 2]
    try:
        stored = pixels_of(frame.path, [frame])[0] * frame.slope + frame.intercept
    except Exception as error:  # compressed pixels need decoders that may be missing, each with its own error
        return [*notes, f"{stack.name}: its values could not be compared with the DICOM pixels ({error})."]
    there = image.data[0][voxels_of(frame, image.affine)]
    worst = float(np.abs(there - stored).max())
    if worst > 1e-3 * max(float(np.ptp(stored)), 1.0):
        raise InputError(
            f"{stack.name}: values of the converted image differ by up to {worst:g} from the DICOM pixels "
            f"times RescaleSlope {frame.slope:g} plus RescaleIntercept {frame.intercept:g}"
        )
    return notes


def voxels_of(frame: Frame, affine: np.ndarray) -> tuple[np.ndarray, ...]:
    """Index of each pixel of a slice, (row, column), in a volume with this affine."""
    i, j = np.arange(frame.columns)[None, :, None], np.arange(frame.rows)[:, None, None]
    points = frame.position + i * frame.along_row + j * frame.along_column
    to_voxel = np.linalg.inv(affine)
    voxels = np.rint((points * (-1, -1, 1)) @ to_voxel[:3, :3].T + to_voxel[:3, 3]).astype(np.int64)
    return tuple(np.moveaxis(voxels, -1, 0))


def pixels_of(path: Path, frames: Sequence[Frame]) -> list[np.ndarray]:
    """Stored values (row, column) of slices of one file, which is read once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source: Path | Dataset = path
        if "TransferSyntaxUID" not in read_header(path, ["Rows"]).file_meta:  # as where the preamble is missing
            source = pydicom.dcmread(path, force=True)
            implicit, _ = source.original_encoding
            source.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        return list(iter_pixels(source, indices=[frame.index for frame in frames]))


def _frames(path: Path, dataset: Dataset) -> Iterator[Frame]:
    shared = _first(dataset, "SharedFunctionalGroupsSequence")
    items: Sequence[Dataset | None] = dataset.get("PerFrameFunctionalGroupsSequence") or [None]
    for index, item in enumerate(items):
        places = (item, shared)

        def value(group: str, key: str, default: Any = None, places=places) -> Any:
            for place in places:
                found = _first(place, group)
                if found is not None and found.get(key) is not None:
                    return found.get(key)
            return default if dataset.get(key) is None else dataset.get(key)

        spacing = value("PixelMeasuresSequence", "PixelSpacing")
        direction = value("PlaneOrientationSequence", "ImageOrientationPatient")
        position = value("PlanePositionSequence", "ImagePositionPatient")
        echo_time = value("MREchoSequence", "EffectiveEchoTime", dataset.get("EchoTime"))
        if spacing is None or direction is None or position is None or echo_time is None:
            continue
        image_type = value("MRImageFrameTypeSequence", "FrameType", dataset.get("ImageType")) or []
        component = value("MRImageFrameTypeSequence", "ComplexImageComponent", "")
        gap = value("PixelMeasuresSequence", "SpacingBetweenSlices")
        strength = dataset.get("MagneticFieldStrength")
        cosines = np.array([float(component) for component in direction])
        yield Frame(
            path=path,
            index=index,
            frames=len(items),
            kind=_kind({str(word).upper() for word in image_type}, str(component).upper(), dataset),
            sop_class=str(dataset.get("SOPClassUID", "")),
            instance=str(dataset.get("SOPInstanceUID", "")),
            study=str(dataset.get("StudyInstanceUID", "")),
            uid=str(dataset.get("SeriesInstanceUID", "")),
            series=int(dataset.get("SeriesNumber") or 0),
            description=str(dataset.get("SeriesDescription", "")),
            protocol=str(dataset.get("ProtocolName", "")),
            sequence=str(dataset.get("SequenceName", "")),
            manufacturer=str(dataset.get("Manufacturer", "")).strip(),
            echo_time=float(echo_time) / 1000,
            field_strength=None if strength is None else float(strength),
            rows=int(dataset.Rows),
            columns=int(dataset.Columns),
            position=np.array([float(component) for component in position]),
            along_row=cosines[:3] * float(spacing[1]),  # PixelSpacing is the distance of rows, then of columns
            along_column=cosines[3:] * float(spacing[0]),
            gap=None if gap is None else float(gap),
            slope=float(value("PixelValueTransformationSequence", "RescaleSlope", 1)),
            intercept=float(value("PixelValueTransformationSequence", "RescaleIntercept", 0)),
            rescale_type=str(value("PixelValueTransformationSequence", "RescaleType", "")),
            philips_slope=_philips_slope(item, dataset),
        )


def _philips_slope(item: Dataset | None, dataset: Dataset) -> float | None:
    for place in (_first(item, PHILIPS_FRAME), dataset):
        if place is not None and PHILIPS_SLOPE in place:
            stored = place[PHILIPS_SLOPE].value  # bytes where the file does not name the type
            slope = float(np.frombuffer(stored[:4], "<f4")[0] if isinstance(stored, bytes) else stored)
            return slope or None
    return None


def _first(place: Dataset | None, sequence: str | int) -> Dataset | None:
    if place is None or sequence not in place:
        return None
    found = place[sequence].value
    return found[0] if found else None


def _kind(words: set[str], component: str, dataset: Dataset) -> Kind:
    if words & DERIVED:
        return "derived"
    if component in COMPONENTS:
        return COMPONENTS[component]
    if GE_KIND in dataset:
        stored = dataset[GE_KIND].value
        number = int.from_bytes(stored, "little") if isinstance(stored, bytes) else int(stored)
        return tuple(COMPONENTS.values())[number] if 0 <= number < 4 else "other"
    for kind, names in WORDS.items():
        if words & names:
            return kind
    return "other"
