"""TGV-QSM: from wrapped phase to chi in one step, the background being what no chi in the mask has to explain."""

import torch
import torch.nn.functional as F
from torch import Tensor

from chimap.arrays import Echoes, Mask, Shape, Triple, Volume
from chimap.errors import InputError
from chimap.inversion.admm import Slopes, padded
from chimap.linalg import (
    behind,
    bounding_box,
    crop,
    difference_spectra,
    fast_shape,
    gradient,
    irfft,
    rfft,
    symmetrised_gradient,
)
from chimap.physics.dipole import unit_vector
from chimap.physics.phase import steps_ahead
from chimap.physics.units import radians_per_ppm

# What follows changes the way to the result, not the result.
CONSTRAINT_PENALTY = 0.1
"""Of the ADMM for the equation [mm^4]. Sources outside that vary within 2 pi times its fourth root (4 mm) are found
slowly, and what varies less than that inside."""
GRADIENT_STEP = 0.005
"""Gradients of chi [ppm/mm] up to this are absorbed by one step,"""
BEND_STEP = 0.0015
"""and changes of these gradients [ppm/mm^2]."""
RELAXATION = 1.8
CHECK_EVERY = 5
"""Iterations between two looks at whether to stop."""
EQUATION = 5.0
"""Misfit of the equation, in units of the tolerance, that is small enough: rim and noise take long to fit exactly."""


def tgv(
    phase: Echoes,
    magnitude: Echoes | None,
    mask: Mask,
    echo_times: tuple[float, ...],
    field_strength: float,
    voxel_size: Triple,
    b0_direction: Triple,
    *,
    gradient_penalty: float = 2e-4,
    bend_penalty: float = 6e-4,
    iterations: int = 100,
    tolerance: float = 2e-3,
) -> tuple[Volume, Mask]:
    r"""Minimise 1/2 |psi|^2 + alpha1 |grad chi - w|_1 + alpha0 |E w|_1 over chi, psi and w, subject to

        Laplace psi = box chi - Laplace f,    box = 1/3 Laplace - (b . grad)^2,

    f being the total field, of which only the Laplacian is needed: wraps and harmonic background have none. Norms are
    over the mask, the equation holds where all 26 neighbours of a voxel are in it. E is the symmetrised gradient, so
    that chi is made of parts that are smooth, not flat.

    Neither a constant nor a ramp of chi has a source in the equation or a cost: both stay about 0, where they begin.

    Args:
        phase: Wrapped [rad], (echo, x, y, z).
        magnitude: Likewise, or None: then echoes are weighted by TE^2, otherwise by (magnitude TE)^2.
        mask: (x, y, z).
        echo_times: [s].
        field_strength: [T].
        voxel_size: [mm].
        b0_direction: b, in voxel axes.
        gradient_penalty: alpha1 [ppm mm]. Published is 5e-4 rad mm for the phase in radians, which is less at usual
            echo times, but stopped after a fixed number of steps that smooths on its own.
        bend_penalty: alpha0 [ppm mm^2], three times alpha1 as published.
        iterations: Most iterations.
        tolerance: Stop once chi changes by less than this share from one iteration to the next, and the equation is
            off by less than five times this share of Laplace f.

    Returns:
        chi [ppm], zero outside the second result: where the equation holds.

    Raises:
        InputError: The mask is empty, or so thin that no voxel has all its neighbours in it.

    References:
        Langkammer et al. 2015, doi:10.1016/j.neuroimage.2015.02.041; Bredies et al. 2010, doi:10.1137/090769521.
        Solved by relaxed ADMM as in Boyd et al. 2011, doi:10.1561/2200000016.
    """
    box = bounding_box(mask, (1, 1, 1))
    inside = mask[box]
    source, known = laplacian_of_field(
        phase[:, *box], None if magnitude is None else magnitude[:, *box], echo_times, field_strength, voxel_size
    )
    valid = inner_voxels(inside) & known
    if not valid.any():
        raise InputError(f"the mask of {int(mask.sum())} voxels is too thin: none has all its neighbours in it")
    chi, _ = solved(
        source,
        inside,
        valid,
        voxel_size,
        unit_vector(b0_direction),
        gradient_penalty=gradient_penalty,
        bend_penalty=bend_penalty,
        iterations=iterations,
        tolerance=tolerance,
    )
    found, where = torch.zeros_like(phase[0]), torch.zeros_like(mask)
    found[box], where[box] = chi * valid, valid
    return found, where


def laplacian_of_field(
    phase: Echoes,
    magnitude: Echoes | None,
    echo_times: tuple[float, ...],
    field_strength: float,
    voxel_size: Triple,
) -> tuple[Volume, Mask]:
    """Laplacian of the field [ppm/mm^2], (x, y, z), from wrapped differences of neighbours, and where it was measured.

    It is enough that neighbours are less than half a turn apart in the first echo. Voxels at the faces of the grid lack
    neighbours.
    """
    strengths = torch.ones_like(phase) if magnitude is None else magnitude
    weight = (strengths * phase.new_tensor(echo_times).reshape(-1, 1, 1, 1)).square()
    total = torch.zeros_like(phase[0])
    for axis, size in zip((-3, -2, -1), voxel_size, strict=True):
        steps, _ = steps_ahead(phase, strengths, echo_times, axis)
        for step, echo_time, share in zip(steps, echo_times, weight, strict=True):
            total += share * behind(step, axis, size**2) / radians_per_ppm(echo_time, field_strength)
    weights = weight.sum(dim=0)
    return total / weights.clamp_min(torch.finfo(weights.dtype).tiny), weights > 0


def inner_voxels(mask: Mask) -> Mask:
    """Voxels all of whose 26 neighbours are in the mask; the outside of the grid is not."""
    outside = F.pad((~mask).float(), (1,) * 6, value=1.0)
    return F.max_pool3d(outside[None], 3, stride=1)[0] == 0


def wave_spectrum(
    shape: Shape, voxel_size: Triple, b0_direction: Triple, *, device: torch.device | None = None
) -> Tensor:
    """Eigenvalues [1/mm^2] of 1/3 Laplace - (b . grad)^2 on the half spectrum, float64.

    Second differences along an axis, products of central ones for mixed derivatives: real and even for any b.
    """
    forward = difference_spectra(shape, voxel_size, device=device)
    spectrum = torch.zeros(1, dtype=torch.float64, device=device)
    for i, one in enumerate(forward):
        spectrum = spectrum + (b0_direction[i] ** 2 - 1 / 3) * one.abs().square()
        for j in range(i):
            # a central difference has the eigenvalue i Im(forward)
            spectrum = spectrum + 2 * b0_direction[i] * b0_direction[j] * one.imag * forward[j].imag
    return spectrum


def solved(
    source: Volume,
    mask: Mask,
    valid: Mask,
    voxel_size: Triple,
    b0_direction: Triple,
    *,
    gradient_penalty: float,
    bend_penalty: float,
    iterations: int,
    tolerance: float,
) -> tuple[Volume, Tensor]:
    """chi [ppm] and w [ppm/mm], (3, x, y, z), for a Laplacian of the field, `source` [ppm/mm^2], known in `valid`.

    ADMM on a periodic grid, larger than the mask: box chi - Laplace psi, grad chi - w and E w are split off, so that
    chi, psi and w follow from a division for each frequency. There psi may cost outside the mask, too: no equation
    holds it there, so it is 0. What is split off is free outside, and that is where the background's sources go.
    """
    shape = fast_shape([n + 2 for n in mask.shape])  # two voxels at least to the periodic image
    equation = Split(padded(valid, shape), shape, like=source)
    slopes = Split(padded(mask, shape), (3, *shape), like=source, bound=GRADIENT_STEP)
    bends = Split(padded(mask, shape), (6, *shape), like=source, bound=BEND_STEP)
    goal = padded(source * valid, shape)
    equation.target.copy_(goal)
    slope, bend = gradient_penalty / GRADIENT_STEP, bend_penalty / BEND_STEP
    system = System(shape, voxel_size, b0_direction, slope=slope, bend=bend, device=source.device)
    size = torch.linalg.vector_norm(goal)
    chi, w = torch.zeros_like(equation.target), torch.zeros_like(slopes.target)
    for iteration in range(1, iterations + 1):
        previous = chi
        chi, w, left = system.solution(equation.target, slopes.target, bends.target)
        # the misfit is looked at before relaxation
        looks = iteration % CHECK_EVERY == 0 and iteration < iterations
        if looks:
            change = torch.linalg.vector_norm((chi - previous) * equation.mask)
            off = torch.linalg.vector_norm((left - goal) * equation.mask)
            if (
                change <= tolerance * torch.linalg.vector_norm(chi * equation.mask)
                and off <= EQUATION * tolerance * size
            ):
                break
        equation.update(left, goal)
        slopes.update(gradient(chi, voxel_size).sub_(w))
        bends.update(symmetrised_gradient(w, voxel_size))
    return crop(chi, mask.shape), crop(w, mask.shape)


class Split:
    """ADMM's copy z of a linear map K x of the unknowns and its multiplier u, of which `target` = z - u is what K x is
    drawn to next.

    With t = K x + u, relaxed, the new u is what the proximal map takes off t: all that is beyond the goal of an
    equation, or the part of a vector that is no longer than the step; nothing outside the mask.
    """

    def __init__(self, mask: Mask, shape: tuple[int, ...], *, like: Tensor, bound: float = 0.0):
        self.mask = mask.to(like)
        self.bound = bound
        self.u = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.target = torch.zeros_like(self.u)

    def update(self, mapped: Tensor, goal: Volume | None = None) -> None:
        """From K x (overwritten) to the next u and target."""
        t = mapped.mul_(RELAXATION).add_(self.target, alpha=1 - RELAXATION).add_(self.u, alpha=2 - RELAXATION)
        if goal is not None:
            torch.sub(t, goal, out=self.u).mul_(self.mask)
        else:
            squares = t[:3].square().sum(dim=0)
            if len(t) == 6:
                squares += 2 * t[3:].square().sum(dim=0)
            # a vector of no length is taken off whole, whatever it is divided by
            share = (self.bound / squares.sqrt_().clamp_min_(1e-12)).clamp_max_(1).mul_(self.mask)
            torch.mul(t, share, out=self.u)
        torch.sub(t, self.u, alpha=2, out=self.target)


class System:
    """The ADMM's least squares for chi, psi and w, solved for each frequency on its own.

    psi is eliminated first: with L the eigenvalues of -Laplace, chi and psi come as near to the equation's target c as
    1 / (1 + r L^2) of what chi leaves. `Slopes` eliminates w, and what then remains is a division for chi.

    Args:
        shape: Of the grid, which is periodic.
        voxel_size: [mm].
        b0_direction: Of length 1.
        slope: Penalty of grad chi - w [mm^2].
        bend: Penalty of E w [mm^4].
    """

    def __init__(
        self,
        shape: Shape,
        voxel_size: Triple,
        b0_direction: Triple,
        *,
        slope: float,
        bend: float,
        device: torch.device | None = None,
    ):
        self.shape = shape
        d = difference_spectra(shape, voxel_size, device=device)
        laplace = d[0].abs().square() + d[1].abs().square() + d[2].abs().square()
        soft = 1 / (1 + CONSTRAINT_PENALTY * laplace.square())
        wave = wave_spectrum(shape, voxel_size, b0_direction, device=device)
        self.slopes = Slopes(shape, voxel_size, slope=slope, bend=bend, device=device)
        self.soft, self.wave = soft.float(), (wave * soft).float()
        self.whole = (CONSTRAINT_PENALTY * wave.square() * soft).float() + self.slopes.curvature
        self.whole[0, 0, 0] = 1  # the mean of chi is free, and its right side 0

    def solution(self, equation: Volume, slopes: Tensor, bends: Tensor) -> tuple[Volume, Tensor, Volume]:
        """From the targets to chi [ppm], w [ppm/mm], (3, x, y, z), and box chi - Laplace psi [ppm/mm^2]."""
        target = rfft(equation)
        chi, right = self.slopes.right(slopes, bends)
        chi += CONSTRAINT_PENALTY * self.wave * target
        chi /= self.whole
        w = self.slopes.of_chi(chi, right)
        left = irfft(target + self.wave * chi - self.soft * target, self.shape)
        return irfft(chi, self.shape), w, left
