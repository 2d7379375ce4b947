"""How far the phase of a voxel can be trusted, from the phase alone."""

import torch

from chimap.arrays import Echoes, Volume
from chimap.errors import InputError

NOISE = torch.pi / 2
"""Mean of |second difference| where the phase is pure noise [rad]: the wrapped difference is then uniform."""


def phase_quality(phase: Echoes) -> Volume:
    """Smoothness of the wrapped phase among its neighbours, 1 where it is smooth and 0 where it is noise.

    The second difference of a ramp is zero, so a steep field costs nothing; its curvature does, and so do
    air, bone and signal lost beside the sinuses. Wraps do not count. Neighbours are voxels, not lengths: the
    question is whether this grid resolves the phase.

    Args:
        phase: Wrapped phase [rad], shape (echo, x, y, z), at least 2 voxels along each axis.

    Returns:
        1 - mean |second difference| / (pi / 2) over axes, echoes and the 3 x 3 x 3 voxels around each, in
        0..1, shape (x, y, z).

    Raises:
        InputError: The shape is another one.

    References:
        Second differences as a measure of reliability: Abdul-Rahman et al. 2007, doi:10.1364/AO.46.006623.
    """
    if phase.ndim != 4 or min(phase.shape[1:]) < 2:
        raise InputError(f"phase quality needs phase of shape (echo, x, y, z), got {tuple(phase.shape)}")
    total = torch.zeros_like(phase[0])
    for echo in phase:
        for axis in range(3):
            total += _second_difference(echo, axis)
    mean = _neighbourhood_mean(total) / (3 * len(phase))
    return (1 - mean / NOISE).clamp(0, 1)


def _second_difference(echo: Volume, axis: int) -> Volume:
    """|wrapped second difference| along an axis [rad]; the outermost voxels take their neighbours' value."""
    n = echo.shape[axis]
    if n < 3:
        return torch.zeros_like(echo)
    inner = echo.narrow(axis, 0, n - 2) + echo.narrow(axis, 2, n - 2) - 2 * echo.narrow(axis, 1, n - 2)
    inner -= 2 * torch.pi * torch.round(inner / (2 * torch.pi))
    inner.abs_()
    return torch.cat([inner.narrow(axis, 0, 1), inner, inner.narrow(axis, n - 3, 1)], dim=axis)


def _neighbourhood_mean(volume: Volume) -> Volume:
    """Mean over 3 x 3 x 3 voxels; beyond the border the outermost voxel is repeated."""
    for axis in range(3):
        n = volume.shape[axis]
        before = torch.cat([volume.narrow(axis, 0, 1), volume.narrow(axis, 0, n - 1)], dim=axis)
        after = torch.cat([volume.narrow(axis, 1, n - 1), volume.narrow(axis, n - 1, 1)], dim=axis)
        volume = (before + volume + after) / 3
    return volume
