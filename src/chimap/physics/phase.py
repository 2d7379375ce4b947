"""Whole turns, up to which a phase is known, and how echoes tell them."""

import math

import torch
from torch import Tensor

from chimap.arrays import Echoes, Volume
from chimap.linalg import ahead

TURN = 2 * math.pi


def wrap(phase: Tensor) -> Tensor:
    """Phase [rad] brought to -pi..pi by whole turns."""
    return phase - TURN * torch.round(phase / TURN)


def steps_ahead(phase: Echoes, magnitude: Echoes, echo_times: tuple[float, ...], axis: int) -> tuple[Echoes, Volume]:
    """Differences to the next voxel along an axis, and their line over the echoes, without unwrapping in space.

    Each echo's are put at the turn that those of the echoes before predict: it is enough that neighbours are less than
    half a turn apart in the first one.

    Args:
        phase: Wrapped [rad], (echo, x, y, z), ascending echo times.
        magnitude: Same shape; ones where there is none.
        echo_times: [s].
        axis: -3, -2 or -1. The voxel after the last one is the first.

    Returns:
        Differences [rad] as `phase`, and the slope [rad/s], (x, y, z), of the line through zero and them, weighted by
        the magnitudes of both voxels: the noise of all echoes, not that of one.
    """
    steps = torch.empty_like(phase)
    moment, total = torch.zeros_like(phase[0]), torch.full_like(phase[0], 1e-30)
    for index, echo_time in enumerate(echo_times):
        expected = moment / total * echo_time
        step = steps[index]
        step.copy_(ahead(phase[index], axis, 1.0).sub_(expected))
        step += expected - TURN * (step / TURN).round()
        weight = magnitude[index] * magnitude[index].roll(-1, axis)
        moment += weight * echo_time * step
        total += weight * echo_time**2
    return steps, moment / total
