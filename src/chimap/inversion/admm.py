"""The alternating direction method of multipliers (ADMM) shared by the inversions that want few edges in chi.

They minimise data(D chi) + prior(chi). What is not quadratic is split off, grad chi = z in the prior and D chi = y in
the data term, so that chi follows from one division for each frequency. Data term and prior each have

    curvature   what they add to the divisor, on the half spectrum
    right(...)  what they add to the numerator, after an update of their own y or z and of its multiplier

and the data term has `first`, the numerator before there is a chi.

References:
    Boyd et al. 2011, doi:10.1561/2200000016; for chi Bilgic et al. 2014, doi:10.1002/mrm.25029, and Milovic et al.
    2018, doi:10.1002/mrm.27073.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from chimap.arrays import Mask, Progress, Shape, Triple, Volume
from chimap.linalg import (
    difference_spectra,
    divergence,
    gradient,
    irfft,
    laplacian_spectrum,
    rfft,
    symmetrised_divergence,
    symmetrised_gradient,
)
from chimap.physics.dipole import DipoleModel

CHECK_EVERY = 5  # iterations between two looks at the change of chi: the look reads two volumes
CACHED = 250_000  # voxels of a slab on which a dozen element-wise steps cost as much as reading and writing it once


def minimised(
    data: "FixedData | SplitData",
    prior: "Variation | GeneralisedVariation",
    shape: Shape,
    *,
    start: Tensor | None = None,
    iterations: int,
    tolerance: float,
    progress: Progress | None = None,
) -> Volume:
    """chi [ppm] on the whole grid of `shape`, its mean zero.

    Args:
        data: The data term.
        prior: The penalty.
        shape: Of the grid, which is periodic.
        start: Half spectrum of the first chi; without it, what the data term and a quadratic prior give.
        iterations: Most iterations.
        tolerance: Stop once chi changes by less than this share from one iteration to the next.
        progress: Called with (iteration, iterations).
    """
    inverse = data.curvature + prior.curvature
    inverse[0, 0, 0] = 1  # chi's mean over the grid is undetermined; its right side is 0
    inverse.reciprocal_()
    spectrum = data.first * inverse if start is None else start
    chi = torch.zeros((), device=inverse.device)
    for iteration in range(1, iterations + 1):
        previous, chi = chi, irfft(spectrum, shape)
        if progress is not None:
            progress(iteration, iterations)
        if iteration == iterations:
            break
        if iteration % CHECK_EVERY == 0:
            change = torch.linalg.vector_norm(previous.sub_(chi))
            if change <= tolerance * torch.linalg.vector_norm(chi):
                break
        spectrum = prior.right(chi, spectrum).add_(data.right(spectrum)).mul_(inverse)
    return chi


def padded(volume: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros appended at the far end of each axis of (..., x, y, z), as `rfft` pads."""
    return F.pad(volume, [n for axis in (-1, -2, -3) for n in (0, shape[axis] - volume.shape[axis])])


@dataclass
class FixedData:
    """A data term that is quadratic for each frequency: curvature / 2 |chi|^2 - first . chi, nothing split off."""

    curvature: Tensor
    first: Tensor

    def right(self, spectrum: Tensor) -> Tensor:
        return self.first


class SplitData:
    """ADMM's y and v for D chi + h = y: what the data term asks is asked of each voxel.

    Outside the mask nothing is asked: there y is D chi + h itself and v stays 0, so v is kept for the mask's voxels
    only. h is 0, or a `Remainder` of the background.

    Args:
        mask: (x, y, z).
        dipole: D, for the same grid.
        proximal: t to argmin over y of the data term + penalty / 2 (y - t)^2, for the mask's voxels in a row [ppm].
        penalty: ADMM's weight of D chi + h = y, no unit.
        relaxation: From 1 to below 2, the same for data term and prior.
        harmonic: What a Laplacian of h costs [mm^4]; 0 for no h.
    """

    def __init__(
        self,
        mask: Mask,
        dipole: DipoleModel,
        proximal: Callable[[Tensor], Tensor],
        *,
        penalty: float = 1.0,
        relaxation: float = 1.0,
        harmonic: float = 0.0,
    ):
        self.dipole, self.proximal, self.relaxation = dipole, proximal, relaxation
        self.inside = torch.nonzero(padded(mask, dipole.padded_shape).flatten(), as_tuple=True)[0]
        self.v = torch.zeros(len(self.inside), dtype=dipole.spectrum.dtype, device=mask.device)
        self.target = torch.zeros(dipole.padded_shape, dtype=self.v.dtype, device=mask.device)
        self.target.view(-1)[self.inside] = proximal(self.v)
        spectrum = rfft(self.target)
        self.drawn = penalty * dipole.spectrum
        self.remainder = None
        if harmonic != 0:
            self.remainder = Remainder(self.inside, dipole, harmonic, penalty, relaxation, spectrum)
        self.seen = dipole.spectrum if self.remainder is None else self.remainder.left * dipole.spectrum
        self.curvature = self.drawn * self.seen
        self.first = spectrum.mul_(self.drawn if self.remainder is None else penalty * self.seen)

    def right(self, spectrum: Tensor) -> Tensor:
        mapped = spectrum * self.seen
        if self.remainder is not None:
            mapped += self.remainder.known
        total = relaxed(irfft(mapped, self.dipole.padded_shape), self.target, self.relaxation)
        flat = total.view(-1)
        t = flat[self.inside].add_(self.v, alpha=2 - self.relaxation)
        y = self.proximal(t)
        torch.sub(t, y, out=self.v)
        flat[self.inside] = y.sub_(self.v)
        self.target = total
        target = rfft(total)
        if self.remainder is not None:
            self.remainder.update(mapped.addcmul_(spectrum, self.dipole.spectrum, value=-1), target)
            target.sub_(self.remainder.known)
        return target.mul_(self.drawn)


def relaxed(mapped: Tensor, target: Tensor, relaxation: float) -> Tensor:
    """K x (overwritten) moved on, away from the last z - u, by the share beyond 1 of ADMM's relaxation."""
    return mapped if relaxation == 1 else mapped.mul_(relaxation).add_(target, alpha=1 - relaxation)


HARMONIC_PENALTY = 3.0
"""ADMM's weight of the Laplacian of the background's remainder [mm^4]: changes the way to the result only."""


class Remainder:
    """What background removal left, h, at a cost of beta / 2 |Laplace h|^2 inside the mask: weakly harmonic there.

    -Laplace h = z is split off, with the multiplier u, and h eliminated for each frequency: with g the eigenvalues of
    -Laplace, r the ratio of ADMM's weights and t, p the targets of D chi + h and of g h,
    h = (t + r g p - D chi) / (1 + r g^2).

    Args:
        inside: Flat indices of the mask's voxels in the padded grid.
        dipole: D.
        weight: beta [mm^4].
        penalty: ADMM's weight of D chi + h.
        relaxation: As `SplitData` has it.
        target: Half spectrum of the first t.

    References:
        Milovic et al. 2019, doi:10.1002/mrm.27483, where chi and h take turns.
    """

    def __init__(
        self, inside: Tensor, dipole: DipoleModel, weight: float, penalty: float, relaxation: float, target: Tensor
    ):
        self.inside, self.shape, self.relaxation = inside, dipole.padded_shape, relaxation
        self.ratio = HARMONIC_PENALTY / penalty
        self.g = laplacian_spectrum(self.shape, dipole.voxel_size, device=inside.device)
        self.soft = 1 / (1 + self.ratio * self.g.square())
        self.left = self.ratio * self.g.square() * self.soft  # what h leaves of D chi
        self.kept = weight / (weight + HARMONIC_PENALTY)
        self.u = torch.zeros(len(inside), dtype=self.g.dtype, device=inside.device)
        self.p = torch.zeros(self.shape, dtype=self.g.dtype, device=inside.device)
        self.known = self.soft * target  # h + soft D chi

    def update(self, h: Tensor, target: Tensor) -> None:
        """Update z and u from the spectrum of h (overwritten), and with that of the next t what is known of h."""
        total = relaxed(irfft(h.mul_(self.g), self.shape), self.p, self.relaxation)
        flat = total.view(-1)
        t = flat[self.inside].add_(self.u, alpha=2 - self.relaxation)
        torch.mul(t, self.kept, out=self.u)
        flat[self.inside] = t.sub_(self.u, alpha=2)
        self.p = total
        self.known = rfft(total).mul_(self.g).mul_(self.ratio).add_(target).mul_(self.soft)


class Variation:
    """Total variation: ADMM's z and u for grad chi = z, one array per direction, updated slab by slab.

    With v = grad chi + u, soft thresholding z = v - clamp(v, -t, t) leaves the new u = clamp(v, -t, t), so that one
    array tells both, and z - u = v - 2 u. It is u, or with relaxation, which needs the last z, v; times the voxel size.
    A slab fits the processor's cache.

    Args:
        shape: Of the grid, which is periodic.
        voxel_size: [mm].
        regularisation: lambda [ppm mm].
        penalty: ADMM's weight of grad chi = z [mm^2].
        relaxation: As `SplitData` has it.
        like: A tensor of the type and device to be used.
        edges: What lambda is multiplied by for each direction, (3, x, y, z); 1 if None.
    """

    def __init__(
        self,
        shape: Shape,
        voxel_size: Triple,
        *,
        regularisation: float,
        penalty: float,
        relaxation: float = 1.0,
        like: Tensor,
        edges: Tensor | None = None,
    ):
        self.relaxation = relaxation
        self.kept = [torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(3)]
        self.bound = [regularisation / penalty * size for size in voxel_size]
        self.edges = edges
        self.scale = [penalty / size**2 for size in voxel_size]
        self.curvature = penalty * laplacian_spectrum(shape, voxel_size, device=like.device)
        plane = shape[1] * shape[2]
        self.slab = shape[0] if like.device.type != "cpu" else max(1, min(shape[0], CACHED // plane))
        self.result = torch.empty(shape, dtype=like.dtype, device=like.device)

    def right(self, chi: Volume, spectrum: Tensor) -> Tensor:
        return rfft(self.shrink(chi))

    def shrink(self, chi: Volume) -> Volume:
        """Update z and u from chi; give -penalty div(z - u) [ppm], in a buffer that the next call overwrites."""
        n, result = chi.shape[0], self.result
        last_plane = None  # z - u along x of the plane before this slab
        for low in range(0, n, self.slab):
            high = min(low + self.slab, n)
            out = result[low:high]
            following = chi[low + 1 : high + 1] if high < n else torch.cat([chi[low + 1 :], chi[:1]])
            along_x = self._step(following - chi[low:high], 0, low, high)
            torch.mul(along_x, -self.scale[0], out=out)
            out[1:].add_(along_x[:-1], alpha=self.scale[0])
            if last_plane is not None:
                out[0].add_(last_plane, alpha=self.scale[0])
            last_plane = along_x[-1].clone()
            for axis in (1, 2):
                part = chi[low:high]
                ahead = torch.empty_like(part)
                size = part.shape[axis]
                torch.sub(
                    part.narrow(axis, 1, size - 1),
                    part.narrow(axis, 0, size - 1),
                    out=ahead.narrow(axis, 0, size - 1),
                )
                torch.sub(
                    part.narrow(axis, 0, 1),
                    part.narrow(axis, size - 1, 1),
                    out=ahead.narrow(axis, size - 1, 1),
                )
                step = self._step(ahead, axis, low, high)
                out.add_(step, alpha=-self.scale[axis])
                out.narrow(axis, 1, size - 1).add_(step.narrow(axis, 0, size - 1), alpha=self.scale[axis])
                out.narrow(axis, 0, 1).add_(step.narrow(axis, size - 1, 1), alpha=self.scale[axis])
        assert last_plane is not None
        result[0].add_(last_plane, alpha=self.scale[0])
        return result

    def _step(self, difference: Tensor, axis: int, low: int, high: int) -> Tensor:
        """From chi's differences in a slab (overwritten) to z - u there, times the voxel size."""
        edges = None if self.edges is None else self.edges[axis, low:high]
        kept = self.kept[axis][low:high]
        if self.relaxation == 1:
            v = difference.add_(kept)
            u = clamped(v, self.bound[axis], edges, out=kept)
        else:
            u = clamped(kept, self.bound[axis], edges)
            v = kept.mul_(1 - self.relaxation).add_(u.add_(difference), alpha=self.relaxation)
            u = clamped(v, self.bound[axis], edges, out=u)
        return torch.sub(v, u, alpha=2, out=difference)


class GeneralisedVariation:
    """Total generalised variation, alpha1 |grad chi - w|_1 + alpha0 |E w|_1 for the best w, E the symmetrised gradient.

    Norms are sums over components, those off the diagonal of E w counting twice. grad chi - w and E w are split off.

    Args:
        shape: Of the grid, which is periodic.
        voxel_size: [mm].
        regularisation: alpha1 [ppm mm].
        bend: alpha0 [ppm mm^2].
        penalty: ADMM's weight of grad chi - w [mm^2]; that of E w [mm^4] gives the same threshold, per mm.
        relaxation: As `SplitData` has it.
        like: A tensor of the type and device to be used.
        edges: What alpha1 is multiplied by for each direction, (3, x, y, z); 1 if None.

    References:
        Bredies et al. 2010, doi:10.1137/090769521.
    """

    def __init__(
        self,
        shape: Shape,
        voxel_size: Triple,
        *,
        regularisation: float,
        bend: float,
        penalty: float,
        relaxation: float = 1.0,
        like: Tensor,
        edges: Tensor | None = None,
    ):
        self.voxel_size, self.edges, self.bound = voxel_size, edges, regularisation / penalty
        self.slopes = Slopes(shape, voxel_size, slope=penalty, bend=penalty * bend / regularisation, device=like.device)
        self.curvature = self.slopes.curvature
        self.relaxation = relaxation
        self.first = [torch.zeros(3, *shape, dtype=like.dtype, device=like.device) for _ in range(2)]  # z - u, u
        self.second = [torch.zeros(6, *shape, dtype=like.dtype, device=like.device) for _ in range(2)]
        self.pending = [torch.zeros_like(self.curvature, dtype=torch.complex64) for _ in range(3)]

    def right(self, chi: Volume, spectrum: Tensor) -> Tensor:
        w = self.slopes.of_chi(spectrum, self.pending)
        bends = symmetrised_gradient(w, self.voxel_size)
        slopes = gradient(chi, self.voxel_size).sub_(w)
        for mapped, (target, u), edges in ((slopes, self.first, self.edges), (bends, self.second, None)):
            t = relaxed(mapped, target, self.relaxation).add_(u, alpha=2 - self.relaxation)
            torch.sub(t, clamped(t, self.bound, edges, out=u), alpha=2, out=target)
        right, self.pending = self.slopes.right(self.first[0], self.second[0])
        return right


class Slopes:
    """slope / 2 |grad chi - w - p|^2 + bend / 2 |E w - q|^2, minimised over w for each frequency on its own.

    With d the forward differences and b = -conj(d) the backward ones, L = |d|^2 is -Laplace. The matrix of w is
    slope + bend (L + b b*) / 2, which the Sherman-Morrison formula inverts.

    Args:
        shape: Of the grid, which is periodic.
        voxel_size: [mm].
        slope: [mm^2].
        bend: [mm^4].

    Attributes:
        curvature: In chi, w being the best: slope |d|^2 - slope^2 d* (w's inverse) d, real.
    """

    def __init__(
        self, shape: Shape, voxel_size: Triple, *, slope: float, bend: float, device: torch.device | None = None
    ):
        self.shape, self.voxel_size, self.slope, self.bend = shape, voxel_size, slope, bend
        d = difference_spectra(shape, voxel_size, device=device)
        laplace = d[0].abs().square() + d[1].abs().square() + d[2].abs().square()
        width = slope + bend / 2 * laplace
        turn = bend / 2 / (slope + bend * laplace)
        # written so that no small number is left of large ones
        along = (d[0].square() + d[1].square() + d[2].square()).abs()
        curvature = slope / width * (bend / 2 * laplace.square() + slope * turn * along.square())
        self.forward = [part.to(torch.complex64) for part in d]
        self.width, self.turn, self.curvature = width.float(), turn.float(), curvature.float()

    def right(self, slopes: Tensor, bends: Tensor) -> tuple[Tensor, list[Tensor]]:
        """From p, (3, x, y, z), and q, (6, x, y, z), to chi's numerator, w eliminated, and to w's own, half spectra."""
        chi = rfft(divergence(slopes, self.voxel_size).mul_(-self.slope))
        forces = slopes * -self.slope
        forces.sub_(symmetrised_divergence(bends, self.voxel_size), alpha=self.bend)
        w = [rfft(force) for force in forces]
        for d, part in zip(self.forward, self._inverted(w), strict=True):
            chi.addcmul_(d.conj(), part, value=self.slope)
        return chi, w

    def of_chi(self, chi: Tensor, right: list[Tensor]) -> Tensor:
        """w, (3, x, y, z), from the spectrum of chi and w's numerator (overwritten)."""
        for d, part in zip(self.forward, right, strict=True):
            part.addcmul_(d, chi, value=self.slope)
        return torch.stack([irfft(part, self.shape) for part in self._inverted(right)])

    def _inverted(self, right: list[Tensor]) -> list[Tensor]:
        """The matrix of w inverted on a right side."""
        shared = torch.zeros_like(right[0])
        for d, part in zip(self.forward, right, strict=True):
            shared.addcmul_(d, part)  # minus b* right
        shared *= self.turn
        return [
            torch.addcmul(part, d.conj(), shared, value=-1.0).div_(self.width)
            for d, part in zip(self.forward, right, strict=True)
        ]


def clamped(values: Tensor, bound: float, share: Tensor | None, *, out: Tensor | None = None) -> Tensor:
    """Values clamped to plus and minus the bound, or that share of it."""
    if share is None:
        return torch.clamp(values, -bound, bound, out=out)
    limit = share * bound
    out = torch.minimum(values, limit, out=out)
    return torch.maximum(out, limit.neg_(), out=out)
