"""Rapid two-step inversion: what the field tells well is solved for, the rest of k-space filled in."""

from chimap.arrays import Mask, Progress, Volume
from chimap.inversion.admm import FixedData, Variation, minimised
from chimap.inversion.batch import one_by_one
from chimap.linalg import conjugate_gradient, crop, irfft, rfft
from chimap.physics.dipole import DipoleModel

GRADIENT_STEP = 1e-3
"""ADMM's threshold for gradients of chi [ppm/mm]: changes the way to the result only."""
RELAXATION = 1.8


@one_by_one
def rts(
    local_field: Volume,
    mask: Mask,
    dipole: DipoleModel,
    *,
    threshold: float = 0.15,
    steps: int = 6,
    regularisation: float = 1e-5,
    iterations: int = 20,
    tolerance: float = 1e-2,
    progress: Progress | None = None,
) -> Volume:
    r"""Minimise 1/2 |S (F chi - F x)|^2 + lambda |grad chi|_1, S being 1 where |D| > delta and 0 elsewhere.

    x is the first step's result: D x = f solved by a few steps of conjugate gradients from 0, which find what is well
    conditioned before the rest, and set to zero outside the mask. It is where the second step starts.

    Args:
        local_field: f [ppm], shape (*batch, x, y, z).
        mask: Where f is valid, same shape; elsewhere the field counts as zero.
        dipole: D, for the same grid.
        threshold: delta, no unit.
        steps: Of conjugate gradients on D D x = D f. Fewer leave more of chi out, more let errors of the field in.
            Published are four of LSMR, which minimises |D (D x - f)| over the
            same vectors.
        regularisation: lambda [ppm mm], which is 1 / mu with mu in public implementations; so small that what is kept
            of x hardly changes. The gradient is anisotropic, periodic, in 1/mm.
        iterations: Most iterations of the second step.
        tolerance: Stop once chi changes by less than this share from one iteration to the next.
        progress: Called with (iteration, iterations) of the second step.

    Returns:
        chi [ppm], zero outside the mask.

    References:
        Kames et al. 2018, doi:10.1016/j.neuroimage.2017.11.018.
    """
    shape, d = dipole.padded_shape, dipole.spectrum
    square = d.square()
    x = conjugate_gradient(
        lambda volume: irfft(rfft(volume).mul_(square), shape),
        irfft(rfft(local_field * mask, shape).mul_(d), shape),
        iterations=steps,
        tolerance=0.0,
    )
    start = rfft(crop(x, dipole.shape) * mask, shape)
    kept = (d.abs() > threshold).to(d.dtype)
    penalty = regularisation / GRADIENT_STEP
    prior = Variation(
        shape,
        dipole.voxel_size,
        regularisation=regularisation,
        penalty=penalty,
        relaxation=RELAXATION,
        like=local_field,
    )
    data = FixedData(kept, start * kept)
    options = {"iterations": iterations, "tolerance": tolerance, "progress": progress}
    chi = minimised(data, prior, shape, start=start, **options)
    return crop(chi, dipole.shape) * mask
