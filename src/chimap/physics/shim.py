"""What a scanner's shim coils can make or take off: harmonic polynomials, which have no sources in the head."""

import torch
from torch import Tensor

from chimap.arrays import Triple, Volume
from chimap.linalg import along_axis


def shim_field(field: Volume, weight: Volume, voxel_size: Triple) -> Volume:
    """The harmonic polynomial of second order (constant, 3 linear, 5 quadratic terms) that fits the field best.

    Args:
        field: [ppm], shape (x, y, z).
        weight: Of the squared misfit, zero where the field is not known.
        voxel_size: [mm].

    Returns:
        [ppm], on the whole grid.
    """
    positions = centred_positions(field, voxel_size)
    # nine numbers need no more than some ten thousand voxels
    step = max(int((field.numel() / 1e5) ** (1 / 3)), 1)
    thin = (slice(None, None, step),) * 3
    part = field[thin]
    known = weight[thin] > 0
    terms = _harmonics([position[thin] for position in positions])
    columns = torch.stack([term.expand(part.shape)[known] for term in terms]).double()
    weighted = columns * weight[thin][known].double()
    ridge = torch.eye(len(terms), dtype=torch.float64, device=field.device) * 1e-9 * weighted[0].sum()
    coefficients = torch.linalg.solve(weighted @ columns.T + ridge, weighted @ part[known].double())
    fitted = torch.zeros_like(field)
    for coefficient, term in zip(coefficients.to(field), _harmonics(positions), strict=True):
        fitted.addcmul_(coefficient, term)
    return fitted


def _harmonics(positions: list[Tensor]) -> list[Tensor]:
    x, y, z = positions
    return [x * 0 + 1, x, y, z, x * y, x * z, y * z, x**2 - y**2, 2 * z**2 - x**2 - y**2]


def centred_positions(volume: Volume, voxel_size: Triple) -> list[Tensor]:
    """Distance from the middle of the grid along each axis [100 mm], shaped to broadcast, type of the volume."""
    sides = enumerate(zip(volume.shape, voxel_size, strict=True))
    return [along_axis((torch.arange(n).to(volume) - (n - 1) / 2) * size / 100, axis) for axis, (n, size) in sides]
