"""Values of maps by region: what a study compares between people."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from chimap.arrays import Mask, Triple
from chimap.errors import InputError
from chimap.segmentation import CHALLENGE, Segmentation, identify

WHOLE = "whole mask"

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
) -> list[dict[str, str | int | float]]:
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

    def row(segmentation: str, region: str, inside: Mask) -> dict[str, str | int | float]:
        voxels = int(inside.sum())
        found: dict[str, str | int | float] = {
            "segmentation": segmentation,
            "region": region,
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
        present = set(torch.unique(segmentation.labels[mask]).tolist()) - {0}
        numbers: dict[str, list[int]] = {}
        for number, region in segmentation.names.items():
            if number in present:
                numbers.setdefault(region, []).append(number)
        for region, own in numbers.items():
            inside = torch.isin(segmentation.labels, segmentation.labels.new_tensor(own)) & mask
            rows.append(row(name, region, inside))
        if len(rows) == before:
            raise InputError(f"the segmentation {name} marks nothing inside the mask")
    return rows


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
