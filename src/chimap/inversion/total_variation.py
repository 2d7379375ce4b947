"""Inversion with a total-variation penalty, by the alternating direction method of multipliers (ADMM)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from chimap.arrays import Mask, Triple, Volume
from chimap.linalg import crop, irfft, laplacian_spectrum, rfft
from chimap.physics.dipole import DipoleModel

CHECK_EVERY = 5  # iterations between two looks at the change of chi: the look reads two volumes


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
    batch = local_field.shape[:-3]
    if batch:
        flat = [part.reshape(-1, *part.shape[-3:]) for part in torch.broadcast_tensors(local_field, mask)]
        weights = [None] * len(flat[0]) if weight is None else weight.reshape(-1, *weight.shape[-3:])
        one = partial(
            total_variation,
            dipole=dipole,
            regularisation=regularisation,
            penalty=penalty,
            iterations=iterations,
            tolerance=tolerance,
            progress=progress,
        )
        members = [one(f, m, weight=w) for f, m, w in zip(*flat, weights, strict=True)]
        return torch.stack(members).reshape(local_field.shape)

    shape, d = dipole.padded_shape, dipole.spectrum
    field = local_field * mask
    differences = Differences(shape, dipole.voxel_size, threshold=regularisation / penalty, like=field)
    system = d.square() + penalty * laplacian_spectrum(shape, dipole.voxel_size, device=d.device)
    system[0, 0, 0] = 1  # chi's mean over the grid is undetermined; its right side is 0
    data = None if weight is None else WeightedData(field, weight * mask, dipole)
    # chi(k) = constant + smoothing * F[-div(z - u)], where with a weight D F[y - v] / system is the constant
    constant = d * rfft(field, shape) / system
    smoothing = penalty / system
    chi = torch.zeros(shape, dtype=field.dtype, device=field.device)

    for iteration in range(1, iterations + 1):
        spectrum = rfft(differences.shrink(chi)).mul_(smoothing)
        if data is None:
            spectrum += constant
        else:
            spectrum += data.spectrum() * d / system
            data.update(irfft(spectrum * d, shape))
        previous, chi = chi, irfft(spectrum, shape)
        if progress is not None:
            progress(iteration, iterations)
        if iteration % CHECK_EVERY == 0 and iteration < iterations:
            change = torch.linalg.vector_norm(previous.sub_(chi))
            if change <= tolerance * torch.linalg.vector_norm(chi):
                break
    return crop(chi, dipole.shape) * mask


class Differences:
    """ADMM's z and u for grad chi = z, held as one array per direction and updated slab by slab.

    With v = grad chi + u, soft thresholding z = v - clamp(v, -t, t) leaves the new u = clamp(v, -t, t), so only u
    is stored, and z - u = v - 2 u. The arrays hold u times the voxel size. A slab fits the processor's cache: the
    dozen element-wise steps then cost about as much as reading and writing each volume once.
    """

    def __init__(self, shape: tuple[int, int, int], voxel_size: Triple, *, threshold: float, like: Tensor):
        self.u = [torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(3)]
        self.bound = [threshold * size for size in voxel_size]
        self.scale = [1 / size**2 for size in voxel_size]
        plane = shape[1] * shape[2]
        self.slab = shape[0] if like.device.type != "cpu" else max(1, min(shape[0], 250_000 // plane))
        self.result = torch.empty(shape, dtype=like.dtype, device=like.device)

    def shrink(self, chi: Volume) -> Volume:
        """Update z and u from chi; give -div(z - u) [ppm / mm^2], in a buffer that the next call overwrites."""
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
        u = self.u[axis][low:high]
        v = difference.add_(u)
        torch.clamp(v, -self.bound[axis], self.bound[axis], out=u)
        return v.add_(u, alpha=-2)


class WeightedData:
    """ADMM's y and v for D chi = y in the weighted data term, with an ADMM weight of 1."""

    def __init__(self, field: Volume, weight: Volume, dipole: DipoleModel):
        self.dipole = dipole
        self.square = weight.square()
        self.goal = self.square * field
        self.y_minus_v = torch.zeros(dipole.padded_shape, dtype=field.dtype, device=field.device)
        crop(self.y_minus_v, dipole.shape).copy_(self.goal / (self.square + 1))
        self.v = torch.zeros_like(self.y_minus_v)

    def spectrum(self) -> Tensor:
        return rfft(self.y_minus_v)

    def update(self, predicted: Volume) -> None:
        """y = argmin 1/2 |W (y - f)|^2 + 1/2 |predicted + v - y|^2, then v collects what remains."""
        total = predicted.add_(self.v)
        # Outside the grid and where W is 0 nothing is known: y is the prediction itself and v stays 0.
        inner = crop(total, self.dipole.shape)
        y = (self.goal + inner) / (self.square + 1)
        self.v.zero_()
        crop(self.v, self.dipole.shape).copy_(inner - y)
        torch.sub(total, self.v, alpha=2, out=self.y_minus_v)
