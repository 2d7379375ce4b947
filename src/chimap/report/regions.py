"""Values by region beside what is known of healthy people."""

import math
from dataclasses import dataclass, replace

import torch

from chimap.arrays import Mask
from chimap.regions import WHOLE, Row, region_values
from chimap.report.view import View
from chimap.scan import Maps, Scan
from chimap.segmentation import Segmentation, canonical, names_within, region
from chimap.simulation.tissues import TISSUES

ZERO = "white matter"
"""What differences are taken to: large, in every segmentation, and the same in the literature's values."""

IRON = {
    "pallidum": (21.30, 3.49),
    "red nucleus": (19.48, 6.86),
    "substantia nigra": (18.46, 6.52),
    "putamen": (13.32, 3.43),
    "dentate nucleus": (10.35, 4.86),
    "caudate": (9.28, 2.14),
    "thalamus": (4.76, 1.16),
}
"""Non-haem iron after death, mean and SD of people from 30 to 100 years [mg in 100 g fresh weight]: Hallgren and
Sourander 1958, doi:10.1111/j.1471-4159.1958.tb12607.x."""

COLOURS = (
    "#ff5a5f", "#35d0ff", "#ffd23f", "#3ddc84", "#ff9d2e", "#c792ea", "#7fdbca", "#f78fb3", "#a3e635", "#60a5fa",
)  # fmt: skip
EVERYWHERE = frozenset({"white matter", "grey matter", "csf", "cerebellar cortex", "cerebellar white matter"})
"""Regions whose outlines would cover a picture."""


@dataclass(frozen=True)
class Values:
    """One row of the table, numbers as they are sorted; NaN where there is nothing.

    Attributes:
        region: Name.
        volume: [ml].
        mean, sd, median: Of chi [ppm].
        r2star: Mean [1/s].
        above: chi above that of white matter [ppm].
        known: The same of the healthy adult that simulations are made of [ppm].
        iron: Mean and SD [mg / 100 g].
    """

    region: str
    volume: float
    mean: float
    sd: float
    median: float
    r2star: float
    above: float
    known: float
    iron: tuple[float, float]


def region_table(scan: Scan, maps: Maps) -> list[Values]:
    """A row for the mask and each region; none without a segmentation."""
    if maps.segmentation is None:
        return []
    rows = region_values(maps, scan.voxel_size)
    own = [row for row in rows if canonical(str(row["region"])) == ZERO]
    voxels = sum(float(row["voxels"]) for row in own)
    zero = sum(float(row["chi_mean"]) * float(row["voxels"]) for row in own) / voxels if own else math.nan
    return [_values(row, zero) for row in rows]


def _values(row: Row, zero: float) -> Values:
    name = str(row["region"])
    tissue = TISSUES.get(canonical(name)) if name != WHOLE else None
    return Values(
        region=name,
        volume=float(row["volume_mm3"]) / 1000,
        mean=float(row["chi_mean"]),
        sd=float(row["chi_sd"]),
        median=float(row["chi_median"]),
        r2star=float(row.get("r2star_mean", math.nan)),
        above=float(row["chi_mean"]) - zero,
        known=math.nan if tissue is None else tissue.chi - TISSUES[ZERO].chi,
        iron=IRON.get(canonical(name), (math.nan, math.nan)),
    )


def outlined(segmentation: Segmentation, mask: Mask) -> list[tuple[str, Mask, str]]:
    """Regions small enough to be outlined in one picture, the largest first: name, voxels, colour."""
    names = sorted({canonical(name) for name in names_within(segmentation, mask).values()} - EVERYWHERE)
    found = sorted(((name, region(segmentation, {name}) & mask) for name in names), key=lambda row: -int(row[1].sum()))
    return [(name, inside, colour) for (name, inside), colour in zip(found, COLOURS, strict=False)]


def through(view: View, regions: list[tuple[str, Mask, str]]) -> View:
    """A view whose planes meet where most of these regions are cut by them."""
    together = torch.stack([inside for _, inside, _ in regions]).float()
    centre = []
    for axis in range(3):
        # of each region in each plane; the root keeps a large region from deciding alone
        across = [other + 1 for other in range(3) if other != axis]
        shares = (together.sum(dim=across) / together.sum(dim=(1, 2, 3))[:, None]).sqrt()
        centre.append(int(shares.sum(dim=0).argmax()))
    return replace(view, centre=(centre[0], centre[1], centre[2]))
