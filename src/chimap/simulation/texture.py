"""Random smooth variation, tied to the head and not to the voxels."""

import math

import torch

from chimap.simulation.atlas import HIGH, LOW, Grid


def lattice(spacing: float, generator: torch.Generator, *, channels: int = 1, smooth: int = 0) -> Grid:
    """White noise of unit variance on a lattice over the head, `spacing` mm apart, blurred `smooth` times."""
    shape = [math.ceil((high - low) / spacing) + 1 + 2 * smooth for low, high in zip(LOW, HIGH, strict=True)]
    values = torch.randn(channels, *shape, generator=generator)
    for _ in range(smooth):
        values = torch.nn.functional.avg_pool3d(values, 3, stride=1)
    values /= values.std()
    high = tuple(low + (n - 1) * spacing for low, n in zip(LOW, values.shape[1:], strict=True))
    return Grid(values, LOW, high)


def texture_lattices(generator: torch.Generator) -> list[Grid]:
    """Slow, middle and fine variation of a tissue; their sum has unit variance."""
    octaves = ((20.0, 0.75), (8.0, 0.65), (3.5, 0.7), (1.7, 0.8))
    # interpolation between lattice points takes (2/3)^3 off the variance on average
    norm = math.sqrt(sum(weight**2 for _, weight in octaves) * (2 / 3) ** 3)
    made = []
    for spacing, weight in octaves:
        grid = lattice(spacing, generator)
        grid.values.mul_(weight / norm)
        made.append(grid)
    return made
