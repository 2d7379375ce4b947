"""A segmentation from its file and the table of names beside it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from chimap.errors import InputError
from chimap.io.nifti import read_onto
from chimap.scan import Scan
from chimap.segmentation import Segmentation, identify, names_from_table


def read_segmentation(path: Path, affine: np.ndarray, shape: Sequence[int]) -> tuple[Segmentation, tuple[str, ...]]:
    """Read regions, by the nearest neighbour onto the grid of another image where they lie on one of their own.

    Args:
        path: One volume of whole numbers. A table of the same name, ending in .tsv, says what they mean; without one
            they are the 2019 challenge's or FreeSurfer's.
        affine: Of the other image [mm].
        shape: Its grid (x, y, z).

    Returns:
        The regions, and a note on what was assumed and done.

    Raises:
        InputError: A file cannot be read, nothing of it lies on the grid, or a number is not known.
    """
    values, notes = read_onto(path, affine, shape, what="segmentation")
    found, assumed = identify(values, table=names_beside(path), source=str(path))
    return found, (assumed, *notes)


def with_segmentation(scan: Scan, path: Path | str) -> Scan:
    """A scan with the user's regions, as `read_segmentation` takes them."""
    found, notes = read_segmentation(Path(path), scan.affine, scan.shape)
    return replace(scan, segmentation=found, notes=(*scan.notes, *notes), files=(*scan.files, str(path)))


def names_beside(path: Path) -> dict[int, str] | None:
    """{number: region} of the table beside a segmentation; None where there is no table.

    Raises:
        InputError: It cannot be read.
    """
    table = table_beside(path)
    return read_names(table) if table.exists() else None


def read_names(table: Path) -> dict[int, str]:
    """{number: region} of a table.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return names_from_table(table.read_text(encoding="utf-8-sig"), str(table))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{table} cannot be read as text: {error}") from None


def table_beside(path: Path) -> Path:
    """Where the table of a segmentation's names is looked for."""
    return path.with_name(f"{path.name.removesuffix('.gz').removesuffix('.nii')}.tsv")
