"""Inversions with the complex phase factor as data: noise counts as it is, and a voxel a turn off does no harm."""

from collections.abc import Callable

import torch
from torch import Tensor

from chimap.arrays import Mask, Triple, Volume
from chimap.errors import InputError
from chimap.inversion.batch import one_by_one
from chimap.linalg import SPACE, conjugate_gradient, crop, irfft, laplacian_spectrum, rfft
from chimap.physics.dipole import DipoleModel
from chimap.physics.mean_value import sphere_mean, sphere_spectrum, where_whole

RADIANS_PER_PPM = 16.0
"""Phase [rad] of 1 ppm at 3 T and 20 ms."""
BRIGHT = 0.9
"""Share of the voxels whose weight a step of NDI counts in full; the brightest few would slow all others down."""
LINEAR_STEPS = 5
"""Steps of NDI before the phase factor counts. From chi = 0 a strong source is led to a wrong turn; ten steps, though,
have fitted what a wrong turn of the unwrapping looks like, and it is believed from then on."""
INNER_STEPS = 10
"""Conjugate-gradient steps at most within a Gauss-Newton step of MEDI: all lead downhill, and the next one corrects."""
INNER_TOLERANCE = 0.1
OUTLIER = 6.0
"""MERIT: standard deviations beyond which a misfit speaks against its voxel."""


@one_by_one
def ndi(
    local_field: Volume,
    mask: Mask,
    dipole: DipoleModel,
    weight: Volume | None = None,
    *,
    radians_per_ppm: float = RADIANS_PER_PPM,
    step: float = 2.0,
    regularisation: float = 1e-5,
    iterations: int = 200,
    tolerance: float = 5e-3,
    progress: Callable[[int, int], None] | None = None,
) -> Volume:
    r"""Steps down the gradient of 1/2 |W (exp(i s D chi) - exp(i s f))|^2 / s^2 + alpha/2 |chi|^2, stopped early.

    What regularises is mostly the early end: what D passes well comes first, noise near its cone late. The few first
    steps take s D chi - s f for small, so that a strong source does not lead to another turn; after them the objective
    falls with every step.

    Args:
        local_field: f [ppm], shape (*batch, x, y, z).
        mask: Where f is valid, same shape.
        dipole: D, for the same grid.
        weight: W, such as the magnitude in any unit: it is divided by its 90th percentile in the mask and cut off at 1.
            None for the mask.
        radians_per_ppm: s, phase of 1 ppm at the echo that counts.
        step: tau, no unit; the gradient changes by at most 4/9 of a change of chi, so from 4.5 on steps overshoot.
        regularisation: alpha, no unit.
        iterations: Most steps.
        tolerance: Stop once a step changes chi by less than this share of it.
        progress: Called with (iteration, iterations).

    Returns:
        chi [ppm], zero outside the mask.

    References:
        Polak et al. 2020, doi:10.1002/nbm.4271.
    """
    square = mask.to(local_field)
    if weight is not None:
        inside = weight[mask]
        bright = inside.kthvalue(max(round(BRIGHT * inside.numel()), 1)).values
        square = (weight * mask / bright).clamp_(0, 1).square_()
    field = local_field * mask
    chi = torch.zeros_like(field)
    for iteration in range(1, iterations + 1):
        misfit = dipole(chi).sub_(field)
        if iteration > LINEAR_STEPS:
            misfit = _factor_misfit(misfit, radians_per_ppm)
        slope = dipole.adjoint(misfit.mul_(square)).add_(chi, alpha=regularisation)
        chi.sub_(slope, alpha=step)
        if progress is not None:
            progress(iteration, iterations)
        change = step * torch.linalg.vector_norm(slope)
        if iteration > LINEAR_STEPS and change <= tolerance * torch.linalg.vector_norm(chi):
            break
    return chi * mask


@one_by_one
def medi(
    local_field: Volume,
    mask: Mask,
    dipole: DipoleModel,
    weight: Volume | None = None,
    *,
    radians_per_ppm: float = RADIANS_PER_PPM,
    regularisation: float = 5e-4,
    edges: float = 0.3,
    smoothing: float = 1e-3,
    merit: bool = False,
    smv: float = 0.0,
    iterations: int = 10,
    tolerance: float = 0.03,
    progress: Callable[[int, int], None] | None = None,
) -> Volume:
    r"""Minimise 1/2 |W (exp(i s D chi) - exp(i s f))|^2 / s^2 + lambda |M grad chi|_1 over chi on the whole grid.

    M is 0 where the magnitude has an edge and 1 elsewhere, so chi may jump for nothing where the magnitude does. Steps
    are Gauss-Newton's, with |x| made smooth as sqrt(x^2 + epsilon^2), each solved by conjugate gradients; the objective
    falls with every one. Only the first takes s D chi - s f for small, so that a strong source does not lead to another
    turn; single voxels that are a turn off do no harm, a whole region of them is believed.

    Args:
        local_field: f [ppm], shape (*batch, x, y, z).
        mask: Where f is valid, same shape.
        dipole: D, for the same grid.
        weight: W, no unit, the magnitude over its mean, which says both how noisy f is and where edges are. None for
            the mask and no edges.
        radians_per_ppm: s, phase of 1 ppm at the echo that counts.
        regularisation: lambda [ppm mm]; the gradient is anisotropic (sum over three directions), periodic, in 1/mm. The
            published 1000 stands before a data term in radians without the half, and is 1 / (2000 s) here: 3e-5 for
            3 T and 20 ms, right where nothing but noise is wrong with the field.
        edges: Share of the three components of the magnitude's gradient, over the mask, that count as edges; the
            published 0.9 counts them per voxel, which is the same.
        smoothing: epsilon [ppm/mm].
        merit: After each step, take voxels for noisier whose misfit is over six times its standard deviation.
        smv: Radius [mm] of spheres whose mean is taken off field and D alike, which removes what is left of a
            background; the field then counts only where a whole sphere fits. 0 for none; published as an option of 5.
        iterations: Most Gauss-Newton steps.
        tolerance: Stop once a step is shorter than this share of chi.
        progress: Called with (iteration, iterations).

    Returns:
        chi [ppm], zero outside the mask.

    Raises:
        InputError: No sphere fits into the mask.

    References:
        Liu et al. 2012, doi:10.1016/j.neuroimage.2011.08.082; data term and MERIT: Liu et al. 2013,
        doi:10.1002/mrm.24272.
    """
    data = _Data(local_field, mask, dipole, weight, radians_per_ppm, smv)
    variation = _Variation(dipole, regularisation, smoothing, _edges(weight, mask, dipole.voxel_size, edges))
    return _minimise(data, variation, None, merit, iterations, tolerance, progress) * mask


@one_by_one
def medi_zero(
    local_field: Volume,
    mask: Mask,
    dipole: DipoleModel,
    weight: Volume | None = None,
    *,
    csf: Mask | None = None,
    csf_weight: float = 0.1,
    radians_per_ppm: float = RADIANS_PER_PPM,
    regularisation: float = 5e-4,
    edges: float = 0.3,
    smoothing: float = 1e-3,
    merit: bool = False,
    smv: float = 0.0,
    iterations: int = 10,
    tolerance: float = 0.03,
    progress: Callable[[int, int], None] | None = None,
) -> Volume:
    r"""MEDI+0: the objective of `medi` plus mu/2 |M_csf (chi - mean of chi in the CSF)|^2; that mean is then made zero.

    CSF is all alike, so what varies there are streaks and shadows, and its chi is a zero that people share.

    Args:
        local_field: f [ppm], shape (*batch, x, y, z).
        mask: Where f is valid, same shape.
        dipole: D, for the same grid.
        weight: As for `medi`.
        csf: M_csf, cerebrospinal fluid of the ventricles, same shape; what lies outside the mask does not count.
        csf_weight: mu, no unit. The published 100 stands beside a lambda of 1000: 100 / 1000.
        radians_per_ppm: As for `medi`, and so are the others.

    Returns:
        chi [ppm] relative to CSF, zero outside the mask.

    Raises:
        InputError: There is no CSF in the mask, or none was given.

    References:
        Liu et al. 2018, doi:10.1002/mrm.26946.
    """
    if csf is None or not (csf & mask).any():
        raise InputError("medi+0 needs a mask of the cerebrospinal fluid inside the brain mask")
    data = _Data(local_field, mask, dipole, weight, radians_per_ppm, smv)
    variation = _Variation(dipole, regularisation, smoothing, _edges(weight, mask, dipole.voxel_size, edges))
    fluid = _Fluid(csf & mask, dipole, csf_weight)
    chi = _minimise(data, variation, fluid, merit, iterations, tolerance, progress)
    return (chi - chi[csf & mask].mean()) * mask


class _Data:
    """The data term: what chi on the padded grid should explain, and how sure each voxel is of it.

    Attributes:
        square: W squared on the grid of the field; MERIT lowers it.
    """

    def __init__(
        self, local_field: Volume, mask: Mask, dipole: DipoleModel, weight: Volume | None, turns: float, smv: float
    ):
        self.turns, self.shape, self.grid = turns, dipole.padded_shape, dipole.shape
        self.spectrum, self.field, known = dipole.spectrum, local_field * mask, mask
        if smv > 0:
            mean = sphere_mean(self.field, dipole.voxel_size, smv)
            known = where_whole(mean, mask, smv)
            self.field = self.field - mean(self.field)
            sphere = sphere_spectrum(self.shape, dipole.voxel_size, smv, like=self.field)
            self.spectrum = self.spectrum * (1 - sphere)
        self.square = known.to(self.field) if weight is None else (weight * known).square()
        self.level = float(self.square[known].mean())

    def predicted(self, chi: Tensor) -> Tensor:
        return irfft(rfft(chi).mul_(self.spectrum), self.shape, self.grid)

    def weighed(self, misfit: Tensor) -> Tensor:
        """D W^2 of a misfit, which is overwritten."""
        return irfft(rfft(misfit.mul_(self.square), self.shape).mul_(self.spectrum), self.shape)

    def slope(self, chi: Volume, *, linear: bool) -> Volume:
        misfit = self.predicted(chi).sub_(self.field)
        return self.weighed(misfit if linear else _factor_misfit(misfit, self.turns))

    def curvature(self, change: Volume) -> Volume:
        return self.weighed(self.predicted(change))

    def doubt(self, chi: Volume) -> None:
        """MERIT: the noise of voxels with too large a misfit grows by the square of the excess."""
        known = self.square > 0
        weight = self.square.sqrt()
        off = torch.polar(weight, self.turns * (self.predicted(chi) - self.field)) - weight
        off = (off - off[known].mean()).abs()
        self.square /= (off / (OUTLIER * off[known].std()).clamp_min(1e-12)).clamp_(min=1).pow_(4)


class _Variation:
    """The penalty lambda |M grad chi|_1, made smooth, and the parabola that touches it at some chi from above."""

    def __init__(self, dipole: DipoleModel, regularisation: float, smoothing: float, edges: list[Tensor]):
        self.size, self.regularisation, self.smoothing = dipole.voxel_size, regularisation, smoothing
        self.edges = edges
        self.bends: list[Tensor] = []

    def touch(self, chi: Volume) -> None:
        self.bends = []
        for axis, size in enumerate(self.size):
            difference = chi.roll(-1, SPACE[axis]).sub_(chi).div_(size)
            bend = difference.square_().add_(self.smoothing**2).rsqrt_().mul_(self.regularisation / size**2)
            if self.edges:
                crop(bend, self.edges[axis].shape).masked_fill_(self.edges[axis], 0)
            self.bends.append(bend)

    def curvature(self, change: Volume) -> Volume:
        result = torch.zeros_like(change)
        for axis, bend in zip(SPACE, self.bends, strict=True):
            step = change.roll(-1, axis).sub_(change).mul_(bend)
            result.sub_(step).add_(step.roll(1, axis))
        return result

    def level(self) -> float:
        """Mean of the parabola's factor before |grad chi|^2."""
        return sum(float(bend.mean()) * size**2 for bend, size in zip(self.bends, self.size, strict=True)) / 3


class _Fluid:
    """The penalty mu/2 |M_csf (chi - its mean there)|^2: a parabola, so its slope is its curvature times chi."""

    def __init__(self, csf: Mask, dipole: DipoleModel, weight: float):
        where = torch.zeros(dipole.padded_shape, dtype=torch.bool, device=csf.device)
        crop(where, dipole.shape).copy_(csf)
        self.places, self.weight = where.flatten().nonzero()[:, 0], weight

    def curvature(self, change: Volume) -> Volume:
        values = change.flatten()[self.places]
        result = torch.zeros_like(change)
        result.view(-1)[self.places] = self.weight * (values - values.mean())
        return result


def _minimise(
    data: _Data,
    variation: _Variation,
    fluid: _Fluid | None,
    merit: bool,
    iterations: int,
    tolerance: float,
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    """chi [ppm] on the grid of the field by Gauss-Newton steps, not masked."""
    chi = torch.zeros(data.shape, dtype=data.field.dtype, device=data.field.device)
    penalties = [variation] if fluid is None else [variation, fluid]

    def curvature(change: Volume) -> Volume:
        total = data.curvature(change)
        for penalty in penalties:
            total += penalty.curvature(change)
        return total

    for iteration in range(1, iterations + 1):
        variation.touch(chi)
        slope = data.slope(chi, linear=iteration == 1)
        for penalty in penalties:
            slope += penalty.curvature(chi)
        step = conjugate_gradient(
            curvature,
            slope.neg_(),
            precondition=_preconditioner(data, variation),
            iterations=INNER_STEPS,
            tolerance=INNER_TOLERANCE,
        )
        chi += step
        if progress is not None:
            progress(iteration, iterations)
        if iteration > 1 and torch.linalg.vector_norm(step) <= tolerance * torch.linalg.vector_norm(chi):
            break
        if merit:
            data.doubt(chi)
    return crop(chi, data.grid)


def _preconditioner(data: _Data, variation: _Variation) -> Callable[[Volume], Volume]:
    """The inverse of the curvature with its weights replaced by their means."""
    inverse = laplacian_spectrum(data.shape, variation.size, device=data.spectrum.device).mul_(variation.level())
    inverse.addcmul_(data.spectrum, data.spectrum, value=data.level).add_(1e-3 * data.level).reciprocal_()
    return lambda volume: irfft(rfft(volume).mul_(inverse), data.shape)


def _factor_misfit(misfit: Volume, turns: float) -> Volume:
    """The part of (exp(i s misfit) - 1) / s that a change of phase can mend; the argument is overwritten."""
    return misfit.mul_(turns).sin_().div_(turns)


def _edges(magnitude: Volume | None, mask: Mask, voxel_size: Triple, share: float) -> list[Tensor]:
    """Where the magnitude's forward differences are among the largest, a volume for each direction; none without one.

    The limit is that above which `share` of the components in the mask lie. Outside the magnitude counts as zero, so
    that the surface of the brain is an edge.
    """
    if magnitude is None:
        return []
    inner = magnitude * mask
    steps = [(inner.roll(-1, axis) - inner).abs_().div_(size) for axis, size in zip(SPACE, voxel_size, strict=True)]
    inside = torch.cat([step[mask] for step in steps])
    limit = inside.kthvalue(max(round((1 - share) * inside.numel()), 1)).values
    return [step > limit for step in steps]
