"""The brain, found from magnitude and phase quality without another program."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from chimap.arrays import Echoes, Mask, Shape, Triple, Volume
from chimap.errors import InputError
from chimap.fields.quality import phase_quality
from chimap.fields.surface import grow_surface, surface_interior
from chimap.linalg import bounding_box

COARSE = 2.0
"""Voxel size on which the surface grows [mm]; coarser images are not refined."""


def brain_mask(
    phase: Echoes,
    magnitude: Echoes | None,
    echo_times: tuple[float, ...],
    voxel_size: Triple,
    *,
    fraction: float = 0.5,
    darkest: float = 0.3,
    least_quality: float = 0.5,
    reach: float = 3.0,
    closing: float = 4.0,
    erosion: float = 0.0,
) -> Mask:
    """Find the brain in a gradient-echo image of a whole head, of a part of one, or of a stripped one.

    A surface grows from the middle of the bright tissue until it meets the dark skull (`grow_surface`). The
    voxels in it and up to `reach` outside are brain where they are bright and their phase is smooth, so what
    the sinuses have dephased is left out. The largest connected part remains; furrows that are dark are closed
    and holes are filled. Where nearly nothing lies outside the surface (a stripped brain, a block of tissue, a
    test object) there is no skull to be told apart, and the whole object remains.

    Args:
        phase: Wrapped phase [rad], shape (echo, x, y, z).
        magnitude: Same shape, any unit; without it phase quality stands in.
        echo_times: One per echo [s].
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
        InputError: No brain was found.

    References:
        The surface: Smith 2002, doi:10.1002/hbm.10062.
    """
    quality = phase_quality(phase)
    if magnitude is None:
        quality = quality.masked_fill(_unmeasured(phase), 0)
        image = quality
    else:
        image = magnitude.square().sum(0).sqrt()
        # the outermost voxels of the brain have noise for neighbours: what counts is their best one; whether
        # they are brain themselves is for the magnitude to say
        quality = _best_neighbour(quality)
    mask = _find(image, quality, voxel_size, fraction, darkest, least_quality, reach, closing)
    if erosion > 0 and mask is not None:
        mask = erode(mask, erosion, voxel_size)
    if mask is None or not mask.any():
        raise InputError(
            f"no brain was found in the image of {tuple(phase.shape[1:])} voxels of {voxel_size} mm: "
            "give a brain mask with --mask"
        )
    return mask


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
    inside = np.pad(mask[box].numpy(), 1)
    # a hair less than `radius`, so that a neighbour at exactly that distance counts as within it
    kept = ndimage.distance_transform_edt(inside, sampling=voxel_size) > radius * (1 + 1e-6)
    result = torch.zeros_like(mask)
    result[box] = torch.from_numpy(kept[1:-1, 1:-1, 1:-1])
    return result


def fill_holes(mask: Mask) -> Mask:
    """Add what the mask encloses. A hole cut open by a face of the grid is one if the face encloses it.

    Args:
        mask: Shape (x, y, z).

    Returns:
        The mask without holes, same shape.
    """
    filled = mask.numpy().copy()
    for axis in range(3):
        for side in (0, -1):
            face = [slice(None)] * 3
            face[axis] = side
            filled[tuple(face)] = ndimage.binary_fill_holes(filled[tuple(face)])
    outside, _ = ndimage.label(np.pad(~filled, 1, constant_values=True))
    return torch.from_numpy((outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1])


def _find(
    image: Volume,
    quality: Volume,
    voxel_size: Triple,
    fraction: float,
    darkest: float,
    least_quality: float,
    reach: float,
    closing: float,
) -> Mask | None:
    shape: Shape = (image.shape[0], image.shape[1], image.shape[2])
    coarse_shape = [max(round(n * size / max(COARSE, size)), 1) for n, size in zip(shape, voxel_size, strict=True)]
    coarse_voxel = np.array([n * size / m for n, size, m in zip(shape, voxel_size, coarse_shape, strict=True)])
    coarse = F.interpolate(image[None, None], size=coarse_shape, mode="area")[0, 0].numpy()
    coarse_quality = F.interpolate(quality[None, None], size=coarse_shape, mode="area")[0, 0].numpy()

    # 1. brightness of background and brain, and where the brain is
    lit = coarse[coarse > 0]
    if lit.size == 0:
        return None
    dark, bright = np.percentile(coarse, [2, 98])
    if not bright > dark:  # a small object in an empty grid
        bright = float(np.percentile(lit, 90))
    threshold = dark + 0.1 * (bright - dark)
    tissue = (coarse > threshold) & (coarse_quality > least_quality)
    if not tissue.any():
        return None
    weight = tissue * np.minimum(coarse / bright, 1) ** 0.5
    crowd = ndimage.gaussian_filter(weight, 25 / coarse_voxel, mode="constant", truncate=2.5)
    centre = np.array(np.unravel_index(crowd.argmax(), crowd.shape))
    from_centre = [(np.arange(n) - c) * size for n, c, size in zip(coarse.shape, centre, coarse_voxel, strict=True)]
    distance2 = sum(d**2 for d in np.meshgrid(*from_centre, indexing="ij", sparse=True))
    near = tissue & (distance2 < 40**2)
    brain_level = float(np.median(coarse[near if near.any() else tissue]))

    # 2. the surface, as signed distance [mm], negative inside
    volume = tissue.sum() * coarse_voxel.prod()
    vertices, triangles = grow_surface(
        coarse,
        coarse_voxel,
        centre=centre * coarse_voxel,
        radius=min(20.0, 0.5 * (0.75 / np.pi * volume) ** (1 / 3)),
        dark=float(dark),
        threshold=float(threshold),
        bright=1.3 * brain_level,
        fraction=fraction,
    )
    inside = surface_interior(vertices, triangles, coarse.shape, coarse_voxel)
    if not inside.any():
        return None
    signed = ndimage.distance_transform_edt(~inside, sampling=coarse_voxel)
    signed -= ndimage.distance_transform_edt(inside, sampling=coarse_voxel)

    # 3. brightness of the brain close by, in which coil sensitivity is seen
    core = inside & tissue
    local = brain_level
    if core.any():
        sigma = 12 / coarse_voxel
        local = ndimage.gaussian_filter(core * coarse, sigma) + 1e-3 * brain_level
        local /= ndimage.gaussian_filter(core.astype(np.float32), sigma) + 1e-3
    limit = (dark + darkest * np.maximum(local - dark, 0)).astype(np.float32)

    # 4. tissue at the image's own resolution
    tissue_outside = (tissue & (coarse > limit) & (signed > 2 * reach)).sum()
    alone = tissue_outside < 0.05 * inside.sum()
    fine = (image > _resize(limit, shape)) & (quality > least_quality)
    if not alone:
        distance = _resize(signed.astype(np.float32), shape)
        fine = (fine | (distance < -15)) & (distance < reach)
    return _tidy(fine, closing, voxel_size)


def _tidy(tissue: Mask, closing: float, voxel_size: Triple) -> Mask | None:
    """Smooth the rim, leave the largest part, close furrows, fill holes."""
    if not tissue.any():
        return None
    margin = [int(np.ceil(2 * closing / size)) + 1 for size in voxel_size]
    box = bounding_box(tissue, margin)
    part = largest_part(_majority(tissue[box], voxel_size))
    if not part.any():
        return None
    part = fill_holes(part)
    if closing > 0:
        part = fill_holes(part | _close(part, closing, voxel_size))
    result = torch.zeros_like(tissue)
    result[box] = part
    return result


def largest_part(mask: Mask) -> Mask:
    """The largest part whose voxels touch by their faces; shape (x, y, z)."""
    parts, count = ndimage.label(mask.numpy())
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return torch.from_numpy(parts == sizes.argmax())


def _majority(mask: Mask, voxel_size: Triple, width: float = 1.2) -> Mask:
    """Where most of the surroundings are in the mask: cuts bridges and closes gaps thinner than `width` [mm]."""
    sigma = [width / size for size in voxel_size]
    return torch.from_numpy(ndimage.gaussian_filter(mask.numpy().astype(np.float32), sigma, mode="nearest") > 0.5)


def _close(mask: Mask, radius: float, voxel_size: Triple) -> Mask:
    """Grow by `radius` [mm], then shrink by it, on a grid of about 2 mm; the border of the grid is outside."""
    shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    coarse_shape = [max(round(n * size / max(COARSE, size)), 1) for n, size in zip(shape, voxel_size, strict=True)]
    sampling = [n * size / m for n, size, m in zip(shape, voxel_size, coarse_shape, strict=True)]
    coarse = F.interpolate(mask.float()[None, None], size=coarse_shape, mode="area")[0, 0].numpy() > 0.5
    # the border repeats the outermost voxels, so that closing works up to where the field of view cuts
    pad = [int(np.ceil(2 * radius / size)) + 1 for size in sampling]
    padded = np.pad(coarse, [(p, p) for p in pad], mode="edge")
    if not padded.any():
        return mask
    grown = ndimage.distance_transform_edt(~padded, sampling=sampling) <= radius
    if grown.all():
        return mask
    closed = ndimage.distance_transform_edt(grown, sampling=sampling) > radius
    closed = closed[tuple(slice(p, -p) for p in pad)].astype(np.float32)
    return _resize(closed, shape) > 0.5


def _resize(volume: np.ndarray, shape: Shape) -> Tensor:
    return F.interpolate(torch.from_numpy(volume)[None, None], size=shape, mode="trilinear")[0, 0]


def _best_neighbour(volume: Volume) -> Volume:
    """Largest of the voxel and the six whose faces it touches."""
    best = volume.clone()
    for axis in range(3):
        n = volume.shape[axis]
        low, high = (volume.narrow(axis, 0, n - 1), volume.narrow(axis, 1, n - 1))
        best.narrow(axis, 0, n - 1).copy_(torch.maximum(best.narrow(axis, 0, n - 1), high))
        best.narrow(axis, 1, n - 1).copy_(torch.maximum(best.narrow(axis, 1, n - 1), low))
    return best


def _unmeasured(phase: Echoes) -> Mask:
    """Where phase was set to a constant: voxels of the value that is found in 3 x 3 x 3 equal voxels, if any."""
    unmeasured = torch.ones_like(phase[0], dtype=torch.bool)
    for echo in phase:
        padded = echo[None, None]
        flat = (F.max_pool3d(padded, 3, 1, 1) == -F.max_pool3d(-padded, 3, 1, 1))[0, 0]
        unmeasured &= echo == echo[flat].median() if flat.any() else torch.zeros_like(flat)
    return unmeasured
