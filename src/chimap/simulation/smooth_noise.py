"""Random smooth variation on a grid, and smoothing, fast enough to be drawn for every training sample.

Both are one small matrix per axis: quick on a CPU, at home on a GPU, right for any voxel size.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from chimap.arrays import Shape, Triple, Volume
from chimap.errors import InputError
from chimap.linalg import SPACE


def smooth_noise(
    shape: Shape,
    voxel_size: Triple,
    spacing_mm: float,
    *,
    generator: torch.Generator,
    channels: int | None = None,
) -> Tensor:
    """Gaussian noise of mean 0 and variance 1 that varies over `spacing_mm`: 0.5 is its correlation at that distance.

    White noise on a lattice, brought to the grid by cubic B-splines. The lattice lies along the grid's axes, shifted
    at random. The weights of each voxel have unit norm, so every voxel has variance 1, wherever between lattice
    points it lies; that is over draws: a grid of few spacings may hold more or less.

    Args:
        shape: Grid (x, y, z).
        voxel_size: [mm].
        spacing_mm: Of the lattice. Along an axis whose voxels are no shorter, the noise is white.
        generator: Its device is the result's.
        channels: So many independent volumes; None for one without a channel axis.

    Returns:
        No unit, shape (x, y, z) or (channels, x, y, z), float32.

    Raises:
        InputError: The spacing is no positive length.
    """
    if not (spacing_mm > 0 and math.isfinite(spacing_mm)):
        raise InputError(f"the noise's spacing is {spacing_mm} mm, needed a length above 0")
    device = generator.device
    shifts = torch.rand(3, generator=generator, device=device)
    matrices = [
        _spline_rows(n, size / spacing_mm, shift) if size < spacing_mm else None
        for n, size, shift in zip(shape, voxel_size, shifts, strict=True)
    ]
    lattice = [n if rows is None else rows.shape[1] for n, rows in zip(shape, matrices, strict=True)]
    white = torch.randn((channels or 1, *lattice), generator=generator, device=device)
    noise = _along_axes(white, matrices)
    return noise if channels is not None else noise[0]


def gaussian_blur(volume: Volume, voxel_size: Triple, sigma_mm: float) -> Volume:
    """Convolution with a Gaussian; beyond the grid its outermost voxels go on.

    Where the Gaussian spans many voxels it is evaluated half a sigma apart and interpolated, which is off by at
    most 2 % of the volume's range.

    Args:
        volume: Shape (*batch, x, y, z).
        voxel_size: [mm].
        sigma_mm: Standard deviation [mm].

    Returns:
        Same shape and unit.
    """
    blurring, filling = [], []
    for n, size in zip(volume.shape[-3:], voxel_size, strict=True):
        step = max(sigma_mm / size / 2, 1.0)
        if step < 1.5:
            step = 1.0
        voxels = torch.arange(n, device=volume.device, dtype=volume.dtype)
        count = n if step == 1 else math.ceil((n - 1) / step) + 1
        nodes = torch.arange(count, device=volume.device, dtype=volume.dtype) * step
        blurring.append(_gaussian_rows(nodes, n, sigma_mm / size))
        filling.append((1 - (voxels[:, None] - nodes).abs() / step).clamp_min(0) if step > 1 else None)
    return _along_axes(_along_axes(volume, blurring), filling)


def _spline_rows(n: int, step: float, shift: Tensor) -> Tensor:
    """Cubic B-spline weights (n, lattice points) at voxels `step` lattice points apart, each row of norm 1."""
    position = torch.arange(n, device=shift.device) * step + shift + 1
    points = torch.arange(math.ceil((n - 1) * step) + 4, device=shift.device)
    away = (position[:, None] - points).abs()
    near = 2 / 3 - away**2 + away**3 / 2
    far = (2 - away).clamp_min(0) ** 3 / 6
    weights = torch.where(away < 1, near, far)
    return weights / weights.norm(dim=1, keepdim=True)


def _gaussian_rows(nodes: Tensor, n: int, sigma: float) -> Tensor:
    """Weights (nodes, n) of the voxels 0 .. n - 1 at positions `nodes` [voxels], each row of sum 1."""
    reach = math.ceil(4 * sigma) + 1
    voxels = torch.arange(-reach, n + reach, device=nodes.device)
    # a minute sigma leaves the nearest voxel alone, without dividing 0 by 0
    weights = torch.softmax(-(((nodes[:, None] - voxels) / max(sigma, 1e-3)) ** 2) / 2, dim=1)
    inside = weights[:, reach : reach + n].clone()
    inside[:, 0] += weights[:, :reach].sum(dim=1)
    inside[:, -1] += weights[:, reach + n :].sum(dim=1)
    return inside


def _along_axes(volume: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """Each axis of space mapped by its matrix (out, in), None for as it is."""
    for axis, matrix in zip(SPACE, matrices, strict=True):
        if matrix is None:
            continue
        if axis == -1:
            volume = volume @ matrix.T
        elif axis == -2:
            volume = matrix @ volume
        else:
            volume = (matrix @ volume.flatten(-2)).unflatten(-1, volume.shape[-2:])
    return volume
