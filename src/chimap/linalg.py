"""Differences, proximal maps, conjugate gradients, turns and FFT helpers that every room shares.

Volumes are (*batch, x, y, z). Differences are periodic, so that the FFT diagonalises them, and in units per
mm. `divergence` is the negative adjoint of `gradient`.
"""

from collections.abc import Callable, Sequence

import torch
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn.functional import avg_pool3d, interpolate, pad

from chimap.arrays import Shape, Triple, Volume
from chimap.errors import InputError

SPACE = (-3, -2, -1)


def ahead(volume: Volume, axis: int, size: float) -> Volume:
    """Forward difference along one axis of -3, -2, -1, over `size`."""
    return volume.roll(-1, axis).sub_(volume).div_(size)


def behind(volume: Volume, axis: int, size: float) -> Volume:
    """Backward difference along one axis, over `size`: minus the adjoint of `ahead`."""
    return torch.sub(volume, volume.roll(1, axis)).div_(size)


def gradient(volume: Volume, voxel_size: Triple) -> Tensor:
    """Forward differences [1/mm], stacked before space: shape (*batch, 3, x, y, z)."""
    return torch.stack([ahead(volume, axis, size) for axis, size in zip(SPACE, voxel_size, strict=True)], dim=-4)


def divergence(vectors: Tensor, voxel_size: Triple) -> Volume:
    """Backward differences [1/mm] of (*batch, 3, x, y, z), summed: minus the adjoint of `gradient`."""
    parts = zip(vectors.unbind(dim=-4), SPACE, voxel_size, strict=True)
    terms = [behind(part, axis, size) for part, axis, size in parts]
    return terms[0].add_(terms[1]).add_(terms[2])


PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
"""Components of a symmetric 3 x 3 tensor as they are stacked; those off the diagonal stand for two."""


def symmetrised_gradient(vectors: Tensor, voxel_size: Triple) -> Tensor:
    """Half of J + J^T [1/mm], J the backward differences of (*batch, 3, x, y, z): shape (*batch, 6, x, y, z)."""
    parts = vectors.unbind(dim=-4)
    tensors = []
    for i, j in PAIRS:
        part = behind(parts[i], SPACE[j], voxel_size[j])
        tensors.append(part if i == j else part.add_(behind(parts[j], SPACE[i], voxel_size[i])).div_(2))
    return torch.stack(tensors, dim=-4)


def symmetrised_divergence(tensors: Tensor, voxel_size: Triple) -> Tensor:
    """(*batch, 6, x, y, z) to (*batch, 3, x, y, z) [1/mm]: minus the adjoint of `symmetrised_gradient`.

    The inner product of tensors is that of 3 x 3 matrices: what is off the diagonal counts twice.
    """
    parts = tensors.unbind(dim=-4)
    rows: list[list[Tensor]] = [[], [], []]
    for (i, j), part in zip(PAIRS, parts, strict=True):
        rows[i].append(ahead(part, SPACE[j], voxel_size[j]))
        if i != j:
            rows[j].append(ahead(part, SPACE[i], voxel_size[i]))
    return torch.stack([a.add_(b).add_(c) for a, b, c in rows], dim=-4)


def difference_spectra(shape: Shape, voxel_size: Triple, *, device: torch.device | None = None) -> list[Tensor]:
    """Eigenvalues [1/mm] of the parts of `gradient` on the half spectrum, complex128, one vector for each axis.

    Those of the backward differences are minus their conjugates.
    """
    spectra = []
    for axis, (n, size) in enumerate(zip(shape, voxel_size, strict=True)):
        k = torch.arange(n // 2 + 1 if axis == 2 else n, device=device, dtype=torch.float64)
        angle = 2 * torch.pi * k / n
        spectra.append(along_axis(torch.complex(angle.cos() - 1, angle.sin()) / size, axis))
    return spectra


def laplacian_spectrum(shape: Shape, voxel_size: Triple, *, device: torch.device | None = None) -> Tensor:
    """Eigenvalues [1/mm^2] of -divergence(gradient) on the half spectrum of `rfftn`, non-negative."""
    terms = []
    for axis, (n, size) in enumerate(zip(shape, voxel_size, strict=True)):
        k = torch.arange(n // 2 + 1 if axis == 2 else n, device=device, dtype=torch.float64)
        terms.append(along_axis((2 * torch.sin(torch.pi * k / n) / size).square(), axis))
    return (terms[0] + terms[1] + terms[2]).float()


def along_axis(values: Tensor, axis: int) -> Tensor:
    """A vector shaped to broadcast along axis 0, 1 or 2 of (x, y, z)."""
    view = [1, 1, 1]
    view[axis] = -1
    return values.reshape(view)


def rfft(volume: Volume, shape: Sequence[int] | None = None) -> Tensor:
    """Half spectrum over space; zero-padded to `shape` at the far end where it is given."""
    return torch.fft.rfftn(volume, s=None if shape is None else tuple(shape), dim=SPACE)


def irfft(spectrum: Tensor, shape: Sequence[int], kept: Sequence[int] | None = None) -> Tensor:
    """Inverse of `rfft` on a grid of `shape`; needed because a half spectrum does not tell odd from even.

    Of a padded grid only the first `kept` voxels of each axis are computed: less than half the work for a doubled one.
    """
    if kept is None or tuple(kept) == tuple(shape):
        return torch.fft.irfftn(spectrum, s=tuple(shape), dim=SPACE)
    x, y, z = kept
    planes = torch.fft.ifft(spectrum, dim=-3)[..., :x, :, :]
    lines = torch.fft.ifft(planes, dim=-2)[..., :y, :]
    return torch.fft.irfft(lines, n=shape[2], dim=-1)[..., :z]


def fast_shape(shape: Sequence[int]) -> Shape:
    """The next grid whose sides are products of 2, 3 and 5, even along z: fast for real transforms."""
    x, y, z = (int(next_fast_len(int(n), real=True) or n) for n in shape)
    while z % 2:
        z = int(next_fast_len(z + 1, real=True) or z + 1)
    return x, y, z


def crop(volume: Tensor, shape: Sequence[int]) -> Tensor:
    """The first voxels of each axis: undoes zero-padding at the far end."""
    x, y, z = shape
    return volume[..., :x, :y, :z]


def bounding_box(mask: Tensor, margin: Sequence[int] = (0, 0, 0)) -> tuple[slice, slice, slice]:
    """Slices around the true voxels of (x, y, z), grown by `margin` voxels within the grid.

    Raises:
        InputError: The mask is empty.
    """
    slices = []
    plane = mask.any(dim=0)
    for axis, line in enumerate((mask.any(dim=2).any(dim=1), plane.any(dim=1), plane.any(dim=0))):
        (inside,) = torch.nonzero(line, as_tuple=True)
        if inside.numel() == 0:
            raise InputError("the mask is empty")
        low = max(int(inside[0]) - margin[axis], 0)
        slices.append(slice(low, min(int(inside[-1]) + 1 + margin[axis], mask.shape[axis])))
    return slices[0], slices[1], slices[2]


def block_mean(volume: Tensor, step: Shape) -> Tensor:
    """Means over blocks of `step` voxels of (*batch, x, y, z); zeros fill the last blocks up."""
    padding = [n for size, length in zip(volume.shape[:-4:-1], step[::-1], strict=True) for n in (0, -size % length)]
    filled = pad(volume, padding)
    means = avg_pool3d(filled.reshape(-1, 1, *filled.shape[-3:]), step)
    return means.reshape(*volume.shape[:-3], *means.shape[-3:])


def from_blocks(means: Tensor, step: Shape, shape: Sequence[int]) -> Tensor:
    """Volumes (x, y, z) of `shape` between means of blocks of `step` voxels: the inverse of `block_mean` if smooth.

    This interpolation places the blocks' centres where the means belong.
    """
    wide = [n * length for n, length in zip(means.shape[-3:], step, strict=True)]
    flat = interpolate(means.reshape(-1, 1, *means.shape[-3:]), size=wide, mode="trilinear", align_corners=False)
    return crop(flat, shape).reshape(*means.shape[:-3], *shape)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over space, shape (*batch, 1, 1, 1)."""
    return (a * b).sum(dim=SPACE, keepdim=True)


def conjugate_gradient(
    operator: Callable[[Volume], Volume],
    right_side: Volume,
    *,
    start: Volume | None = None,
    precondition: Callable[[Volume], Volume] | None = None,
    iterations: int = 50,
    tolerance: float = 1e-3,
) -> Volume:
    """Solve operator(x) = right_side for a symmetric positive (semi-)definite operator.

    Args:
        operator: Linear map of volumes to volumes of the same shape.
        right_side: Shape (*batch, x, y, z); every member of a batch has its own step sizes.
        start: First guess, zero if None.
        precondition: An approximate inverse of the operator, symmetric and positive definite as well.
        iterations: Most steps.
        tolerance: Stop once every residual is below this share of its right side.

    Returns:
        x, same shape.

    References:
        Hestenes and Stiefel 1952, doi:10.6028/jres.049.044.
    """
    x = torch.zeros_like(right_side) if start is None else start.clone()
    residual = right_side - operator(x) if start is not None else right_side.clone()
    sloped = residual if precondition is None else precondition(residual)
    direction = sloped.clone()
    energy = dot(residual, sloped)
    goal = tolerance**2 * dot(right_side, right_side)
    tiny = torch.finfo(right_side.dtype).tiny
    for _ in range(iterations):
        size = energy if precondition is None else dot(residual, residual)
        if (size <= goal).all():
            break
        mapped = operator(direction)
        step = energy / dot(direction, mapped).clamp_min(tiny)
        x.addcmul_(step, direction)
        residual.addcmul_(step, mapped, value=-1)
        sloped = residual if precondition is None else precondition(residual)
        previous, energy = energy, dot(residual, sloped)
        direction = torch.addcmul(sloped, energy / previous.clamp_min(tiny), direction)
    return x


def shortest_turns(b0_direction: Tensor) -> Tensor:
    """Rotations (batch, 3, 3) that take z to each direction, or to its opposite where that is nearer."""
    b0 = b0_direction * torch.where(b0_direction[:, 2:] < 0, -1.0, 1.0)
    x, y, z = b0.unbind(dim=1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, zero, x, zero, zero, y, -x, -y, zero], dim=1).reshape(-1, 3, 3)
    return torch.eye(3, device=b0.device) + cross + cross @ cross / (1 + z).reshape(-1, 1, 1)
