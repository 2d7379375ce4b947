"""Deep grey nuclei that no label map has, as shapes in atlas coordinates [mm], right side."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from chimap.simulation.shapes import Point, capsule, chain, ellipsoid


@dataclass(frozen=True)
class Nucleus:
    """A shape in a box, both mirrored on the left.

    Attributes:
        name: Tissue.
        low: Lower corner of a box that holds it [mm].
        high: Upper corner.
        distance: Signed distance [mm] at points (3, *shape), negative inside.
    """

    name: str
    low: Point
    high: Point
    distance: Callable[[Tensor], Tensor]


def _red_nucleus(points: Tensor) -> Tensor:
    return ellipsoid(points, (4.8, -19.5, -8), (3.0, 3.4, 4.4))


def _substantia_nigra(points: Tensor) -> Tensor:
    """A crescent of two rods."""
    ends = [(6, -13, -15), (9.5, -15, -13), (13, -19.5, -10)]
    rods = chain(points, ends, [1.6, 2.0, 1.3])
    lower = chain(
        points - points.new_tensor([0.0, -0.5, -2.5]).reshape(3, *[1] * (points.ndim - 1)), ends, [1.2, 1.6, 1]
    )
    return torch.minimum(rods, lower)


def _subthalamic_nucleus(points: Tensor) -> Tensor:
    return chain(points, [(9, -11.5, -8), (12.5, -14, -5.5)], [1.5, 1.6])


def dentate(points: Tensor) -> Tensor:
    """A folded sheet, open towards the middle and the front."""
    x, y, z = (points[i] - middle for i, middle in enumerate(DENTATE))
    around = torch.atan2(z / 5.6, x / 6.8)
    fold = 0.9 * torch.sin(7 * around + 0.35 * y)
    sheet = (ellipsoid(points, DENTATE, (6.8, 9.0, 5.6)) + fold).abs() - 1.0
    hilus = capsule(points, (12, -52, -33), (4, -44, -28), 4.0)
    return torch.maximum(sheet, -hilus)


DENTATE: Point = (15.5, -58.0, -35.0)
"""Middle of the dentate nucleus."""

SMALL_NUCLEI = (
    Nucleus("red nucleus", (0, -26, -14), (10, -14, -3), _red_nucleus),
    Nucleus("substantia nigra", (0, -26, -22), (18, -8, -5), _substantia_nigra),
    Nucleus("subthalamic nucleus", (4, -18, -11), (16, -8, -2), _subthalamic_nucleus),
    Nucleus("dentate nucleus", (5, -72, -46), (26, -44, -24), dentate),
)
