"""Values of maps by region, and chi relative to one: what a study compares between people."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from chimap.arrays import Mask, Triple
from chimap.errors import InputError
from chimap.scan import Maps
from chimap.segmentation import CHALLENGE, Segmentation, canonical, identify, names_within, region

WHOLE = "whole mask"

Row: TypeAlias = dict[str, str | int | float]

COLUMNS = {
    "segmentation": {"Description": "Which segmentation the region is of: its label of seg, atlas or desc"},
    "region": {"Description": "Name of the region; the whole mask comes first"},
    "voxels": {"Description": "Voxels of the region in which chi is valid"},
    "volume_mm3": {"Description": "Their volume", "Units": "mm^3"},
    "chi_mean": {"Description": "Mean susceptibility", "Units": "ppm"},
    "chi_sd": {"Description": "Standard deviation of the susceptibility among the voxels", "Units": "ppm"},
    "chi_median": {"Description": "Median susceptibility", "Units": "ppm"},
    "r2star_mean": {"Description": "Mean decay rate R2*", "Units": "1/s"},
    "r2star_sd": {"Description": "Standard deviation of R2* among the voxels", "Units": "1/s"},
    "r2star_median": {"Description": "Median R2*", "Units": "1/s"},
}
"""Of a table of region values; what was not measured is n/a."""

TISSUES: dict[int, str] = {
    1: "grey matter",
    2: "white matter",
    3: "csf",
    4: "bone",
    5: "soft tissue",
    6: "non-brain",
    7: "lesion",
    8: "cortical grey matter",
    9: "subcortical grey matter",
    10: "brain stem",
    11: "cerebellum",
}
"""Numbers of a dseg without a table, BIDS 1.10, derivatives, "Common image-derived labels"."""


def region_rows(
    maps: Mapping[str, Tensor],
    mask: Mask,
    voxel_size: Triple,
    segmentations: Mapping[str, Segmentation] | None = None,
) -> list[Row]:
    """Mean, SD of a sample (n - 1) and median of maps in the whole mask and in every region's part of it.

    Args:
        maps: {name: values (x, y, z)}, valid in the mask.
        mask: Same shape.
        voxel_size: [mm].
        segmentations: {name: numbers and what they mean}, on the same grid.

    Returns:
        A row for the mask, then one for each region with voxels in it: segmentation ("" for the mask), region, voxels,
        volume_mm3, and for each map NAME_mean, NAME_sd (NaN for one voxel) and NAME_median.

    Raises:
        InputError: A segmentation marks nothing in the mask.
    """

    def row(segmentation: str, called: str, inside: Mask) -> Row:
        voxels = int(inside.sum())
        found: Row = {
            "segmentation": segmentation,
            "region": called,
            "voxels": voxels,
            "volume_mm3": voxels * math.prod(voxel_size),
        }
        for name, volume in maps.items():
            values = volume[inside].double().sort().values
            found[f"{name}_mean"] = float(values.mean())
            found[f"{name}_sd"] = float(values.std()) if voxels > 1 else math.nan
            found[f"{name}_median"] = float(values[(voxels - 1) // 2] + values[voxels // 2]) / 2
        return found

    rows = [row("", WHOLE, mask)]
    for name, segmentation in (segmentations or {}).items():
        before = len(rows)
        numbers: dict[str, list[int]] = {}
        for number, called in names_within(segmentation, mask).items():
            numbers.setdefault(called, []).append(number)
        for called, own in numbers.items():
            inside = torch.isin(segmentation.labels, segmentation.labels.new_tensor(own)) & mask
            rows.append(row(name, called, inside))
        if len(rows) == before:
            raise InputError(f"the segmentation {name} marks nothing inside the mask")
    return rows


def region_values(maps: Maps, voxel_size: Triple) -> list[Row]:
    """`region_rows` of chi and R2* in a run's segmentation."""
    volumes = {"chi": maps.chi} | ({} if maps.r2star is None else {"r2star": maps.r2star})
    found = {} if maps.segmentation is None else {maps.segmentation.scheme: maps.segmentation}
    return region_rows(volumes, maps.mask, voxel_size, found)


def as_table(rows: Sequence[Row]) -> str:
    """Rows with a head of `COLUMNS`, apart by tabs."""
    lines = ["\t".join(_cell(row.get(column, "")) for column in COLUMNS) for row in rows]
    return "\n".join(["\t".join(COLUMNS), *lines]) + "\n"


def _cell(value: str | int | float) -> str:
    if isinstance(value, str):
        return value or "n/a"
    # to 1e-6: a mean that the reference makes zero is zero, and no outlier for its rounding
    return f"{round(value, 6) + 0.0:.8g}" if math.isfinite(value) else "n/a"


def region_called(name: str, segmentation: Segmentation) -> Mask:
    """Voxels of a region, whatever its side, by the name that the segmentation or anybody else gives it.

    Raises:
        InputError: The segmentation knows no such region.
    """
    return region(segmentation, {known_region(name, segmentation.names)})


def known_region(name: str, names: Mapping[int, str]) -> str:
    """A region's canonical name, where the names of a segmentation hold it.

    Raises:
        InputError: They do not.
    """
    wanted = canonical(name)
    known = sorted({canonical(own) for number, own in names.items() if number})
    if wanted not in known:
        raise InputError(f"no region is called {name!r}; the segmentation has {', '.join(known)}")
    return wanted


def identify_bids(values: Tensor, table: Mapping[int, str] | None, source: str) -> Segmentation:
    """What the numbers of a dseg mean: its table's names, else those that BIDS or FreeSurfer give them.

    Args:
        values: Whole numbers (x, y, z).
        table: {number: region} where a table applies.
        source: Name of the file, for messages.

    Raises:
        InputError: As `segmentation.identify`.
    """
    highest = int(values.max())
    if table is None and highest <= max(TISSUES):
        table = TISSUES
    if table is None and highest <= max(CHALLENGE):  # `identify` would guess
        raise InputError(
            f"{source} holds numbers up to {highest}, which are neither BIDS's tissues nor FreeSurfer's regions: put a "
            "table (dseg.tsv with the columns index and name) beside or above it"
        )
    return identify(values, table=table, source=source)[0]
