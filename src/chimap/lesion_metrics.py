"""What becomes of lesions: moment and streak of each, and whether chi stays linear in them.

After the 2019 reconstruction challenge (Marques et al. 2021, doi:10.1002/mrm.28716) and QSMnet+ (Jung et al. 2020,
doi:10.1016/j.neuroimage.2020.116619). chi and truth in ppm, shape (x, y, z); what cannot be measured is NaN.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from chimap.arrays import Mask, Volume
from chimap.errors import InputError
from chimap.linalg import bounding_box

LESION_CHI: tuple[float, ...] = tuple(round(-1.4 + 0.2 * step, 1) for step in range(15))
"""Values [ppm] that the QSMnet+ paper gives a simulated lesion, -1.4 to 1.4 in steps of 0.2. It counts 17; these are
the 15 that range and step give."""

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
    return spread(a - slope * b)


def spread(values: Tensor) -> float:
    """Of a sample: n - 1 in the denominator."""
    n = values.numel()
    return float((values - values.mean()).square().sum().div(n - 1).sqrt()) if n > 1 else math.nan
