"""Background and chi together, from the total field."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from chimap.arrays import Mask, Shape, Triple, Volume
from chimap.inversion.total_variation import total_variation
from chimap.linalg import block_mean, bounding_box, from_blocks
from chimap.physics.dipole import DipoleModel
from chimap.physics.mean_value import harmonic_inside
from chimap.physics.shim import shim_field
from chimap.physics.sources_around import SourcesAround

DEEP = 6.0
"""From so far [mm] within the mask on, voxels are brain and say how noisy it is,"""
AROUND = 15.0
"""about so far [mm] away: coils make the middle of a head noisier than its rim."""
RADIUS = 1.5
"""Of the spheres on the grid of the scan [mm]; the largest side of a voxel if that is more."""
REACH = 30.0
"""Sources lie up to so far [mm] around the mask's bounding box."""
MARGIN = 10.0
"""Of zeros around the brain [mm], so that its periodic image does not lean on it."""


def pdf_tv(
    total_field: Volume,
    field_noise: Volume | None,
    mask: Mask,
    dipole: DipoleModel,
    *,
    coarse: float = 2.4,
    rounds: int = 4,
    iterations: int = 10,
    regularisation: float = 1e-3,
    noise_limit: float = 2.0,
) -> tuple[Volume, Mask]:
    """Local field by fitting sources around the brain and a chi of little variation inside it in turns.

    PDF explains as much of the field as sources outside can, and they can explain much of what comes from inside. Here
    the field of the chi found in the round before is taken off first:

        b <- field of sources outside the mask that fits total field - D chi, weighted by the inverse variance
        chi <- argmin 1/2 |D chi - (total field - b)|^2 + lambda |grad chi|_1

    The rounds are on a coarse grid, as b is smooth. On the grid of the scan b is the harmonic field, equal to its own
    mean over small spheres, that few steps lead to from there; at the rim, where no sphere fits, the local field is
    that of chi.

    Args:
        total_field: [ppm], shape (x, y, z).
        field_noise: Of the total field, in any unit; its inverse square weighs, up to that of the median. None weighs
            all voxels alike.
        mask: Where the total field is valid.
        dipole: Voxel size and direction of B0.
        coarse: Voxels of the rounds, about [mm].
        rounds: So many.
        iterations: Steps on the grid of the scan.
        regularisation: lambda [ppm mm].
        noise_limit: Voxels at the rim whose field is this many times as noisy as that of the brain below them are
            given up: whatever is wrong at the rim is carried inwards.

    Returns:
        Local field [ppm], zero outside the second result, the mask without the voxels that were given up.

    Raises:
        InputError: No sphere fits into the mask.

    References:
        The parts: Liu et al. 2011, doi:10.1002/nbm.1670; Bilgic et al. 2014, doi:10.1002/mrm.25029; Wen et al. 2014,
        doi:10.1002/mrm.24998. Why background and chi belong together: Liu et al. 2017, doi:10.1002/mrm.26331.
    """
    size = dipole.voxel_size
    bounding_box(mask)  # refuses an empty one
    mask = mask.clone() if field_noise is None else _trusted(mask, field_noise, size, noise_limit)
    box = bounding_box(mask)
    inside = mask[box]
    # what far sources make is a polynomial: without it there is less to solve for
    field = ((total_field - shim_field(total_field, mask.to(total_field), size)) * mask)[box]
    weight = inside.to(field)
    if field_noise is not None:
        noise = field_noise[box]
        weight = torch.where(inside, (noise[inside].median() / noise).clamp_max(1).square(), 0)
    x, y, z = (max(round(coarse / length), 1) for length in size)
    at_rim, start = _rounds(field, weight, inside, size, dipole.b0_direction, (x, y, z), rounds, regularisation)
    radius = max(RADIUS, *size)
    background, _ = harmonic_inside((field - at_rim) * inside, inside, size, radius, start=start, iterations=iterations)
    local = torch.zeros_like(total_field)
    local[box] = (field - background) * inside
    return local, mask


def _trusted(mask: Mask, noise: Volume, voxel_size: Triple, limit: float) -> Mask:
    """The mask without the noisy voxels at its rim, noise being compared with that of the depth below."""
    box = bounding_box(mask)
    inside = np.pad(mask[box].numpy(force=True), 1)
    level = np.pad(noise[box].clamp(1e-30, 1e30).log().numpy(force=True), 1)
    deep = _deeper_than(DEEP, inside, voxel_size)
    deep = deep if deep.any() else inside
    # a voxel without signal must not speak for others
    level = np.minimum(level, np.median(level[deep]) + math.log(10))
    volumes = np.stack([deep, deep * level]).astype(level.dtype)
    share, around = _smoothed(volumes, [AROUND / size for size in voxel_size])
    around = (around + 1e-6 * np.median(level[deep])) / (share + 1e-6)
    parts = np.empty(inside.shape, dtype=np.int32)
    ndimage.label(inside & (level - around <= math.log(limit)), output=parts)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    kept = inside if not sizes.any() else ndimage.binary_fill_holes(parts == sizes.argmax()) & inside
    result = torch.zeros_like(mask)
    result[box] = torch.from_numpy(kept[1:-1, 1:-1, 1:-1]).to(mask.device)
    return result


def _deeper_than(depth: float, inside: np.ndarray, voxel_size: Triple) -> np.ndarray:
    """Voxels of a mask (x, y, z) farther than `depth` [mm] from all outside, whose exact distance costs more."""
    square = torch.where(torch.from_numpy(inside), torch.inf, 0)
    for axis, size in enumerate(voxel_size):
        nearest, n = square.clone(), square.shape[axis]
        for shift in range(1, min(math.ceil(depth / size) + 1, n)):
            farther = square + (shift * size) ** 2
            for here, there in ((0, shift), (shift, 0)):
                part = nearest.narrow(axis, here, n - shift)
                torch.minimum(part, farther.narrow(axis, there, n - shift), out=part)
        square = nearest
    return (square > (depth * (1 + 1e-6)) ** 2).numpy()  # a hair more, so that rounding decides no tie


def _smoothed(volumes: np.ndarray, widths: Sequence[float]) -> np.ndarray:
    """`ndimage.gaussian_filter` of volumes (n, x, y, z) as products with matrices: for wide filters much faster."""
    for width in reversed(widths):
        kernel = ndimage.gaussian_filter1d(np.eye(volumes.shape[-1], dtype=volumes.dtype), width, axis=0)
        volumes = np.moveaxis(volumes @ kernel.T, -1, 1)  # the next axis comes last
    return volumes


def _rounds(
    field: Volume,
    weight: Volume,
    inside: Mask,
    voxel_size: Triple,
    b0: Triple,
    step: Shape,
    rounds: int,
    regularisation: float,
) -> tuple[Volume, Volume]:
    """What the rounds on voxels `step` times as large end with, on the grid of the scan: the field of chi, and b."""
    a, b, c = (length * n for length, n in zip(voxel_size, step, strict=True))
    size = (a, b, c)
    mask = block_mean(inside.to(field), step) > 0.5
    trust = block_mean(weight, step) * mask
    coarse = torch.where(mask, block_mean(field * weight, step) / trust.clamp_min(1e-6), 0)
    i, j, k = coarse.shape
    near = DipoleModel((i, j, k), size, b0, padding=[math.ceil(MARGIN / length) for length in size]).to(field.device)
    far = DipoleModel((i, j, k), size, b0, padding=[n // 2 for n in (i, j, k)]).to(field.device)
    around = SourcesAround(mask, trust, size, b0, reach=REACH)
    local, background = torch.zeros_like(coarse), torch.zeros_like(coarse)
    for number in range(rounds):
        background = around.fitted((coarse - local) * mask, iterations=10 if number else 40)
        chi = total_variation((coarse - background) * mask, mask, near, regularisation=regularisation)
        local = far(torch.where(mask, chi - chi[mask].mean(), 0))
    return from_blocks(local, step, field.shape), from_blocks(background, step, field.shape)
