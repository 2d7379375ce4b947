"""Weighted least squares stopped early (LSQR), that less its streaks (iLSQR), and inversion in two levels (STAR).

Least squares are solved by conjugate gradients on the normal equations, which in exact arithmetic take the steps of
LSQR (Paige and Saunders 1982, doi:10.1145/355984.355989). The unknown is held in k-space, where the dipole kernel is
diagonal, so that a step costs one pair of FFTs; only the box around the mask is kept of each volume.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from chimap.arrays import Mask, Progress, Volume
from chimap.inversion.direct import tkd
from chimap.inversion.total_variation import total_variation
from chimap.linalg import SPACE, ahead, behind, bounding_box, conjugate_gradient, irfft, rfft
from chimap.physics.dipole import DipoleModel
from chimap.physics.mean_value import sphere_spectrum

FLAT = (60.0, 99.9)
"""Percentiles of the field's Laplacian between which a voxel's weight falls from 1 to 0."""
EDGES = (50.0, 70.0)
"""Percentiles of a difference in FastQSM's map between which it turns from no edge to an edge."""
TRUST = (1.0, 30.0)
"""Percentiles of |D|^`POWER` between which a frequency of FastQSM turns from smoothed to its own."""
POWER = 1e-3
SPHERE = 3.0
"""Radius of FastQSM's spherical mean [mm]."""
FIT = 0.3
"""How far least squares go from TKD's chi: the share of the gradient that is left."""


def lsqr(
    local_field: Volume,
    mask: Mask,
    dipole: DipoleModel,
    weight: Volume | None = None,
    *,
    iterations: int = 50,
    tolerance: float = FIT,
    percentiles: tuple[float, float] = FLAT,
    progress: Progress | None = None,
) -> Volume:
    """Minimise |W (D chi - f)|^2 over chi on the whole grid, and stop early: that is the regularisation.

    W is the weight times one that falls from 1 to 0 where the Laplacian of f is strong: there the field is noisy, or
    broken by unwrapping. The start is TKD's chi, not zero as published: from zero, strong sources, around which W is
    small, would come out far too weak.

    Args:
        local_field: f [ppm], shape (*batch, x, y, z).
        mask: Where f is known, same shape; W is zero elsewhere.
        dipole: D, for the same grid.
        weight: No unit, about 1 where the field is good; same shape.
        iterations: Most steps.
        tolerance: Stop once the gradient of the objective is below this share of that at the start.
        percentiles: Of |Laplacian of f| in the mask, between which W falls linearly. (100, 100) leaves it at 1.
        progress: Called with step and steps.

    Returns:
        chi [ppm], zero outside the mask.

    References:
        Li et al. 2011, doi:10.1016/j.neuroimage.2010.11.088; weights: Li et al. 2015,
        doi:10.1016/j.neuroimage.2014.12.043.
    """
    start = tkd(local_field, mask, dipole)

    def one(inside: Mask, field: Volume, residual: Volume, weight: Volume | None) -> Volume:
        square = data_weight(field, inside, dipole, weight, percentiles).square_()
        return least_squares(residual, square, dipole, iterations, tolerance, counted(progress, iterations))

    return in_boxes(one, mask, local_field, local_field - dipole(start), weight).add_(start)


def ilsqr(
    local_field: Volume,
    mask: Mask,
    dipole: DipoleModel,
    weight: Volume | None = None,
    *,
    threshold: float = 0.1,
    iterations: int = 50,
    tolerance: float = 1e-2,
    progress: Progress | None = None,
) -> Volume:
    """chi of least squares less its streaks, which lie in k-space near the cone and in space away from edges.

    1. chi_0 comes close to the minimum of |W (D chi - f)|^2 as `lsqr` does by default: from TKD's chi, in a few steps.
    2. FastQSM shows where edges are: sign(D) f(k), with frequencies near the cone smoothed by a spherical mean. Its
       scale does not matter here and is left as it is.
    3. The streaks s minimise the sum over directions i of |W_i d_i (chi_0 - s)|^2 over the frequencies with
       |D| < threshold. W_i is 1 where FastQSM has no edge along i and 0 where it has one.
    4. chi = chi_0 - s.

    Args:
        local_field: f [ppm], shape (*batch, x, y, z).
        mask: Where f is known, same shape.
        dipole: D, for the same grid.
        weight: No unit, about 1 where the field is good; same shape.
        threshold: |D| below which a frequency may hold streaks, no unit.
        iterations: Most steps for s, and as many for chi_0.
        tolerance: Stop once the gradient of the objective of s is below this share of that at s = 0.
        progress: Called with step and steps.

    Returns:
        chi [ppm], zero outside the mask.

    References:
        Li et al. 2015, doi:10.1016/j.neuroimage.2014.12.043.
    """
    start = tkd(local_field, mask, dipole)

    def one(inside: Mask, field: Volume, residual: Volume, start: Volume, weight: Volume | None) -> Volume:
        square = data_weight(field, inside, dipole, weight, FLAT).square_()
        chi = least_squares(residual, square, dipole, iterations, FIT, counted(progress, 2 * iterations))
        chi += start
        squares = [each.square_() for each in edge_weights(fast_qsm(field, inside, dipole), inside, dipole)]
        after = counted(progress, 2 * iterations, iterations)
        return chi.sub_(streaks(chi, squares, dipole, threshold, iterations, tolerance, after))

    return in_boxes(one, mask, local_field, local_field - dipole(start), start, weight)


def star(
    local_field: Volume,
    mask: Mask,
    dipole: DipoleModel,
    weight: Volume | None = None,
    *,
    strong_regularisation: float = 5e-3,
    regularisation: float = 3e-4,
    iterations: int = 50,
    tolerance: float = 1e-3,
    progress: Progress | None = None,
) -> Volume:
    """Two inversions that each minimise 1/2 |W (D chi - f)|^2 + lambda |grad chi|_1: strong sources, then the rest.

    The first has so large a lambda that only strong sources are left, without streaks. The second, with the usual
    lambda, is given what the field of those does not explain, and the results are added. The paper searches for the
    first lambda; here it is a number: sources come through whose chi times radius exceeds about 50 times it.

    Args:
        local_field: f [ppm], shape (*batch, x, y, z).
        mask: Where f is valid, same shape.
        dipole: D, for the same grid.
        weight: W, see `total_variation`.
        strong_regularisation: lambda of the first inversion [ppm mm].
        regularisation: lambda of the second [ppm mm].
        iterations: Most iterations of each.
        tolerance: Stop each once its chi changes by less than this share from one iteration to the next.
        progress: Called with step and steps.

    Returns:
        chi [ppm], zero outside the mask.

    References:
        Wei et al. 2015, doi:10.1002/nbm.3383.
    """

    def level(field: Volume, regularisation: float, done: int) -> Volume:
        count = counted(progress, 2 * iterations, done)
        return total_variation(
            field,
            mask,
            dipole,
            weight,
            regularisation=regularisation,
            penalty=100 * regularisation,
            iterations=iterations,
            tolerance=tolerance,
            progress=lambda *_: count(),
        )

    strong = level(local_field, strong_regularisation, 0)
    return strong + level(local_field - dipole(strong), regularisation, iterations)


def data_weight(
    field: Volume, mask: Mask, dipole: DipoleModel, weight: Volume | None, percentiles: tuple[float, float]
) -> Volume:
    """W of `lsqr` for one field (x, y, z): zero outside the mask. Differences to voxels outside count as zero."""
    laplacian = weighted_laplacian(field, neighbours(mask), dipole)
    chosen = falling(laplacian.abs_(), mask, percentiles)
    return chosen if weight is None else chosen.mul_(weight)


def edge_weights(chi: Volume, mask: Mask, dipole: DipoleModel) -> list[Volume]:
    """W_i of `ilsqr` for the forward differences along x, y, z: zero where one of the two voxels is outside."""
    weights = []
    for axis, size, both in zip(SPACE, dipole.voxel_size, neighbours(mask), strict=True):
        weights.append(falling(ahead(chi, axis, size).abs_(), mask, EDGES).mul_(both))
    return weights


def falling(values: Volume, mask: Mask, percentiles: tuple[float, float]) -> Volume:
    """1 below the first percentile of the values in the mask, 0 above the second and outside, linear between."""
    low, high = (percentile(values[mask], share) for share in percentiles)
    tiny = torch.finfo(values.dtype).tiny
    return ((high - values) / (high - low).clamp_min(tiny)).clamp_(0, 1).mul_(mask)


def percentile(values: Tensor, share: float) -> Tensor:
    """The value that `share` percent of a vector do not exceed. `torch.quantile` takes 16 million values at most."""
    return values.kthvalue(min(max(round(share / 100 * len(values)), 1), len(values))).values


def neighbours(mask: Mask) -> list[Mask]:
    """Voxels that are in the mask with the next one along x, y, z."""
    pairs = []
    for axis in SPACE:
        both = mask & mask.roll(-1, axis)
        both.select(axis, -1).fill_(False)
        pairs.append(both)
    return pairs


def weighted_laplacian(volume: Volume, weights: Sequence[Tensor], dipole: DipoleModel) -> Volume:
    """Sum over axes of the backward difference of weight times forward difference [1/mm^2]."""
    total = torch.zeros_like(volume)
    for axis, size, weight in zip(SPACE, dipole.voxel_size, weights, strict=True):
        total += behind(ahead(volume, axis, size).mul_(weight), axis, size)
    return total


def fast_qsm(field: Volume, mask: Mask, dipole: DipoleModel) -> Volume:
    """FastQSM of a field (x, y, z), zero outside the mask, up to a factor: it shows edges."""
    shape, d = dipole.padded_shape, dipole.spectrum
    trust = d.abs().pow_(POWER)
    low, high = (percentile(trust.flatten(), share) for share in TRUST)
    trust = trust.sub_(low).div_(high - low).clamp_(0, 1)
    radius = max(SPHERE, *dipole.voxel_size)
    smooth = trust + (1 - trust) * sphere_spectrum(shape, dipole.voxel_size, radius, like=field)
    chi = irfft(rfft(field * mask, shape).mul_(d.sign() * smooth), shape, field.shape).mul_(mask)
    return irfft(rfft(chi, shape).mul_(smooth), shape, field.shape).mul_(mask)


def least_squares(
    field: Volume,
    square: Volume,
    dipole: DipoleModel,
    iterations: int,
    tolerance: float,
    count: Callable[[], None],
) -> Volume:
    """Minimise the sum of `square` (D chi - field)^2 over chi on the whole padded grid; its part where the field is."""
    shape = dipole.padded_shape
    spread = multiplicity(shape[2], like=field).sqrt_()
    there, back = dipole.spectrum / spread, dipole.spectrum * spread

    def normal(chi: Tensor) -> Tensor:
        count()
        predicted = irfft(as_complex(chi) * there, shape, field.shape)
        return as_real(rfft(predicted.mul_(square), shape).mul_(back))

    right = as_real(rfft(field * square, shape).mul_(back))
    chi = conjugate_gradient(normal, right, iterations=iterations, tolerance=tolerance)
    return irfft(as_complex(chi) / spread, shape, field.shape)


def streaks(
    chi: Volume,
    squares: Sequence[Volume],
    dipole: DipoleModel,
    threshold: float,
    iterations: int,
    tolerance: float,
    count: Callable[[], None],
) -> Volume:
    """Minimise the sum over i of `squares`_i (d_i (chi - s))^2 over s of the frequencies with |D| < threshold."""
    shape, d = dipole.padded_shape, dipole.spectrum
    near = d.abs() < threshold
    near[0, 0, 0] = False  # no difference shows the mean
    (places,) = torch.nonzero(near.flatten(), as_tuple=True)
    spread = multiplicity(shape[2], like=chi).sqrt_()[places % d.shape[2]]
    spectrum = torch.zeros(d.shape, dtype=chi.dtype.to_complex(), device=d.device)

    def image(s: Tensor) -> Volume:
        spectrum.view(-1)[places] = as_complex(s).flatten() / spread
        return irfft(spectrum, shape, chi.shape)

    def flatness(volume: Volume) -> Tensor:
        slope = rfft(weighted_laplacian(volume, squares, dipole), shape)
        return as_real((slope.view(-1)[places] * spread.neg())[None, None])

    def normal(s: Tensor) -> Tensor:
        count()
        return flatness(image(s))

    return image(conjugate_gradient(normal, flatness(chi), iterations=iterations, tolerance=tolerance))


def multiplicity(z: int, *, like: Tensor) -> Tensor:
    """How many frequencies of the whole spectrum each plane of the half spectrum stands for: 1 or 2.

    A half spectrum times its root has the norm of the volume, up to the FFT's constant, and can take part in
    `conjugate_gradient` as a real volume (`as_real`).
    """
    counts = like.new_full((z // 2 + 1,), 2)
    counts[0] = 1
    if z % 2 == 0:
        counts[-1] = 1
    return counts


def as_real(spectrum: Tensor) -> Tensor:
    """Real and imaginary parts in turns along z, without a copy."""
    return torch.view_as_real(spectrum).flatten(-2)


def as_complex(parts: Tensor) -> Tensor:
    """Undo `as_real`, without a copy."""
    return torch.view_as_complex(parts.unflatten(-1, (-1, 2)))


def counted(progress: Progress | None, steps: int, done: int = 0) -> Callable[[], None]:
    """A function that tells `progress` of one step more at each call."""

    def count() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, steps)

    return count


def in_boxes(one: Callable[..., Volume], mask: Mask, field: Volume, *more: Volume | None) -> Volume:
    """`one(mask, field, *more)` for each of a batch (*batch, x, y, z), all cut to the box around its mask."""
    chi = torch.zeros_like(field)

    def flat(volume: Tensor) -> Tensor:
        return volume.expand_as(chi).reshape(-1, *chi.shape[-3:])

    masks, results = flat(mask), chi.view(-1, *chi.shape[-3:])
    volumes = [None if volume is None else flat(volume) for volume in (field, *more)]
    for index, inside in enumerate(masks):
        box = bounding_box(inside)
        parts = [None if volume is None else volume[index][box] for volume in volumes]
        results[index][box] = one(inside[box], *parts) * inside[box]
    return chi
