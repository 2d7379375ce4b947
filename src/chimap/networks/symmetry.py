"""Axes exchanged and mirrored so that B0 lies in one 48th of the sphere: exact, and a network has fewer to learn."""

from collections.abc import Callable

import torch
from torch import Tensor

Turn = tuple[list[int], list[int]]
"""Which old axis each new one is, and which new ones are mirrored."""


def standard_turn(b0_direction: Tensor) -> Turn:
    """The one after which z >= x >= y >= 0 holds for a direction (3,): it is within 55 degrees of z."""
    smallest, middle, largest = b0_direction.abs().argsort().tolist()
    order = [middle, smallest, largest]
    return order, [axis for axis in range(3) if float(b0_direction[order[axis]]) < 0]


def turned(volumes: Tensor, turn: Turn) -> Tensor:
    """Volumes (channels, x, y, z) with their axes exchanged and mirrored."""
    order, mirrored = turn
    return volumes.permute(0, *(axis + 1 for axis in order)).flip([axis + 1 for axis in mirrored])


def turned_back(volumes: Tensor, turn: Turn) -> Tensor:
    """What undoes `turned`."""
    order, mirrored = turn
    back = [order.index(axis) + 1 for axis in range(3)]
    return volumes.flip([axis + 1 for axis in mirrored]).permute(0, *back)


def in_standard_frame(
    forward: Callable[[Tensor, Tensor, Tensor], Tensor], channels: Tensor, b0_direction: Tensor, voxel_size: Tensor
) -> Tensor:
    """What a network finds in volumes that are turned by `standard_turn`, turned back.

    Args:
        forward: The network: (channels, directions, voxel sizes) -> (batch, outputs, x, y, z).
        channels: (batch, n, x, y, z).
        b0_direction: (batch, 3).
        voxel_size: (batch, 3).
    """
    turns = [standard_turn(one) for one in b0_direction]
    volumes = [turned(one, turn) for one, turn in zip(channels, turns, strict=True)]
    orders = torch.tensor([order for order, _ in turns], device=channels.device)
    directions, sizes = b0_direction.gather(1, orders).abs(), voxel_size.gather(1, orders)
    if all(one.shape == volumes[0].shape for one in volumes):
        found = forward(torch.stack(volumes), directions, sizes)
    else:  # a grid that is no cube has become several
        found = [forward(one[None], directions[i : i + 1], sizes[i : i + 1])[0] for i, one in enumerate(volumes)]
    return torch.stack([turned_back(one, turn) for one, turn in zip(found, turns, strict=True)])
