"""Axes exchanged and mirrored so that B0 lies in one 48th of the sphere: exact, and a network has fewer to learn."""

import math
from collections.abc import Callable
from itertools import permutations

import torch
from torch import Tensor

Turn = tuple[list[int], list[int]]
"""Which old axis each new one is, and which new ones are mirrored."""
NEAR = math.radians(12)
"""How far from the standard one the direction of an image may lie: a network knows little of those beyond its edge, and
with images 25 degrees apart xQSM+ became worse."""


def standard_turns(b0_direction: Tensor) -> list[Turn]:
    """Turns of the axes for a direction (3,) of B0, each of which makes another image of the same scan.

    After the first one z >= x >= y >= 0 holds. The others leave the direction, up to its sign, within `NEAR` of where
    that one brings it, the nearest first: eight for axial scans, often none for others. Of two that differ by all axes
    mirrored one is enough: p and -p are one direction.
    """
    parts = b0_direction.tolist()
    smallest, middle, largest = sorted(range(3), key=lambda axis: abs(parts[axis]))
    first = [middle, smallest, largest]
    standard = [abs(parts[axis]) for axis in first]
    found: list[tuple[float, Turn]] = []
    for order in permutations(range(3)):
        for across in (None, 0, 1, 2):
            image = [-standard[order[axis]] if axis == across else standard[order[axis]] for axis in range(3)]
            angle = math.acos(min(abs(sum(a * b for a, b in zip(image, standard, strict=True))), 1.0))
            axes = [first[axis] for axis in order]
            # an axis on which B0 was negative is mirrored, and mirrored back where the image is
            mirrored = [axis for axis in range(3) if (parts[axes[axis]] < 0) != (axis == across)]
            found.append((round(angle, 3), (axes, mirrored)))
    return [turn for angle, turn in sorted(found, key=lambda one: one[0]) if angle <= NEAR]


def direction_in(turn: Turn, b0_direction: Tensor) -> Tensor:
    """A direction (3,) in turned axes: of p and -p, which are one, that with z >= 0."""
    order, mirrored = turn
    parts = [-b0_direction[axis] if new in mirrored else b0_direction[axis] for new, axis in enumerate(order)]
    found = torch.stack(parts)
    return -found if float(found[2]) < 0 else found


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
    forward: Callable[[Tensor, Tensor, Tensor], Tensor],
    channels: Tensor,
    b0_direction: Tensor,
    voxel_size: Tensor,
    image: int = 0,
) -> Tensor:
    """What a network finds in volumes that are turned by one of their `standard_turns`, turned back.

    Args:
        forward: The network: (channels, directions, voxel sizes) -> (batch, outputs, x, y, z).
        channels: (batch, n, x, y, z).
        b0_direction: (batch, 3).
        voxel_size: (batch, 3).
        image: Which of the turns; counted on from the first where there are fewer.
    """
    images = [standard_turns(one) for one in b0_direction]
    turns = [turns[image % len(turns)] for turns in images]
    volumes = [turned(one, turn) for one, turn in zip(channels, turns, strict=True)]
    directions = torch.stack([direction_in(turn, one) for turn, one in zip(turns, b0_direction, strict=True)])
    sizes = torch.stack([one[order] for one, (order, _) in zip(voxel_size, turns, strict=True)])
    if all(one.shape == volumes[0].shape for one in volumes):
        found = forward(torch.stack(volumes), directions, sizes)
    else:  # a grid that is no cube has become several
        found = [forward(one[None], directions[i : i + 1], sizes[i : i + 1])[0] for i, one in enumerate(volumes)]
    return torch.stack([turned_back(one, turn) for one, turn in zip(found, turns, strict=True)])
