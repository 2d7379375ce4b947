"""Whole turns, up to which a phase is known."""

import math

import torch
from torch import Tensor

TURN = 2 * math.pi


def wrap(phase: Tensor) -> Tensor:
    """Phase [rad] brought to -pi..pi by whole turns."""
    return phase - TURN * torch.round(phase / TURN)
