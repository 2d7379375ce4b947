"""How far a map is from the truth, region by region.

Measures of the 2019 reconstruction challenge (Bilgic et al. 2021, doi:10.1002/mrm.28754; Marques et al. 2021,
doi:10.1002/mrm.28716), statistics of every named region, and the linearity of lesions of QSMnet+ (Jung et al. 2020,
doi:10.1016/j.neuroimage.2020.116619). All take chi [ppm], truth [ppm] and a mask, shape (x, y, z), and count voxels
inside the mask only. What cannot be measured is NaN.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from chimap import metrics
from chimap.arrays import Mask, Triple, Volume
from chimap.errors import InputError
from chimap.linalg import bounding_box
from chimap.segmentation import (
    BLOOD,
    CALCIFICATION,
    DEEP_GREY,
    HAEMORRHAGE,
    TISSUE,
    Segmentation,
    region,
)

LESION_CHI: tuple[float, ...] = tuple(round(-1.4 + 0.2 * step, 1) for step in range(15))
"""Values [ppm] that the QSMnet+ paper gives a simulated lesion, -1.4 to 1.4 in steps of 0.2. It counts 17; these are
the 15 that range and step give."""

_NUCLEI = frozenset(name for names in DEEP_GREY.values() for name in names)

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Line:
    """The least-squares line found = slope * true + intercept.

    Attributes:
        slope: 1 where nothing is lost.
        intercept: [ppm].
        r_squared: Share of the variance that the line explains.
    """

    slope: float
    intercept: float
    r_squared: float


@dataclass(frozen=True)
class Lesion:
    """One calcification or haemorrhage, as `lesions` finds it.

    Attributes:
        voxels: Of the segmentation.
        found_voxels: Of the segment in chi.
        true_voxels: Of the segment in the truth.
        moment: Sum of chi over its segment [ppm voxel].
        true_moment: Likewise of the truth.
        streak: Standard deviation around the lesion that the truth does not explain, over |mean chi| of the segment.
    """

    voxels: int
    found_voxels: int
    true_voxels: int
    moment: float
    true_moment: float
    streak: float

    @property
    def deviation(self) -> float:
        """|true moment - moment| [ppm voxel]."""
        return abs(self.true_moment - self.moment)


def tissue_dnrmse(chi: Volume, truth: Volume, mask: Mask, segmentation: Segmentation) -> float:
    """dNRMSE [%] of thalamus, white and grey matter, eroded: no voxel counts whose 3^3 neighbourhood leaves them.

    The line is taken out, and both maps are demeaned, within this region.
    """
    return metrics.dnrmse(chi, truth, _eroded(region(segmentation, TISSUE) & mask))


def blood_dnrmse(chi: Volume, truth: Volume, mask: Mask, segmentation: Segmentation) -> float:
    """dNRMSE [%] of veins, dilated by 3^3 within the mask."""
    return metrics.dnrmse(chi, truth, _dilated(region(segmentation, BLOOD) & mask) & mask)


def deep_grey_dnrmse(chi: Volume, truth: Volume, mask: Mask, segmentation: Segmentation) -> float:
    """dNRMSE [%] of the deep grey nuclei together, eroded as `tissue_dnrmse`."""
    return metrics.dnrmse(chi, truth, _eroded(region(segmentation, _NUCLEI) & mask))


def deep_grey_line(chi: Volume, truth: Volume, mask: Mask, segmentation: Segmentation) -> Line:
    """Line through the mean chi of each deep grey nucleus (not eroded) over its true mean: six points at most.

    The challenge's deviation from linear slope is |1 - slope|. A nucleus that is not in the mask gives no point.
    """
    found, true = [], []
    for names in DEEP_GREY.values():
        nucleus = region(segmentation, names) & mask
        if nucleus.any():
            found.append(lesion_mean(chi, nucleus))
            true.append(lesion_mean(truth, nucleus))
    return line_through(true, found)


def line_through(true: Sequence[float], found: Sequence[float]) -> Line:
    """Least-squares line of found over true values [ppm]; NaN where fewer than two values differ."""
    x, y = np.asarray(true, dtype=np.float64), np.asarray(found, dtype=np.float64)
    if x.size < 2 or np.ptp(x) == 0:
        return Line(math.nan, math.nan, math.nan)
    x_centred, y_centred = x - x.mean(), y - y.mean()
    square, cross, spread = x_centred @ x_centred, x_centred @ y_centred, y_centred @ y_centred
    slope = cross / square
    r_squared = cross**2 / (square * spread) if spread > 0 else math.nan
    return Line(float(slope), float(y.mean() - slope * x.mean()), float(r_squared))


def lesions(chi: Volume, truth: Volume, mask: Mask, marked: Mask, *, sign: int) -> list[Lesion]:
    """Moment and streaking of lesions.

    The challenge's first published evaluation, for one calcification: its box is the bounding box of the label
    grown by 3 voxels; a rim reaches 4 voxels further, an outer box 4 more. The threshold is the first of 0, -0.01,
    ... -1.5 ppm with no voxel below it in the outer box outside the box. Box voxels below it are the segment;
    moment = voxels * mean chi of the segment. Streak: the standard deviation (n - 1) of what is left in the rim
    after the line of chi over the truth is taken out, over |mean chi of the segment|. The true moment comes from
    the same steps on the truth. The functions behind the challenge's final tables are not public, so values need
    not equal those.

    Added here: voxels outside the mask do not count. What touches, or has boxes that overlap, is one lesion; the
    boxes of others count neither as rim nor as outer box. A haemorrhage is treated as a calcification of
    the maps turned around. Where no threshold serves, moment and streak are NaN; where none of the box is below
    it, the moment is 0 and the streak NaN.

    Args:
        chi: [ppm].
        truth: [ppm], with the same reference as chi.
        mask: Where both are valid.
        marked: Lesions of one kind.
        sign: -1 for calcifications, 1 for haemorrhages.

    Returns:
        In the order of their places; empty where none is marked inside the mask.
    """
    inside = marked & mask
    if not inside.any():
        return []
    boxes = _lesion_boxes(inside)
    found = []
    for box in boxes:
        outer = _grown(box, 8, mask.shape)
        counted = mask[outer].clone()
        rim, within = torch.zeros_like(counted), torch.zeros_like(counted)
        rim[_inside_of(_grown(box, 4, mask.shape), outer)] = True
        within[_inside_of(box, outer)] = True
        for other in boxes:
            if other is not box and _overlap(other, outer):
                counted[_inside_of(other, outer)] = False
        around = counted & ~within
        a, b = (-sign * volume[outer].double() for volume in (chi, truth))  # lesions lie below 0 from here on
        segment = _below_surroundings(a[counted & within], a[around])
        true_segment = _below_surroundings(b[counted & within], b[around])
        ring = around & rim
        found.append(
            Lesion(
                voxels=int(inside[box].sum()),
                found_voxels=0 if segment is None else segment.numel(),
                true_voxels=0 if true_segment is None else true_segment.numel(),
                moment=math.nan if segment is None else -sign * float(segment.sum()),
                true_moment=math.nan if true_segment is None else -sign * float(true_segment.sum()),
                streak=math.nan
                if segment is None or segment.numel() == 0
                else _unexplained(a[ring], b[ring]) / abs(float(segment.mean())),
            )
        )
    return found


def lesion_mean(chi: Volume, lesion_mask: Mask) -> float:
    """Mean chi [ppm] of a lesion, or of any other region; NaN where it is empty."""
    return float(chi[lesion_mask].double().mean())


def lesion_linearity(truth_means: Sequence[float], found_means: Sequence[float]) -> dict[str, float]:
    """Whether a lesion's chi keeps its proportion over a wide range, as in the QSMnet+ paper.

    The paper gives one simulated lesion the values of `LESION_CHI` in turn (with noise of half the value inside
    it), adds its field to that of a healthy person, and compares mean chi of the lesion with the value assigned:
    the root mean square of the differences is its number for linearity. Of patients it states the line and R^2.

    Args:
        truth_means: Assigned values [ppm], one for each simulation.
        found_means: Mean chi of the lesion [ppm], from `lesion_mean`, in the same order.

    Raises:
        InputError: The two have different lengths, or fewer than two values.

    References:
        Jung et al. 2020, doi:10.1016/j.neuroimage.2020.116619.
    """
    true, found = np.asarray(truth_means, dtype=np.float64), np.asarray(found_means, dtype=np.float64)
    if true.shape != found.shape or true.size < 2:
        raise InputError(
            f"{true.size} assigned and {found.size} found values of lesions were given, needed the same number of "
            "each, at least 2"
        )
    line = line_through(truth_means, found_means)
    return {
        "RMSE [ppm]": float(np.sqrt(np.mean((found - true) ** 2))),
        "mean error [ppm]": float(np.mean(found - true)),
        "slope": line.slope,
        "intercept [ppm]": line.intercept,
        "R^2": line.r_squared,
    }


def region_statistics(
    chi: Volume, truth: Volume, mask: Mask, segmentation: Segmentation, voxel_size: Triple
) -> dict[str, dict[str, int | float]]:
    """One row for each named region that lies in the mask, in the order of its first number.

    SD is that of a sample (n - 1); the slope is that of chi over the truth among the region's voxels. Means are
    compared as they are: give both maps the same reference first.

    Args:
        chi: [ppm].
        truth: [ppm].
        mask: Where both are valid.
        segmentation: Numbers and names on the same grid.
        voxel_size: [mm].

    Returns:
        {region: {measure with its unit: value}}.
    """
    volume = math.prod(voxel_size)
    labels, order = segmentation.labels[mask].sort(stable=True)
    a, b = chi[mask].double()[order], truth[mask].double()[order]
    present, counts = torch.unique_consecutive(labels, return_counts=True)
    ends = counts.cumsum(0).tolist()
    places: dict[str, list[slice]] = {}
    for number, count, end in zip(present.tolist(), counts.tolist(), ends, strict=True):
        if number:
            places.setdefault(segmentation.names[number], []).append(slice(end - count, end))
    rows = {}
    for name, slices in places.items():
        x, y = (torch.cat([values[part] for part in slices]) for values in (b, a))
        centred = x - x.mean()
        square = float(centred.square().sum())
        rows[name] = {
            "voxels": x.numel(),
            "volume [mm3]": x.numel() * volume,
            "mean [ppm]": float(y.mean()),
            "SD [ppm]": _deviation(y),
            "median [ppm]": _median(y),
            "true mean [ppm]": float(x.mean()),
            "true SD [ppm]": _deviation(x),
            "true median [ppm]": _median(x),
            "mean error [ppm]": float((y - x).mean()),
            "RMSE [ppm]": float((y - x).square().mean().sqrt()),
            "slope": float((centred * y).sum()) / square if square > 0 else math.nan,
        }
    return rows


def summary(chi: Volume, truth: Volume, mask: Mask, segmentation: Segmentation, voxel_size: Triple) -> dict[str, float]:
    """The measures of the challenge by name, units in the names; what the segmentation does not have is left out.

    chi is known up to a constant only, so that both maps are given a mean of zero in the mask first. Of several
    lesions of a kind the means are stated, over those that could be measured.

    Args:
        chi: [ppm].
        truth: [ppm].
        mask: Where both are valid.
        segmentation: Numbers and names on the same grid.
        voxel_size: [mm], for volumes.
    """
    chi, truth, mask, segmentation = _prepared(chi, truth, mask, segmentation)
    return _summary(chi, truth, mask, segmentation, voxel_size, _lesions_by_kind(chi, truth, mask, segmentation))


def report(
    chi: Volume, truth: Volume, mask: Mask, segmentation: Segmentation | None, voxel_size: Triple
) -> dict[str, Any]:
    """Everything that is measured, nested: the whole mask, the challenge's regions, each lesion, each region.

    The measures of the whole mask take the maps as they are (NRMSE with and without demeaning); all others take
    them with a mean of zero in the mask.

    Returns:
        {"whole mask": `metrics.summary`, "reference": ...} and, with a segmentation, {"challenge": `summary`,
        "lesions": {kind: rows}, "regions": `region_statistics`}.
    """
    found: dict[str, Any] = {
        "whole mask": metrics.summary(chi, truth, mask),
        "voxels in the mask": int(mask.sum()),
        "reference": {
            "whole mask": "both maps as they are, but for 'NRMSE, demeaned', dNRMSE, correlation and slope, which "
            "no constant changes",
            "regions": "both maps minus their mean in the mask",
            "mean of chi in the mask [ppm]": lesion_mean(chi, mask),
            "mean of the truth in the mask [ppm]": lesion_mean(truth, mask),
        },
    }
    if segmentation is None:
        return found
    a, b, mask, segmentation = _prepared(chi, truth, mask, segmentation)
    by_kind = _lesions_by_kind(a, b, mask, segmentation)
    return found | {
        "challenge": _summary(a, b, mask, segmentation, voxel_size, by_kind),
        "lesions": {kind: [_lesion_row(lesion) for lesion in rows] for kind, rows in by_kind.items()},
        "regions": region_statistics(a, b, mask, segmentation, voxel_size),
    }


_DNRMSE: dict[str, Callable[[Volume, Volume, Mask, Segmentation], float]] = {
    "tissue": tissue_dnrmse,
    "blood": blood_dnrmse,
    "deep grey": deep_grey_dnrmse,
}
_GROUPS = {"tissue": TISSUE, "blood": BLOOD, "deep grey": _NUCLEI}


def _summary(
    chi: Volume,
    truth: Volume,
    mask: Mask,
    segmentation: Segmentation,
    voxel_size: Triple,
    by_kind: dict[str, list[Lesion]],
) -> dict[str, float]:
    has = {name: bool((region(segmentation, names) & mask).any()) for name, names in _GROUPS.items()}
    found = {
        f"dNRMSE, {name} [%]": measure(chi, truth, mask, segmentation) for name, measure in _DNRMSE.items() if has[name]
    }
    if has["deep grey"]:
        line = deep_grey_line(chi, truth, mask, segmentation)
        found["deviation from linear slope"] = abs(1 - line.slope)
        found["deep grey slope"] = line.slope
        found["deep grey intercept [ppm]"] = line.intercept
    for kind, rows in by_kind.items():
        measured = [lesion.found_voxels for lesion in rows if not math.isnan(lesion.moment)]
        found |= {
            f"{kind}: lesions": float(len(rows)),
            f"{kind}: moment [ppm voxel]": _mean([lesion.moment for lesion in rows]),
            f"{kind}: true moment [ppm voxel]": _mean([lesion.true_moment for lesion in rows]),
            f"{kind}: deviation of the moment [ppm voxel]": _mean([lesion.deviation for lesion in rows]),
            f"{kind}: streak": _mean([lesion.streak for lesion in rows]),
            f"{kind}: volume found [mm3]": _mean(measured) * math.prod(voxel_size),
        }
    return found


def _lesions_by_kind(chi: Volume, truth: Volume, mask: Mask, segmentation: Segmentation) -> dict[str, list[Lesion]]:
    """Kinds of lesion that are there, with their lesions."""
    kinds = {"calcification": (CALCIFICATION, -1), "haemorrhage": (HAEMORRHAGE, 1)}
    found = {
        kind: lesions(chi, truth, mask, region(segmentation, names), sign=sign) for kind, (names, sign) in kinds.items()
    }
    return {kind: rows for kind, rows in found.items() if rows}


def _lesion_row(lesion: Lesion) -> dict[str, int | float]:
    return {
        "voxels": lesion.voxels,
        "voxels found": lesion.found_voxels,
        "voxels found in the truth": lesion.true_voxels,
        "moment [ppm voxel]": lesion.moment,
        "true moment [ppm voxel]": lesion.true_moment,
        "deviation of the moment [ppm voxel]": lesion.deviation,
        "streak": lesion.streak,
    }


def _prepared(
    chi: Volume, truth: Volume, mask: Mask, segmentation: Segmentation
) -> tuple[Tensor, Tensor, Tensor, Segmentation]:
    """Both maps with a mean of zero in the mask, and everything cut to its box; the rim of 1 is for `_eroded`."""
    box = bounding_box(mask, (1, 1, 1))
    mask = mask[box]
    a, b = (torch.where(mask, v[box] - v[box][mask].double().mean(), 0) for v in (chi, truth))
    return a, b, mask, replace(segmentation, labels=segmentation.labels[box])


def _dilated(region: Mask) -> Mask:
    """Grown by one voxel along edges and corners too (3^3). Nothing enters from beyond the grid."""
    for axis in range(3):
        n, grown = region.shape[axis], region.clone()
        grown.narrow(axis, 0, n - 1).logical_or_(region.narrow(axis, 1, n - 1))
        grown.narrow(axis, 1, n - 1).logical_or_(region.narrow(axis, 0, n - 1))
        region = grown
    return region


def _eroded(region: Mask) -> Mask:
    return ~_dilated(~region)


def _lesion_boxes(marked: Mask) -> list[Box]:
    """Bounding boxes grown by 3 voxels, those that overlap joined until none do."""
    whole = bounding_box(marked)
    parts, _ = ndimage.label(marked[whole].cpu().numpy())  # pyright: ignore[reportGeneralTypeIssues]
    bare = [_shifted(box, whole) for box in ndimage.find_objects(parts)]
    boxes: list[Box] = []
    while bare:
        candidate = bare.pop(0)
        touching = [box for box in boxes if _overlap(_grown(box, 3, marked.shape), _grown(candidate, 3, marked.shape))]
        if touching:
            boxes = [box for box in boxes if box not in touching]
            bare.insert(0, _hull([candidate, *touching]))  # larger now, it may reach others
        else:
            boxes.append(candidate)
    return [_grown(box, 3, marked.shape) for box in boxes]


def _grown(box: Box, voxels: int, shape: Sequence[int]) -> Box:
    x, y, z = (slice(max(s.start - voxels, 0), min(s.stop + voxels, n)) for s, n in zip(box, shape, strict=True))
    return x, y, z


def _shifted(box: Sequence[slice], origin: Box) -> Box:
    x, y, z = (slice(s.start + o.start, s.stop + o.start) for s, o in zip(box, origin, strict=True))
    return x, y, z


def _hull(boxes: Sequence[Box]) -> Box:
    x, y, z = (slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes)) for axis in range(3))
    return x, y, z


def _overlap(a: Box, b: Box) -> bool:
    return all(s.start < t.stop and t.start < s.stop for s, t in zip(a, b, strict=True))


def _inside_of(box: Box, frame: Box) -> Box:
    """A box in the voxels of another one, cut to it."""
    x, y, z = (slice(max(s.start - f.start, 0), min(s.stop, f.stop) - f.start) for s, f in zip(box, frame, strict=True))
    return x, y, z


def _below_surroundings(values: Tensor, around: Tensor) -> Tensor | None:
    """Values below the first threshold that nothing around is below; None where there is no such threshold."""
    thresholds = -0.01 * torch.arange(151, dtype=values.dtype, device=values.device)
    clear = thresholds[thresholds <= around.min()] if around.numel() else thresholds
    return values[values < clear[0]] if clear.numel() else None


def _unexplained(chi: Tensor, truth: Tensor) -> float:
    """Standard deviation of what the line of chi over the truth leaves; of chi itself where the truth is constant."""
    if chi.numel() < 2:
        return math.nan
    a, b = chi - chi.mean(), truth - truth.mean()
    square = b.square().sum()
    slope = (a * b).sum() / square if square > 0 else 0.0
    return _deviation(a - slope * b)


def _deviation(values: Tensor) -> float:
    """Of a sample: n - 1 in the denominator."""
    n = values.numel()
    return float((values - values.mean()).square().sum().div(n - 1).sqrt()) if n > 1 else math.nan


def _median(values: Tensor) -> float:
    """The middle value, or the mean of the two in the middle, which torch.median does not take."""
    ordered, n = values.sort().values, values.numel()
    return float((ordered[(n - 1) // 2] + ordered[n // 2]) / 2)


def _mean(values: Sequence[int | float]) -> float:
    """Of those that are numbers."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan
