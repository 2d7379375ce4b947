"""Solids on a grid, with partial volume at their surface, and rotations to turn them by.

Numbers are drawn on the generator's device. A solid is drawn within its bounding box only.
"""

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from chimap.arrays import Shape, Triple, Volume
from chimap.linalg import along_axis

Solid: TypeAlias = Literal["ellipsoid", "sphere", "cuboid", "cylinder"]

Range: TypeAlias = tuple[float, float]

Box: TypeAlias = tuple[slice, slice, slice]

# A solid is the intersection of these, each |the named own coordinates / radii| <= 1.
ROUND: dict[str, tuple[tuple[int, ...], ...]] = {
    "ellipsoid": ((0, 1, 2),),
    "sphere": ((0, 1, 2),),
    "cylinder": ((0, 1), (2,)),
    "cuboid": ((0,), (1,), (2,)),
}

FINENESS = 3.0
"""Voxels are split until so many of their parts fit into the least radius of a solid."""


def random_rotation(generator: torch.Generator) -> Tensor:
    """A rotation matrix, shape (3, 3), uniform over all rotations.

    References:
        Shoemake 1992, Uniform random rotations, in Graphics Gems III.
    """
    return rotations(1, generator)[0]


def random_direction(generator: torch.Generator) -> Triple:
    """A unit vector, uniform on the sphere."""
    x, y, z = torch.randn(3, generator=generator, device=generator.device, dtype=torch.float64).tolist()
    length = math.sqrt(x * x + y * y + z * z)
    return x / length, y / length, z / length


def solid(
    kind: Solid,
    shape: Shape,
    voxel_size: Triple,
    *,
    centre: Triple,
    radii: Triple,
    rotation: Sequence[Sequence[float]] | np.ndarray = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    hard: bool = False,
    device: torch.device | None = None,
) -> tuple[Box, Volume]:
    """Share of each voxel that lies in a solid, within the part of the grid that the solid can reach.

    The soft edge is one voxel wide along the surface's normal. It allows for curvature, and voxels that are not
    small beside the solid are split into parts, so that the shares add up to the solid's volume within 1 %.

    Args:
        kind: A sphere or a cylinder's cross-section with unequal radii is an ellipsoid, an ellipse.
        shape: Grid.
        voxel_size: [mm].
        centre: [mm], in voxel axes from the centre of voxel (0, 0, 0).
        radii: Half axes, half edges, or the cross-section's radii and half the length [mm].
        rotation: Its columns are the solid's own axes.
        hard: Give 1 to voxels whose centre lies inside and 0 to others.
        device: Of the result.

    Returns:
        The box, which may be empty, and the share in it, 0 to 1.
    """
    turn = np.asarray(rotation, dtype=float)
    size = np.asarray(voxel_size, dtype=float)
    # own coordinates / radii = own @ (voxel index - middle)
    own = turn.T * size / np.asarray(radii)[:, None]
    middle = np.asarray(centre) / size
    # half the bounding box: along a unit vector, |.| <= 1 of some coordinates reaches as far as the vector's norm
    scaled = turn * np.asarray(radii) / size[:, None]
    reach = np.sum([np.linalg.norm(scaled[:, list(group)], axis=1) for group in ROUND[kind]], axis=0) + 1
    low = [min(max(math.ceil(a), 0), n) for a, n in zip(middle - reach, shape, strict=True)]
    high = [max(min(math.floor(b) + 1, n), a) for b, n, a in zip(middle + reach, shape, low, strict=True)]
    parts = [1 if hard else min(math.ceil(FINENESS * d / min(radii)), 16) for d in voxel_size]
    axes = []
    for axis, (n, a, b) in enumerate(zip(parts, low, high, strict=True)):
        start = a - 0.5 + 0.5 / n - middle[axis]
        axes.append(along_axis(torch.arange((b - a) * n, device=device, dtype=torch.float32) / n + start, axis))
    share = torch.ones((), device=device)
    for group in ROUND[kind]:
        share = share * _round_share(own[list(group)], axes, parts, hard)
    if max(parts) > 1:
        x, y, z = (b - a for a, b in zip(low, high, strict=True))
        share = share.reshape(x, parts[0], y, parts[1], z, parts[2]).mean(dim=(1, 3, 5))
    x, y, z = (slice(a, b) for a, b in zip(low, high, strict=True))
    return (x, y, z), share


def _round_share(own: np.ndarray, axes: Sequence[Tensor], parts: Sequence[int], hard: bool) -> Tensor:
    """Share of each part of a voxel where |own u| <= 1, u in voxels along `axes`.

    The distance to the surface in parts of a voxel, to first order, is (|q| - 1) / |gradient of |q||: a ramp of
    width 1 over it has the variance of a voxel cut by a plane. The mean of |q|^2 over a voxel exceeds its value
    in the middle; the share of it that comes from curvature, across the normal, moves the surface inwards.
    """
    counts = np.asarray(parts, dtype=float)
    narrow = own / counts  # per part of a voxel
    if len(own) == 1:
        ((a, b, c),) = own.tolist()
        x, y, z = axes
        distance = ((a * x + b * y) + c * z).abs() - 1
        return (distance <= 0).float() if hard else (0.5 - distance / float(np.linalg.norm(narrow))).clamp(0, 1)
    squared = _quadratic(own.T @ own, axes)
    if hard:
        return (squared <= 1).float()
    # |gradient of |q|| is the root of u' M^2 u / u' M u, and u' M^3 u / u' M^2 u is the curvature along the normal
    metric = narrow.T @ narrow
    trace = float(np.trace(metric))
    outer = np.outer(counts, counts)
    tiny = 1e-4  # keeps 0 / 0 from the middle, where the ratios have no limit
    slope = _quadratic(metric @ metric * outer, axes) + tiny * trace
    bend = _quadratic(metric @ metric @ metric * outer, axes) + tiny * trace**2
    moved = squared + (trace - bend / slope).clamp_min(0) / 12
    return (0.5 - (moved.sqrt() - 1) * torch.sqrt((squared + tiny) / slope)).clamp(0, 1)


def _quadratic(form: np.ndarray, axes: Sequence[Tensor]) -> Tensor:
    """u' form u >= 0 on a grid, in two passes over it."""
    (xx, xy, xz), (_, yy, yz), (_, _, zz) = form.tolist()
    x, y, z = axes
    value = (xx * x * x + yy * y * y + 2 * xy * x * y) + z * (2 * (xz * x + yz * y) + zz * z)
    return value.clamp_min_(0)  # rounding may take it below


def rotations(count: int, generator: torch.Generator) -> Tensor:
    """Uniform rotation matrices (count, 3, 3), from unit quaternions."""
    quaternion = torch.randn(count, 4, generator=generator, device=generator.device)
    w, x, y, z = (quaternion / quaternion.norm(dim=1, keepdim=True)).unbind(dim=1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=1),
    ]
    return torch.stack(rows, dim=1)
