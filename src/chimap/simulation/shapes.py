"""Signed distances [mm] of simple shapes at points (3, *shape), negative inside, and deep grey nuclei."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from chimap.simulation.atlas import Grid

Number = int | float
Point = tuple[Number, Number, Number]


def ellipsoid(points: Tensor, centre: Point, radii: Point) -> Tensor:
    """Distance to an ellipsoid along the axes: exact for a sphere, close near the surface for others."""
    scaled = [(points[i] - centre[i]) / radii[i] for i in range(3)]
    k = torch.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2)
    normal = [scaled[i] / radii[i] for i in range(3)]
    slope = torch.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2)
    return k * (k - 1) / slope.clamp_min(1e-6)


def capsule(points: Tensor, start: Point, end: Point, radius: Number, end_radius: Number | None = None) -> Tensor:
    """Distance to a rod with round ends whose radius changes evenly from `start` to `end`."""
    way = [end[i] - start[i] for i in range(3)]
    length = sum(step * step for step in way)
    x, y, z = (points[i] - start[i] for i in range(3))
    share = ((x * way[0] + y * way[1] + z * way[2]) / length).clamp(0, 1)
    squared = (x - share * way[0]) ** 2 + (y - share * way[1]) ** 2 + (z - share * way[2]) ** 2
    taper = 0.0 if end_radius is None else end_radius - radius
    return torch.sqrt(squared) - radius - taper * share


def chain(points: Tensor, places: Sequence[Point], radii: Sequence[Number]) -> Tensor:
    """Distance to rods from place to place."""
    distance = capsule(points, places[0], places[1], radii[0], radii[1])
    for i in range(1, len(places) - 1):
        rod = capsule(points, places[i], places[i + 1], radii[i], radii[i + 1])
        distance = torch.minimum(distance, rod)
    return distance


def blend(a: Tensor, b: Tensor, width: Number) -> Tensor:
    """Union of two shapes whose seam is rounded over `width` mm."""
    share = (0.5 + 0.5 * (b - a) / width).clamp(0, 1)
    return b + share * (a - b) - width * share * (1 - share)


# Outlines (x, y) of the right side at heights z [mm], read off the MNI152 T1 and tissue maps.
OUTLINES: dict[str, dict[float, list[tuple[float, float]]]] = {
    "putamen": {
        -9: [(18, 20), (25, 13), (29, 4), (26, 1), (18, 6), (14, 12)],
        -4: [
            (20, 21),
            (27, 14),
            (31, 3),
            (33, -8),
            (34, -15),
            (31, -15),
            (28, -6),
            (24, 3),
            (19, 9),
            (16, 14),
        ],
        0: [
            (20, 20),
            (26, 14),
            (30, 4),
            (33, -8),
            (33, -18),
            (30, -17),
            (28, -8),
            (25, 0),
            (20, 8),
            (17, 14),
        ],
        5: [(23, 18), (28, 12), (31, 2), (33, -10), (32, -19), (29, -18), (27, -8), (25, 0), (21, 10)],
        10: [(25, 13), (29, 5), (30, -5), (30, -14), (28, -15), (25, -5), (23, 4), (22, 10)],
        14: [(25, 5), (28, -3), (27, -9), (25, -3)],
    },
    "pallidum": {
        -7: [(11, 3), (18, 4), (24, -1), (22, -5), (14, -2)],
        -4: [(12, 4), (17, 7), (23, 1), (27, -7), (26, -11), (20, -6), (14, -1)],
        0: [(14, 3), (17, 6), (21, 5), (25, -2), (28, -10), (27, -14), (22, -8), (17, -2)],
        5: [(19, 3), (22, 3), (25, -3), (27, -10), (26, -13), (22, -7)],
        8: [(22, 0), (24, -3), (25, -8), (23, -6)],
    },
    "caudate": {
        -6: [(6, 12), (10, 18), (14, 20), (13, 12), (9, 9)],
        0: [(6, 8), (8, 14), (13, 22), (18, 24), (17, 18), (14, 12), (9, 6)],
        5: [(6, 6), (7, 12), (12, 21), (17, 24), (16, 17), (13, 9), (9, 3)],
        10: [(8, 4), (10, 12), (15, 22), (19, 22), (17, 14), (14, 6), (10, 0)],
        16: [(10, -3), (11, 8), (15, 17), (19, 19), (18, 10), (15, 0), (12, -5)],
        22: [(14, -9), (15, 4), (18, 12), (20, 8), (18, -6), (16, -11)],
    },
    "thalamus": {
        -2: [(5, -10), (9, -8), (14, -18), (16, -27), (10, -27), (5, -20)],
        0: [(4, -6), (8, -4), (15, -12), (20, -22), (20, -29), (14, -31), (5, -26), (3, -16)],
        5: [(3, -8), (7, -3), (12, -6), (18, -16), (21, -25), (19, -32), (10, -30), (4, -22)],
        10: [(4, -10), (6, -3), (11, -4), (17, -13), (20, -24), (18, -31), (10, -28), (5, -20)],
        15: [(5, -14), (8, -6), (13, -8), (17, -16), (17, -26), (10, -24)],
        18: [(8, -12), (12, -10), (15, -18), (11, -20)],
    },
}


@lru_cache(maxsize=8)
def outlined(name: str, step: float = 1.0) -> Grid:
    """Distance to a nucleus of `OUTLINES`: distances to the outlines, interpolated between the heights."""
    outlines = OUTLINES[name]
    heights = sorted(outlines)
    margin = 6.0
    corners = [corner for outline in outlines.values() for corner in outline]
    low = (min(x for x, _ in corners) - margin, min(y for _, y in corners) - margin, heights[0] - margin)
    sizes = (
        max(x for x, _ in corners) + margin - low[0],
        max(y for _, y in corners) + margin - low[1],
        heights[-1] + margin - low[2],
    )
    x, y, z = (torch.arange(low[i], low[i] + sizes[i] + step / 2, step) for i in range(3))
    plane = torch.stack(torch.meshgrid(x, y, indexing="ij"))
    slices = torch.stack([_polygon(plane, outlines[height]) for height in heights])
    levels = torch.tensor(heights, dtype=torch.float32)
    above = torch.searchsorted(levels, z).clamp(1, len(heights) - 1)
    share = ((z - levels[above - 1]) / (levels[above] - levels[above - 1])).clamp(0, 1)[:, None, None]
    distance = torch.lerp(slices[above - 1], slices[above], share)
    # beyond the lowest and highest outline the shape closes like a cap
    beyond = torch.maximum(levels[0] - z, z - levels[-1]).clamp_min(0)[:, None, None]
    distance = (distance + beyond**2 / 2).permute(1, 2, 0)
    last = tuple(float(axis[-1]) for axis in (x, y, z))
    return Grid(distance.contiguous()[None], low, last)


def _polygon(points: Tensor, corners: Sequence[tuple[Number, Number]]) -> Tensor:
    """Distance to a polygon in the plane, negative inside; points (2, x, y)."""
    least = torch.full(points.shape[1:], 1e9)
    crossings = torch.zeros(points.shape[1:])
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        dx, dy = x1 - x0, y1 - y0
        share = (((points[0] - x0) * dx + (points[1] - y0) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
        squared = (points[0] - x0 - share * dx) ** 2 + (points[1] - y0 - share * dy) ** 2
        least = torch.minimum(least, squared)
        if dy:  # a line towards +x meets this edge
            spans = (points[1] >= min(y0, y1)) & (points[1] < max(y0, y1))
            crossings += spans & (points[0] < x0 + (points[1] - y0) * dx / dy)
    return torch.where(crossings % 2 == 1, -1.0, 1.0) * torch.sqrt(least)
