"""NIfTI files in and out. How a `Scan` is made of what they hold is in `acquisition.py`."""

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError
from nibabel.funcs import as_closest_canonical
from nibabel.loadsave import load
from nibabel.nifti1 import Nifti1Image, Nifti1Pair
from nibabel.spatialimages import HeaderDataError
from torch import Tensor

from chimap.arrays import Mask, Triple, Volume
from chimap.errors import InputError
from chimap.io import checks
from chimap.io.acquisition import Image, Told, assemble
from chimap.io.sidecar import read_sidecar
from chimap.io.space import b0_from_affine, nearest, voxel_size
from chimap.scan import Scan

__all__ = [
    "b0_from_affine", "read_image", "read_labels", "read_mask", "read_onto", "read_scan", "read_volume", "write_volume",
]  # fmt: skip

Files: TypeAlias = Sequence[Path | str] | Path | str


def read_scan(
    phase: Files,
    magnitude: Files = (),
    *,
    mask: Path | str | None = None,
    echo_times: Sequence[float] | None = None,
    field_strength: float | None = None,
    b0_direction: Triple | None = None,
    phase_range: tuple[float, float] | None = None,
    phase_sign: int | None = None,
    root: Path | None = None,
) -> Scan:
    """Read an acquisition. A JSON sidecar beside a file (same name, .json) says what the options do not.

    Args:
        phase: One 4D file (echo last) or a 3D file for each echo, in any order where sidecars give times. A file by
            itself need not stand in a list.
        magnitude: Likewise; matched to the phase by echo time where sidecars give it, else by order.
        mask: The user's brain mask; values above 0 are inside.
        echo_times: [s], in the order of the phase files.
        field_strength: [T].
        b0_direction: In voxel axes, of any length.
        phase_range: Stored values that are one turn, mapped onto -pi to pi.
        phase_sign: +1 where phase grows with the field, -1 where it falls.
        root: Folder of the BIDS dataset that the files are part of: its JSON files above them count too.

    Raises:
        InputError: A file cannot be read, or something is missing or contradicts itself.
    """
    told = Told(echo_times, field_strength, b0_direction, phase_range, phase_sign)
    phase, magnitude = _listed(phase), _listed(magnitude)
    mask = None if mask is None else Path(mask)
    if not phase:
        raise InputError("no phase was given, needed one 4D file or one 3D file for each echo")
    phases = [replace(read_image(path), sidecar=read_sidecar(path, root)) for path in phase]
    magnitudes = [replace(read_image(path), sidecar=read_sidecar(path, root)) for path in magnitude]
    first, inside, notes = phases[0], None, ()
    if mask is not None:
        inside, notes = read_mask(mask, first.affine, first.data.shape[1:], first.name)
    files = [str(path) for path in (*phase, *magnitude, *([mask] if mask is not None else []))]
    return assemble(phases, magnitudes, told, mask=inside, files=files, notes=notes)


def read_image(path: Path, name: str | None = None) -> Image:
    """Read a file of one or several volumes, the last axis of a 4D file being the echo.

    Args:
        path: .nii or .nii.gz.
        name: Used in messages instead of the path.

    Raises:
        InputError: Missing, cut short, no NIfTI, complex, not 3D or 4D, not finite, or a singular affine.
    """
    name = name or str(path)
    if not path.exists():
        raise InputError(f"{name} does not exist")
    if path.is_dir():
        raise InputError(f"{name} is a folder, needed a NIfTI file")
    try:
        image = load(path)
    except PermissionError:
        raise InputError(f"{name} cannot be read: permission denied") from None
    except (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f"{name} cannot be read as NIfTI: {_one_line(error)}") from None
    if not isinstance(image, Nifti1Pair):
        raise InputError(f"{name} is a {type(image).__name__}, needed NIfTI (.nii or .nii.gz)")
    stored = np.dtype(image.get_data_dtype())
    if stored.kind == "c":
        raise InputError(f"{name} holds complex numbers, needed phase and magnitude in files of their own")
    if stored.kind not in "iuf":
        raise InputError(f"{name} holds values of type {stored}, needed one number in every voxel")
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 5 and shape[3] == 1:  # (x, y, z, 1, echo): time comes before it in NIfTI
        shape = (*shape[:3], shape[4])
    if len(shape) > 4:
        listed = " x ".join(map(str, shape[3:]))
        raise InputError(
            f"{name} has the shape {image.shape}, {listed} volumes, needed (x, y, z) or (x, y, z, echo); "
            f"{checks.SEVERAL}"
        )
    if len(shape) not in (3, 4) or 0 in shape:
        raise InputError(f"{name} has the shape {image.shape}, needed (x, y, z) or (x, y, z, echo)")
    try:
        data = image.get_fdata(caching="unchanged", dtype=np.float32).reshape(*shape[:3], -1)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f"{name} is damaged or cut short: {_one_line(error)}") from None
    checks.finite(data, name)
    affine = np.asarray(image.affine, dtype=np.float64)
    checks.affine(affine, name)
    return Image(name, np.ascontiguousarray(np.moveaxis(data, -1, 0)), affine, _doubts(image, affine, name))


def read_volume(path: Path) -> tuple[Volume, np.ndarray]:
    """Read one volume, such as a local field.

    Returns:
        Values as stored, shape (x, y, z), and the affine [mm].

    Raises:
        InputError: As `read_image`, or the file holds several volumes.
    """
    image = read_image(path)
    return torch.from_numpy(_one_volume(image)), image.affine


def read_mask(path: Path, affine: np.ndarray, shape: Sequence[int], like_name: str) -> tuple[Mask, tuple[str, ...]]:
    """Read a mask that must lie on the grid of another image.

    Args:
        path: Values above 0 are inside.
        affine: Of the other image [mm].
        shape: Its grid (x, y, z).
        like_name: Its name, for messages.

    Returns:
        The mask (x, y, z), and a note where it was not made of 0 and 1.

    Raises:
        InputError: As `read_volume`, on another grid, or nothing is inside.
    """
    image = read_image(path)
    values = _one_volume(image)
    checks.same_grid(image.name, values.shape, image.affine, like_name, shape, affine)
    inside = values > 0
    if not inside.any():
        raise InputError(f"{image.name}: the mask is empty, no voxel is above 0")
    notes = ()
    if not ((values == 0) | (values == 1)).all():
        notes = (
            f"The mask {path.name} holds values from {values.min():g} to {values.max():g} beside 0 and 1; "
            "every voxel above 0 was taken as inside.",
        )
    return torch.from_numpy(inside), notes


def read_onto(path: Path, affine: np.ndarray, shape: Sequence[int], *, what: str) -> tuple[Tensor, tuple[str, ...]]:
    """Read a mask or a label map, onto another grid of the same space by the nearest neighbour where it differs.

    Args:
        path: One volume of numbers that must not be mixed.
        affine: Of the other grid [mm].
        shape: Its size (x, y, z).
        what: It is, for the note: mask, segmentation.

    Returns:
        The values, float32 (x, y, z), and a note where they had to be resampled.

    Raises:
        InputError: As `read_volume`, or nothing of it lies on the grid.
    """
    image = read_image(path)
    values = _one_volume(image)
    try:
        checks.same_grid(image.name, values.shape, image.affine, "", shape, affine)
    except InputError:
        moved = nearest(values, image.affine, affine, shape)
        if not moved.any():
            raise InputError(
                f"{image.name} marks nothing on the map's grid: it lies elsewhere in the scanner's space"
            ) from None
        note = (
            f"The {what} {path.name} lies on another grid and was brought onto the map's by the nearest neighbour, as "
            "if the head had not moved between the two."
        )
        return torch.from_numpy(moved), (note,)
    return torch.from_numpy(values), ()


def read_labels(path: Path) -> tuple[np.ndarray, Triple]:
    """Read a label map, its axes turned to the right, the front and up, as close as whole turns bring them.

    Returns:
        Values as stored, int32, shape (x, y, z), and voxel size [mm].

    Raises:
        InputError: As `read_volume`, or values that are no whole numbers.
    """
    image = read_image(path)
    values = _one_volume(image)
    whole = values.astype(np.int32)
    if not np.array_equal(whole, values):
        raise InputError(f"{image.name} holds values that are no whole numbers: it is no label map")
    turned = as_closest_canonical(Nifti1Image(whole, image.affine))
    return np.ascontiguousarray(turned.dataobj), voxel_size(np.asarray(turned.affine))


def write_volume(path: Path | str, volume: Tensor, affine: np.ndarray, *, description: str) -> None:
    """Write a volume as NIfTI: float32, uint8 where it is a mask, uint8 and int16 as they are.

    The same input gives the same bytes.

    Args:
        path: .nii.gz or .nii.
        volume: Shape (x, y, z), or (echo, x, y, z), which is stored with the echo last.
        affine: Voxel index to scanner coordinates [mm]; a sheared one fits the sform only.
        description: Up to 79 bytes for the header's field of that name, with the unit.

    Raises:
        InputError: The name has another suffix.
    """
    path = Path(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise InputError(f"{path} has to end in .nii.gz or .nii")
    if len(description.encode()) > 79:
        raise ValueError(f"the description has {len(description.encode())} bytes, NIfTI holds 79: {description}")
    data = volume.detach().cpu().numpy()
    if data.dtype not in (np.uint8, np.int16):
        data = data.astype(np.uint8 if data.dtype == np.bool_ else np.float32)
    if data.ndim == 4:
        data = np.moveaxis(data, 0, -1)
    image = Nifti1Image(data, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    header = image.header
    header.set_xyzt_units("mm")
    header["descrip"] = description.encode()
    content = image.to_bytes()
    if path.name.lower().endswith(".gz"):
        content = gzip.compress(content, compresslevel=6, mtime=0)
    path.write_bytes(content)


def _listed(given: Files) -> list[Path]:
    return [Path(given)] if isinstance(given, (str, Path)) else [Path(file) for file in given]


def _one_volume(image: Image) -> np.ndarray:
    if len(image.data) != 1:
        raise InputError(f"{image.name} holds {len(image.data)} volumes, needed one, (x, y, z)")
    return image.data[0]


def _doubts(image: Nifti1Pair, affine: np.ndarray, name: str) -> tuple[str, ...]:
    """Sentences about a header that says too little about space, or contradicts itself."""
    header, short, found = image.header, Path(name).name, []
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if not sform and not qform:
        found.append(f"{short} does not say how it lies in the scanner: B0 was assumed along its third axis.")
    elif sform and qform:
        steps = np.asarray(header.get_qform())[:3, :3]
        steps = steps / np.linalg.norm(steps, axis=0)
        cosines = (steps * affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)).sum(axis=0)
        if cosines.min() < np.cos(np.radians(1)):
            found.append(f"{short}: qform and sform point to different directions; the sform was used.")
    if sform >= 3:
        found.append(
            f"{short} lies in the space of a template (sform code {sform}), where B0 need not be along z; "
            "give --b0-dir where it is known."
        )
    zooms, sizes = np.asarray(header.get_zooms()[:3], dtype=np.float64), np.asarray(voxel_size(affine))
    if np.abs(zooms / sizes - 1).max() > 1e-3:
        listed = " x ".join(f"{size:.4g}" for size in zooms), " x ".join(f"{size:.4g}" for size in sizes)
        found.append(f"{short}: the header's voxel size is {listed[0]} mm, the affine's {listed[1]} mm was used.")
    unit = header.get_xyzt_units()[0]
    if unit in ("meter", "micron"):
        found.append(f"{short}: the header says lengths are in {unit}; they were taken in mm.")
    normalised = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(normalised.T @ normalised - np.eye(3)).max() > 1e-2:
        found.append(f"{short}: the affine is sheared; B0 was taken from the nearest rotation.")
    return tuple(found)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
