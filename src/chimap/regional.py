"""How far a map is from the truth, region by region.

Measures of the 2019 reconstruction challenge (Bilgic et al. 2021, doi:10.1002/mrm.28754; Marques et al. 2021,
doi:10.1002/mrm.28716) and statistics of every named region. All take chi [ppm], truth [ppm] and a mask, shape
(x, y, z), and count voxels inside the mask only. What cannot be measured is NaN.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from chimap import metrics
from chimap.arrays import Mask, Triple, Volume
from chimap.lesion_metrics import Lesion, Line, lesion_mean, lesions, line_through, spread
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

_NUCLEI = frozenset(name for names in DEEP_GREY.values() for name in names)


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
            "SD [ppm]": spread(y),
            "median [ppm]": _median(y),
            "true mean [ppm]": float(x.mean()),
            "true SD [ppm]": spread(x),
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


def _median(values: Tensor) -> float:
    """The middle value, or the mean of the two in the middle, which torch.median does not take."""
    ordered, n = values.sort().values, values.numel()
    return float((ordered[(n - 1) // 2] + ordered[n // 2]) / 2)


def _mean(values: Sequence[int | float]) -> float:
    """Of those that are numbers."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan
