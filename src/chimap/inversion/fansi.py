"""Nonlinear inversion with a sparse gradient: FANSI and its weak-harmonic extension."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from chimap.arrays import Mask, Progress, Triple, Volume
from chimap.errors import InputError
from chimap.inversion.admm import CACHED, GeneralisedVariation, SplitData, Variation, minimised, padded
from chimap.inversion.batch import one_by_one
from chimap.linalg import crop, gradient
from chimap.physics.dipole import DipoleModel

TURN = 2 * math.pi
NEWTON_STEPS = 6

# What follows changes the way to the result, not the result.
GRADIENT_STEP = 1.5e-3
"""Gradients of chi [ppm/mm] up to this are absorbed by one step; with five times as much it takes twice the iterations.
Published is 0.01 rad/voxel, 6e-4 ppm/mm where 1 ppm is 16 rad and a voxel 1 mm."""
DATA_PENALTY = 0.1
"""ADMM's weight of D chi = y, no unit, and"""
RELAXATION = 1.8
"""its relaxation: with 1 for both, as published, a tenth of chi is still to come after 100 iterations."""


@one_by_one
def fansi(
    local_field: Volume,
    mask: Mask,
    dipole: DipoleModel,
    weight: Volume | None = None,
    *,
    radians_per_ppm: float = 16.0,
    regularisation: float = 2e-4,
    tgv: bool = False,
    bend: float = 2.0,
    edges: float = 0.0,
    harmonic: float = 0.0,
    iterations: int = 50,
    tolerance: float = 1e-3,
    progress: Progress | None = None,
) -> Volume:
    r"""Minimise 1/(2 s^2) |W (exp(i s (D chi + h)) - exp(i s f))|^2 + lambda |E grad chi|_1 + beta/2 |M Laplace h|^2.

    The phase may be off by whole turns, and what it tells is worth as much as its noise is small: W is the magnitude.
    Divided by s^2, lambda means the same at any echo time and field strength.

    Args:
        local_field: f [ppm], shape (*batch, x, y, z).
        mask: M, where f is valid, same shape.
        dipole: D, for the same grid.
        weight: W, no unit, about 1 in the mean; same shape, 1 in the mask if None.
        radians_per_ppm: s, the phase [rad] of a field of 1 ppm at the echo time that noise is to be judged by.
        regularisation: lambda [ppm mm]; norms of gradients are sums over the three directions. Published is
            2e-4 / s mm, for data with little noise.
        tgv: Minimise lambda |E (grad chi - w)|_1 + lambda_0 |symmetrised gradient of w|_1 over w as well: chi is made
            of parts that are smooth, not flat.
        bend: lambda_0 / lambda [mm], as published for voxels of 1 mm.
        edges: Share of the differences of W between neighbours, the largest, that count as edges: there E is below 1,
            in proportion to 1 / difference. 0 for E = 1 everywhere.
        harmonic: beta [mm^4]: h, what background removal left, may be had at the cost of its Laplacian. 0 for h = 0;
            published is 150.
        iterations: Most iterations. With h or w it takes two to three times as many to come as close to the minimum.
        tolerance: Stop once chi changes by less than this share from one iteration to the next.
        progress: Called with (iteration, iterations).

    Returns:
        chi [ppm], zero outside the mask.

    Raises:
        InputError: Edges are asked for and there is no weight.

    References:
        Milovic et al. 2018, doi:10.1002/mrm.27073; h: Milovic et al. 2019, doi:10.1002/mrm.27483.
    """
    shape, size = dipole.padded_shape, dipole.voxel_size
    if edges and weight is None:
        raise InputError("edges need a magnitude to be taken from")
    shares = None if weight is None or not edges else edge_shares(weight, mask, size, edges)
    if shares is not None:
        shares = 1 - padded(1 - shares, shape)
    strengths = torch.ones_like(local_field) if weight is None else weight
    data = SplitData(
        mask,
        dipole,
        proximal_of_phase(local_field[mask], strengths[mask], radians_per_ppm),
        penalty=DATA_PENALTY,
        relaxation=RELAXATION,
        harmonic=harmonic,
    )
    options = {
        "regularisation": regularisation,
        "penalty": regularisation / GRADIENT_STEP,
        "relaxation": RELAXATION,
        "like": local_field,
        "edges": shares,
    }
    if tgv:
        prior = GeneralisedVariation(shape, size, bend=bend * regularisation, **options)
    else:
        prior = Variation(shape, size, **options)
    chi = minimised(data, prior, shape, iterations=iterations, tolerance=tolerance, progress=progress)
    return crop(chi, dipole.shape) * mask


def proximal_of_phase(
    field: Tensor, weight: Tensor, radians_per_ppm: float, penalty: float = DATA_PENALTY
) -> Callable[[Tensor], Tensor]:
    """t to argmin over y of W^2 (1 - cos(s (y - f))) / s^2 + r/2 (y - t)^2, voxel by voxel; r is the penalty.

    With e = s (y - f) and tau = s (t - f), both less the whole turns in tau, the root of (W^2 / r) sin e + e - tau next
    to 0 is sought. For tau > 0 the function is concave up to pi and not positive at tau / (W^2 / r + 1), from where
    Newton's steps grow towards the root, whatever W is.
    """
    square = weight.square() / penalty
    size = CACHED if field.device.type == "cpu" else len(field) or 1

    def proximal(t: Tensor) -> Tensor:
        # in parts that fit the processor's cache
        parts = zip(t.split(size), field.split(size), square.split(size), strict=True)
        return torch.cat([part(*three) for three in parts])

    def part(t: Tensor, field: Tensor, square: Tensor) -> Tensor:
        tau = torch.sub(t, field).mul_(radians_per_ppm)
        turns = (tau / TURN).round_().mul_(TURN)
        tau.sub_(turns)
        e = tau / (square + 1)
        for _ in range(NEWTON_STEPS):
            slope = e.cos().mul_(square).add_(1).clamp_min_(1e-3)
            step = e.sin().mul_(square).add_(e).sub_(tau).div_(slope)
            e.sub_(step)
            # the next step would be about the square of this one
            if not step.numel() or step.abs_().max() < 1e-3:
                break
        return e.add_(turns).div_(radians_per_ppm).add_(field)

    return proximal


def edge_shares(magnitude: Volume, mask: Mask, voxel_size: Triple, share: float) -> Tensor:
    """What the penalty of each difference is multiplied by, (3, x, y, z): less where the magnitude has an edge.

    1 up to the size of the magnitude's difference that `share` of all those between two voxels of the mask exceed, and
    that size over the difference's beyond.
    """
    steps = gradient(magnitude, voxel_size).abs_()
    both = gradient(mask.to(magnitude), (1.0, 1.0, 1.0)) == 0
    both &= mask
    values = steps[both]
    count = values.numel()
    level = values.kthvalue(max(1, min(count, round((1 - share) * count)))).values
    return torch.where(both & (steps > level), level / steps, 1.0)
