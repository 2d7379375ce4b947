"""How much each echo counts, voxel by voxel, where a network is shown the Laplacians of their wrapped phase.

The Laplacian of a phase over its radians per ppm is that of the field, whichever echo it comes from, so the echoes of
a scan can be one to a network: less noise, and one pass instead of one for each. But the Laplacian of a wrapped phase
is made of sines, and follows the field only where neighbours differ by little.
"""

import math

import torch
from torch.nn.functional import max_pool3d

from chimap.arrays import Echoes, Mask, Volume
from chimap.physics.phase import steps_ahead

STEEPEST = math.pi / 2
"""Largest step [rad] to a neighbour that an echo may show: beyond, the sine falls again."""


def echo_shares(
    phase: Echoes, magnitude: Echoes, mask: Mask, echo_times: tuple[float, ...], *, steepest: float = STEEPEST
) -> Echoes:
    """Weights (magnitude TE)^2, the inverse variances, of the echoes whose phase is not too steep; the first always.

    Around a strong source the late echoes turn by more than a sine can tell from one voxel to the next. There only
    early ones count, which have hardly less to say: the signal of late ones is lost soonest there.

    Args:
        phase: Wrapped [rad], (echo, x, y, z), ascending echo times.
        magnitude: Same shape; ones where there is none.
        mask: (x, y, z). Nothing outside is looked at.
        echo_times: [s].
        steepest: Largest step to a neighbour [rad].

    Returns:
        Shares as `phase`, of sum 1 in every voxel.
    """
    squares = magnitude.square()
    weights = (squares + 1e-6 * squares.mean() + 1e-30) * phase.new_tensor(echo_times).square().reshape(-1, 1, 1, 1)
    if len(echo_times) > 1:
        # what a Laplacian sees of a voxel is 27 of them
        slope = max_pool3d(_steepest_slope(phase, magnitude, mask, echo_times)[None], 3, stride=1, padding=1)[0]
        for weight, echo_time in zip(weights[1:], echo_times[1:], strict=True):
            weight *= slope * echo_time < steepest
    return weights / weights.sum(dim=0)


def _steepest_slope(phase: Echoes, magnitude: Echoes, mask: Mask, echo_times: tuple[float, ...]) -> Volume:
    """Largest change of phase over echo time from a voxel to one of its six neighbours [rad/s], (x, y, z)."""
    steepest = torch.zeros_like(phase[0])
    for axis in (-3, -2, -1):
        _, slope = steps_ahead(phase, magnitude, echo_times, axis)
        slope = slope.abs_() * (mask & mask.roll(-1, axis))
        slope.select(axis, -1).zero_()  # its neighbour is at the other end of the grid
        steepest = torch.maximum(steepest, torch.maximum(slope, slope.roll(1, axis)))
    return steepest
