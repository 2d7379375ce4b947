"""The brain, found from magnitude and phase quality without another program."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from chimap.arrays import Echoes, Mask, Triple, Volume
from chimap.errors import InputError
from chimap.fields.quality import phase_quality
from chimap.fields.surface import grow_surface, surface_interior
from chimap.linalg import bounding_box

COARSE = 2.0
"""Voxel size on which the surface grows [mm]; an axis that is coarser already stays as it is."""

START = 35.0
"""Radius of the first surface, in the middle of the brain [mm]; less where there is less bright tissue."""

LEAST = 0.1
"""A result below this share of all bright tissue is no brain: the surface collapsed or sat in a muscle."""


def brain_mask(
    phase: Echoes,
    magnitude: Echoes | None,
    echo_times: tuple[float, ...],
    voxel_size: Triple,
    *,
    fraction: float = 0.5,
    darkest: float = 0.4,
    least_quality: float = 0.45,
    reach: float = 3.0,
    closing: float = 4.0,
    erosion: float = 0.0,
) -> Mask:
    """Find the brain in a gradient-echo image of a whole head, of a part of one, or of a stripped one.

    A surface grows from the middle of the bright tissue until it meets the dark skull (`grow_surface`). The
    voxels in it and up to `reach` outside are brain where they are bright and their phase is smooth, so what
    the sinuses have dephased is left out. The largest connected part remains; dark furrows are closed and
    holes are filled. Where nearly nothing lies outside the surface (a stripped brain, a block of tissue, a
    test object) there is no skull to be told apart, and the whole object remains.

    Args:
        phase: Wrapped phase [rad], shape (echo, x, y, z).
        magnitude: Same shape, any unit; without it phase quality stands in.
        echo_times: One per echo [s]. Not used: methods of this stage share a signature.
        voxel_size: [mm].
        fraction: Where the surface stops: share of the brightness just below it, 0..1; larger is tighter.
        darkest: Share of the local brightness of the brain below which a voxel at the rim is not brain.
        least_quality: Phase quality below which a voxel at the rim is not brain.
        reach: How far outside the surface brain is looked for [mm].
        closing: Furrows narrower than twice this are closed [mm].
        erosion: Shaved off the result at the end [mm].

    Returns:
        The mask, shape (x, y, z), never empty.

    Raises:
        InputError: No brain was found, or the erosion left nothing of it.

    References:
        The surface: Smith 2002, doi:10.1002/hbm.10062.
    """
    quality = phase_quality(phase).cpu()
    if magnitude is None:
        quality = quality.masked_fill(_unmeasured(phase.cpu()), 0)
        image = quality
    else:
        image = magnitude.cpu().square().sum(0).sqrt()
        # the outermost voxels of the brain have noise for neighbours: what counts is their best one; whether
        # they are brain themselves is for the magnitude to say
        quality = _best_neighbour(quality)
    where = f"in the image of {' x '.join(map(str, image.shape))} voxels"
    mask = None
    coarse, voxel = _coarse(image, voxel_size)
    coarse_quality, _ = _coarse(quality, voxel_size)
    dark, threshold = _levels(coarse)
    tissue = (coarse > threshold) & (coarse_quality > least_quality)
    if tissue.any():
        signed, limit = _surface_and_limit(coarse, tissue, voxel, dark, threshold, fraction, darkest)
        fine = (image > _resize(limit, image.shape)) & (quality > least_quality)
        beyond = tissue & (coarse > limit) & (signed > 2 * reach)
        if beyond.sum() > 0.05 * (signed < 0).sum():  # else the object is alone
            distance = _resize(signed, image.shape)
            fine = (fine | (distance < -15)) & (distance < reach)
        mask = _tidy(fine, closing, voxel_size)
        if mask.sum() * math.prod(voxel_size) < LEAST * tissue.sum() * voxel.prod():
            mask = None
    if mask is None or not mask.any():
        raise InputError(f"no brain was found {where}: give a brain mask with --mask")
    if erosion > 0:
        mask = erode(mask, erosion, voxel_size)
        if not mask.any():
            raise InputError(f"an erosion of {erosion:g} mm left nothing of the brain found {where}: choose less")
    return mask.to(phase.device)


def erode(mask: Mask, radius: float, voxel_size: Triple) -> Mask:
    """Leave only voxels farther than `radius` from everything outside; the border of the grid is outside.

    Args:
        mask: Shape (x, y, z).
        radius: [mm], between voxel centres; below the smallest voxel size nothing changes.
        voxel_size: [mm].

    Returns:
        The smaller mask, same shape; may be empty.
    """
    if radius <= 0 or not mask.any():
        return mask.clone()
    box = bounding_box(mask)
    inside = np.pad(mask[box].cpu().numpy(), 1)
    # a hair more than `radius`, so that rounding cannot keep a neighbour at exactly that distance
    kept = _depth(inside, voxel_size) > radius * (1 + 1e-6)
    result = torch.zeros_like(mask)
    result[box] = torch.from_numpy(kept[1:-1, 1:-1, 1:-1]).to(mask.device)
    return result


def drop_noisy(mask: Mask, field_noise: Volume, limit: float) -> Mask:
    """The mask without its voxels of unreliable field: holes stay filled, crumbs go.

    Skull, air and dropout above the sinuses have phase that means nothing; a few such voxels at the rim spoil what
    lies millimetres around them, in background removal as in the inversion.

    Args:
        mask: Shape (x, y, z).
        field_noise: Of the total field, in any unit.
        limit: Most noise, as a multiple of the median in the mask.

    Returns:
        A part of `mask`; all of it where nothing would be left.
    """
    kept = mask & (field_noise <= limit * field_noise[mask].median())
    if not kept.any():
        return mask
    return fill_holes(largest_part(kept)) & mask


def with_holes(mask: Mask, field_noise: Volume, limit: float = 3.0) -> Mask:
    """The mask without its voxels of unreliable field and their neighbours, also inside: the first of two passes.

    In a bleeding or a calcification there is little signal; its neighbours share its voxels.

    Args:
        mask: Shape (x, y, z).
        field_noise: Of the total field, in any unit.
        limit: Most noise, as a multiple of the median in the mask.

    Returns:
        The largest part of what is left of `mask`.
    """
    noisy = mask & ~(field_noise <= limit * field_noise[mask].median())
    around = F.max_pool3d(noisy.float()[None, None], 3, 1, 1)[0, 0] > 0
    return largest_part(mask & ~around)


def fill_holes(mask: Mask) -> Mask:
    """Add what the mask encloses. A hole cut open by a face of the grid is one if the face encloses it.

    Args:
        mask: Shape (x, y, z).

    Returns:
        The mask without holes, same shape.
    """
    filled = mask.cpu().numpy().copy()
    for axis in range(3):
        for side in (0, -1):
            face = [slice(None), slice(None), slice(None)]
            index = (*face[:axis], side, *face[axis + 1 :])
            filled[index] = ndimage.binary_fill_holes(filled[index])
    outside = _parts(np.pad(~filled, 1, constant_values=True))
    return torch.from_numpy((outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]).to(mask.device)


def largest_part(mask: Mask) -> Mask:
    """The largest part whose voxels touch by their faces; shape (x, y, z)."""
    parts = _parts(mask.cpu().numpy())
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    if len(sizes) < 3:
        return mask
    return torch.from_numpy(parts == sizes.argmax()).to(mask.device)


def _levels(coarse: np.ndarray) -> tuple[float, float]:
    """Intensity of background, and the least that can be tissue."""
    dark, bright = np.percentile(coarse, [2, 98])
    if not bright > dark:  # a small object in an empty grid
        bright = coarse.max()
    if dark > 0.2 * bright:  # no background in the field of view: the darkest is tissue too
        dark = 0.0
    return float(dark), float(dark + 0.1 * (bright - dark))


def _surface_and_limit(
    coarse: np.ndarray,
    tissue: np.ndarray,
    voxel: np.ndarray,
    dark: float,
    threshold: float,
    fraction: float,
    darkest: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Distance from the surface [mm], negative inside, and the intensity below which the rim is not brain."""
    # the middle of the largest crowd of tissue; face and neck are fissured and smaller than a brain
    weight = tissue * np.sqrt(np.minimum(coarse / np.percentile(coarse[tissue], 90), 1))
    crowd = ndimage.gaussian_filter(weight, 25 / voxel, mode="constant", truncate=2.5)
    centre = np.array(np.unravel_index(crowd.argmax(), crowd.shape))
    offsets = [(np.arange(n) - c) * size for n, c, size in zip(coarse.shape, centre, voxel, strict=True)]
    x, y, z = np.meshgrid(*offsets, indexing="ij", sparse=True)
    distance = np.sqrt(x**2 + y**2 + z**2)
    near = tissue & (distance < 40)
    brain_level = float(np.median(coarse[near if near.any() else tissue]))

    # a dark ventricle in the middle must not make the surface collapse, so it starts around a bright ball
    radius = min(START, 0.5 * (0.75 / math.pi * tissue.sum() * voxel.prod()) ** (1 / 3))
    vertices, triangles = grow_surface(
        np.where(distance < radius, np.maximum(coarse, brain_level), coarse),
        voxel,
        centre=centre * voxel,
        radius=radius,
        dark=dark,
        threshold=threshold,
        bright=1.3 * brain_level,
        fraction=fraction,
    )
    inside = surface_interior(vertices, triangles, coarse.shape, voxel)
    signed = _depth(~inside, voxel) - _depth(inside, voxel)

    # the brain's brightness close by, in which coil sensitivity is seen
    core = inside & tissue
    close_by = 12 / voxel
    local = ndimage.gaussian_filter(core * coarse, close_by) + 1e-3 * brain_level
    local /= ndimage.gaussian_filter(core.astype(np.float32), close_by) + 1e-3
    limit = dark + darkest * np.maximum(local - dark, 0)
    return signed.astype(np.float32), limit.astype(np.float32)


def _tidy(tissue: Mask, closing: float, voxel_size: Triple) -> Mask:
    """Smooth the rim, leave the largest part, close furrows, fill holes. May be empty."""
    if not tissue.any():
        return tissue
    box = bounding_box(tissue, [math.ceil(2 * closing / size) + 1 for size in voxel_size])
    part = fill_holes(largest_part(_majority(tissue[box], voxel_size)))
    if closing > 0 and part.any():
        part = fill_holes(part | _closed(part, closing, voxel_size))
    result = torch.zeros_like(tissue)
    result[box] = part
    return result


def _majority(mask: Mask, voxel_size: Triple, width: float = 1.2) -> Mask:
    """Where most of the surroundings are in the mask: cuts bridges and closes gaps of about `width` [mm]."""
    sigma = [width / size for size in voxel_size]
    return torch.from_numpy(ndimage.gaussian_filter(mask.float().numpy(), sigma, mode="nearest") > 0.5)


def _closed(mask: Mask, radius: float, voxel_size: Triple) -> Mask:
    """Grow by `radius` [mm], then shrink by it, on the coarse grid.

    Beyond the border the outermost voxels are repeated, so that it works up to where the field of view cuts.
    """
    coarse, voxel = _coarse(mask.float(), voxel_size)
    pad = [math.ceil(2 * radius / size) + 1 for size in voxel]
    padded = np.pad(coarse > 0.5, [(p, p) for p in pad], mode="edge")
    if not padded.any():
        return mask
    grown = _depth(~padded, voxel) <= radius
    closed = _depth(grown, voxel) > radius
    return _resize(closed[tuple(slice(p, -p) for p in pad)].astype(np.float32), mask.shape) > 0.5


def _coarse(volume: Volume, voxel_size: Triple) -> tuple[np.ndarray, np.ndarray]:
    """Means over about `COARSE` mm, and the voxel size [mm] of that grid."""
    lengths = [n * size for n, size in zip(volume.shape, voxel_size, strict=True)]
    shape = [max(round(length / max(COARSE, size)), 1) for length, size in zip(lengths, voxel_size, strict=True)]
    coarse = F.interpolate(volume[None, None].float(), size=shape, mode="area")[0, 0].numpy()
    return coarse, np.array(lengths) / np.array(shape)


def _resize(volume: np.ndarray, shape: Sequence[int]) -> Tensor:
    return F.interpolate(torch.from_numpy(volume)[None, None], size=tuple(shape), mode="trilinear")[0, 0]


def _depth(mask: np.ndarray, voxel_size: Sequence[float] | np.ndarray) -> np.ndarray:
    """Distance [mm] of every voxel of the mask from the nearest one that is not in it; 0 there."""
    if mask.all():
        return np.full(mask.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=voxel_size))


def _parts(mask: np.ndarray) -> np.ndarray:
    """Number of the connected part that each voxel of the mask is in, from 1; 0 outside."""
    parts = np.empty(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=parts)
    return parts


def _best_neighbour(volume: Volume) -> Volume:
    """Largest of the voxel and the six whose faces it touches."""
    best = volume.clone()
    for axis in range(3):
        n = volume.shape[axis]
        lower, upper = best.narrow(axis, 0, n - 1), best.narrow(axis, 1, n - 1)
        torch.maximum(lower, volume.narrow(axis, 1, n - 1), out=lower)
        torch.maximum(upper, volume.narrow(axis, 0, n - 1), out=upper)
    return best


def _unmeasured(phase: Echoes) -> Mask:
    """Where phase was set to a constant: voxels of the value that fills 3 x 3 x 3 equal voxels, if any."""
    unmeasured = torch.ones_like(phase[0], dtype=torch.bool)
    for echo in phase:
        padded = echo[None, None]
        flat = (F.max_pool3d(padded, 3, 1, 1) == -F.max_pool3d(-padded, 3, 1, 1))[0, 0]
        unmeasured &= echo == echo[flat].median() if flat.any() else torch.zeros_like(flat)
    return unmeasured
