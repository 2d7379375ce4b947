"""Sources whose field is known exactly: a sphere and an infinitely long cylinder, in any B0 and voxel size.

Both are magnetised in proportion to B0 (chi << 1), and fields are what a nucleus feels: the Lorentz sphere
is taken off. Positions are voxel index times voxel size [mm].
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from chimap.arrays import Shape, Triple, Volume
from chimap.linalg import along_axis
from chimap.physics.dipole import unit_vector


def sphere(
    shape: Shape,
    voxel_size: Triple,
    *,
    centre: Triple,
    radius: float,
    chi: float = 1.0,
    supersampling: int = 4,
) -> Volume:
    """Susceptibility [ppm] of a sphere, partial volume at its surface, shape (x, y, z).

    Args:
        shape: Grid.
        voxel_size: [mm].
        centre: [mm], in voxel axes from the centre of voxel (0, 0, 0).
        radius: [mm].
        chi: Inside [ppm]; 0 outside.
        supersampling: Points along each axis of a voxel that decide its share.
    """

    def inside(points: Sequence[Tensor]) -> Tensor:
        x, y, z = (point - middle for point, middle in zip(points, centre, strict=True))
        return x**2 + y**2 + z**2 <= radius**2

    return chi * _share(inside, shape, voxel_size, supersampling)


def sphere_field(
    shape: Shape,
    voxel_size: Triple,
    b0_direction: Triple,
    *,
    centre: Triple,
    radius: float,
    chi: float = 1.0,
) -> Volume:
    """Field [ppm] of a sphere at the voxel centres: 0 inside, that of a point dipole outside.

    field = chi / 3 (radius / r)^3 (3 cos^2 theta - 1), theta between B0 and the way to the centre.

    References:
        Haacke et al. 1999, Magnetic Resonance Imaging: Physical Principles and Sequence Design, chapter 25.
    """
    b = unit_vector(b0_direction)
    offset = [p - c for p, c in zip(_positions(shape, voxel_size), centre, strict=True)]
    squared = offset[0] ** 2 + offset[1] ** 2 + offset[2] ** 2
    along = b[0] * offset[0] + b[1] * offset[1] + b[2] * offset[2]
    outside = squared > radius**2
    squared = squared.clamp_min(radius**2)
    field = chi / 3 * (radius**2 / squared) ** 1.5 * (3 * along**2 / squared - 1)
    return torch.where(outside, field, 0.0).float()


def cylinder(
    shape: Shape,
    voxel_size: Triple,
    *,
    centre: Triple,
    axis: Triple,
    radius: float,
    chi: float = 1.0,
    supersampling: int = 4,
) -> Volume:
    """Susceptibility [ppm] of a cylinder that runs through the whole grid, partial volume at its surface.

    Args:
        shape: Grid.
        voxel_size: [mm].
        centre: A point of the axis [mm].
        axis: Direction in voxel axes; normalised here.
        radius: [mm].
        chi: Inside [ppm]; 0 outside.
        supersampling: Points along each axis of a voxel that decide its share.
    """
    a = unit_vector(axis)

    def inside(points: Sequence[Tensor]) -> Tensor:
        offset = [point - middle for point, middle in zip(points, centre, strict=True)]
        along = a[0] * offset[0] + a[1] * offset[1] + a[2] * offset[2]
        return offset[0] ** 2 + offset[1] ** 2 + offset[2] ** 2 - along**2 <= radius**2

    return chi * _share(inside, shape, voxel_size, supersampling)


def cylinder_field(
    shape: Shape,
    voxel_size: Triple,
    b0_direction: Triple,
    *,
    centre: Triple,
    axis: Triple,
    radius: float,
    chi: float = 1.0,
) -> Volume:
    """Field [ppm] of an infinitely long cylinder at the voxel centres.

    Inside chi / 6 (3 cos^2 theta - 1), outside chi / 2 (radius / r)^2 sin^2 theta cos 2 phi: theta between
    axis and B0, phi around the axis from the plane of both.

    References:
        Haacke et al. 1999, Magnetic Resonance Imaging: Physical Principles and Sequence Design, chapter 25.
    """
    b, a = unit_vector(b0_direction), unit_vector(axis)
    cosine = sum(p * q for p, q in zip(a, b, strict=True))
    across = [p - cosine * q for p, q in zip(b, a, strict=True)]  # of B0 across the axis, length sin(theta)
    offset = [p - c for p, c in zip(_positions(shape, voxel_size), centre, strict=True)]
    along = a[0] * offset[0] + a[1] * offset[1] + a[2] * offset[2]
    squared = offset[0] ** 2 + offset[1] ** 2 + offset[2] ** 2 - along**2
    outside = squared > radius**2
    squared = squared.clamp_min(radius**2)
    # sin^2(theta) cos(2 phi) = 2 (across . r)^2 / r^2 - |across|^2; `across` is at a right angle to the axis
    projection = across[0] * offset[0] + across[1] * offset[1] + across[2] * offset[2]
    angular = 2 * projection**2 / squared - (1 - cosine**2)
    field = torch.where(outside, chi / 2 * radius**2 / squared * angular, chi / 6 * (3 * cosine**2 - 1))
    return field.float()


def _positions(shape: Shape, voxel_size: Triple) -> list[Tensor]:
    """Voxel centres [mm] along each axis, shaped to broadcast over the grid, float64."""
    sides = enumerate(zip(shape, voxel_size, strict=True))
    return [along_axis(torch.arange(n, dtype=torch.float64) * size, axis) for axis, (n, size) in sides]


def _share(
    inside: Callable[[Sequence[Tensor]], Tensor], shape: Shape, voxel_size: Triple, supersampling: int
) -> Volume:
    """Share of each voxel's sample points that are `inside`."""
    if supersampling < 1:
        raise ValueError(f"supersampling is {supersampling}, needed at least 1")
    positions = _positions(shape, voxel_size)
    steps = [((i + 0.5) / supersampling - 0.5) for i in range(supersampling)]
    share = torch.zeros(shape)
    for x in steps:
        for y in steps:
            for z in steps:
                moved = [p + s * d for p, s, d in zip(positions, (x, y, z), voxel_size, strict=True)]
                share += inside(moved)
    return share / supersampling**3
