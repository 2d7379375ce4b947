"""Background and chi together, from the total field."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from chimap.arrays import Mask, Shape, Triple, Volume
from chimap.errors import InputError
from chimap.inversion.total_variation import total_variation
from chimap.linalg import bounding_box
from chimap.physics.dipole import DipoleModel
from chimap.physics.mean_value import harmonic_inside
from chimap.physics.shim import shim_field

MARGIN = 10.0
"""Of zeros around the brain [mm], so that its periodic image does not lean on it."""


def lbv_tv(
    total_field: Volume,
    field_noise: Volume | None,
    mask: Mask,
    dipole: DipoleModel,
    *,
    radius: float = 1.5,
    coarse: float = 3.0,
    rounds: int = 4,
    iterations: int = 5,
    regularisation: float = 3e-4,
) -> tuple[Volume, Mask]:
    """Local field by solving for a harmonic background and for a chi of little variation in turns.

    A harmonic background is known from its values at the rim of the mask. There the measured field is background plus
    local field; to take it for background alone, as LBV and iSMV do, spoils the result far inside. Here the local field
    at the rim is that of the chi found in the round before:

        b <- harmonic inside the mask, total field - D chi at its rim
        chi <- argmin 1/2 |D chi - (total field - b)|^2 + lambda |grad chi|_1

    The rounds are on a coarse grid, as b is smooth. From there b is brought to the grid of the scan by few steps: its
    large features are better known from coarse voxels, which average the rim. Where the spheres do not fit into the
    mask, the local field is that of chi.

    Args:
        total_field: [ppm], shape (x, y, z).
        field_noise: Not used; part of the shared signature.
        mask: Where the total field is valid.
        dipole: Voxel size and direction of B0.
        radius: Of the spheres whose means the harmonic field equals [mm]; never less than the largest side of a voxel.
        coarse: Voxels of the rounds, about [mm].
        rounds: So many.
        iterations: Most conjugate-gradient steps for the background on the grid of the scan.
        regularisation: lambda [ppm mm].

    Returns:
        Local field [ppm], zero outside the mask; the same mask.

    Raises:
        InputError: No sphere fits into the mask.

    References:
        The parts: Zhou et al. 2014, doi:10.1002/nbm.3064; Wen et al. 2014, doi:10.1002/mrm.24998; Bilgic et al. 2014,
        doi:10.1002/mrm.25029. Why background and chi belong together: Liu et al. 2017, doi:10.1002/mrm.26331.
    """
    size = dipole.voxel_size
    box = bounding_box(mask)
    inside = mask[box]
    # what far sources make is a polynomial: without it there is less to solve for
    field = ((total_field - shim_field(total_field, mask.to(total_field), size)) * mask)[box]
    radius = max(radius, *size)
    x, y, z = (max(round(coarse / length), 1) for length in size)
    at_rim, start = _rounds(field, inside, size, dipole.b0_direction, (x, y, z), radius, rounds, regularisation)
    background, inner = harmonic_inside(
        (field - at_rim) * inside, inside, size, radius, start=start, iterations=iterations
    )
    if not inner.any():
        raise InputError(f"no sphere of {radius:g} mm fits into the mask of {int(mask.sum())} voxels")
    local = torch.zeros_like(total_field)
    local[box] = (field - background) * inside
    return local, mask.clone()


def _rounds(
    field: Volume,
    inside: Mask,
    voxel_size: Triple,
    b0: Triple,
    step: Shape,
    radius: float,
    rounds: int,
    regularisation: float,
) -> tuple[Volume, Volume]:
    """What the rounds on voxels `step` times as large end with, on the grid of the scan: the field of chi, and b."""
    a, b, c = (length * n for length, n in zip(voxel_size, step, strict=True))
    size, radius = (a, b, c), max(radius, a, b, c)
    share = _mean_of_blocks(inside.to(field), step)
    mask = share > 0.5
    coarse = torch.where(mask, _mean_of_blocks(field, step) / share.clamp_min(0.5), 0)
    i, j, k = coarse.shape
    near = DipoleModel((i, j, k), size, b0, padding=[math.ceil(MARGIN / length) for length in size]).to(field.device)
    far = DipoleModel((i, j, k), size, b0, padding=[n // 2 for n in (i, j, k)]).to(field.device)
    local, background = torch.zeros_like(coarse), torch.zeros_like(coarse)
    for number in range(rounds):
        background, inner = harmonic_inside(
            (coarse - local) * mask, mask, size, radius, start=background if number else None
        )
        known = mask if number else inner  # from the second round on there is something to go by at the rim
        if not known.any():
            break
        chi = total_variation((coarse - background) * known, known, near, regularisation=regularisation)
        local = far(torch.where(known, chi - chi[known].mean(), 0))
    x, y, z = field.shape
    wide = [n * m for n, m in zip((i, j, k), step, strict=True)]

    def fine(volume: Tensor) -> Tensor:
        return F.interpolate(volume[None, None], size=wide, mode="trilinear", align_corners=False)[0, 0, :x, :y, :z]

    # beyond the mask the background is zero, which must not count
    return fine(local), fine(background) / fine(mask.to(field)).clamp_min(1e-3)


def _mean_of_blocks(volume: Tensor, step: Shape) -> Tensor:
    padding = [extra for n, m in zip(volume.shape[::-1], step[::-1], strict=True) for extra in (0, -n % m)]
    return F.avg_pool3d(F.pad(volume, padding)[None, None], step)[0, 0]
