"""Inversion with a total-variation penalty, and a quadratic data term."""

from collections.abc import Callable

import torch
from torch import Tensor

from chimap.arrays import Mask, Volume
from chimap.inversion.admm import FixedData, SplitData, Variation, minimised
from chimap.inversion.batch import one_by_one
from chimap.linalg import crop, rfft
from chimap.physics.dipole import DipoleModel


@one_by_one
def total_variation(
    local_field: Volume,
    mask: Mask,
    dipole: DipoleModel,
    weight: Volume | None = None,
    *,
    regularisation: float = 3e-4,
    penalty: float = 0.03,
    iterations: int = 50,
    tolerance: float = 1e-3,
    progress: Callable[[int, int], None] | None = None,
) -> Volume:
    r"""Minimise 1/2 |W (D chi - f)|^2 + lambda |grad chi|_1 over chi on the whole grid.

    Without a weight the field counts as zero outside the mask, as published, and one pair of FFTs an iteration is
    enough. With a weight, D chi is split off as well (as in FANSI) and a second pair is needed.

    Args:
        local_field: f [ppm], shape (*batch, x, y, z).
        mask: Where f is valid, same shape.
        dipole: D, for the same grid.
        weight: W, no unit, about 1 where the field is good, zero where it is not known; same shape.
        regularisation: lambda [ppm mm]; the gradient is anisotropic (sum over three directions), periodic, in 1/mm.
        penalty: rho [mm^2], the ADMM's weight of grad chi = z: changes the way to the result, not the result.
        iterations: Most iterations.
        tolerance: Stop once chi changes by less than this share from one iteration to the next.
        progress: Called with (iteration, iterations).

    Returns:
        chi [ppm], zero outside the mask.

    References:
        Bilgic et al. 2014, doi:10.1002/mrm.25029; Milovic et al. 2018, doi:10.1002/mrm.27073.
    """
    shape, d = dipole.padded_shape, dipole.spectrum
    if weight is None:
        data = FixedData(d.square(), rfft(local_field * mask, shape).mul_(d))
    else:
        data = SplitData(mask, dipole, proximal_of_square(local_field[mask], weight[mask]))
    prior = Variation(shape, dipole.voxel_size, regularisation=regularisation, penalty=penalty, like=local_field)
    chi = minimised(data, prior, shape, iterations=iterations, tolerance=tolerance, progress=progress)
    return crop(chi, dipole.shape) * mask


def proximal_of_square(field: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """t to argmin over y of 1/2 W^2 (y - f)^2 + 1/2 (y - t)^2, voxel by voxel."""
    square = weight.square()
    goal, width = square * field, square + 1
    return lambda t: torch.add(t, goal).div_(width)
