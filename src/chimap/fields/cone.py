"""The direction of B0 that a local field itself speaks for.

In k-space the field of a source is its chi times D = 1/3 - cos^2 of the angle to B0: none on a cone, most along B0.
Chi is about as strong in every direction, so how a field's energy depends on the direction of k tells where B0 lies.
"""

import math

import torch
from torch import Tensor

from chimap.arrays import Mask, Triple, Volume
from chimap.linalg import fast_shape, rfft

BAND = (0.02, 0.12)
"""Frequencies that are looked at [1/mm]: below, the mask and what is left of the background; above, noise."""
FLOOR = 0.02
"""Of the energy, beside D^2: noise, and the mask, which blurs the spectrum."""
RINGS = 24
"""Of the band, each with its own strength."""
BINS = (32, 96)
"""Of directions, over cos(angle to z) and azimuth: about 3 degrees."""
CANDIDATES = 400
"""Directions over half a sphere, about 7 degrees apart, from which the search goes on."""


def b0_from_field(local_field: Volume, mask: Mask, voxel_size: Triple, stated: Triple) -> tuple[Triple, float]:
    """The direction of B0 under which a local field is most likely, and how much less likely the stated one makes it.

    The coefficients of its spectrum are taken as independent and Gaussian with the variance D^2 + `FLOOR` times a
    strength for every length of k: Whittle's likelihood. B0 and its opposite are the same.

    Args:
        local_field: [ppm], (x, y, z), found without knowledge of B0.
        mask: Where it is valid.
        voxel_size: [mm].
        stated: Unit vector in voxel axes.

    Returns:
        Unit vector in voxel axes with z >= 0, and the difference of the mean log likelihood per coefficient.
    """
    energy, count, direction = _energy_by_direction(local_field, mask, voxel_size)
    b0 = torch.tensor(stated, dtype=torch.float32)

    def unlikely(candidates: Tensor) -> Tensor:
        expected = (1 / 3 - (direction @ candidates.T).square()).square() + FLOOR
        expected = expected / (4 / 45 + FLOOR)  # 4/45 is the mean of D^2 over all directions
        return (count[:, None] * expected.log() + energy[:, None] / expected).sum(dim=0) / count.sum()

    candidates = _half_sphere(CANDIDATES)
    best = candidates[int(unlikely(candidates).argmin())]
    for spread in (6.0, 2.5, 1.0):
        near = _around(best, math.radians(spread))
        best = near[int(unlikely(near).argmin())]
    best = torch.where(best[2] < 0, -best, best)
    worse = unlikely(torch.stack([b0 / b0.norm(), best]))
    x, y, z = best.tolist()
    return (x, y, z), max(float(worse[0] - worse[1]), 0.0)


def _energy_by_direction(field: Volume, mask: Mask, voxel_size: Triple) -> tuple[Tensor, Tensor, Tensor]:
    """Of every bin of directions: sum of energy relative to the mean at the same |k|, number, mean direction."""
    inside = mask.to(field)
    taper = inside
    for _ in range(2):  # a sharp edge would smear the spectrum
        taper = torch.nn.functional.avg_pool3d(taper[None, None], 3, 1, 1)[0, 0]
    taper = taper * inside
    mean = (field * taper).sum() / taper.sum()
    x, y, z = (2 * n for n in field.shape)
    shape = fast_shape((x, y, z))
    power = rfft((field - mean) * taper, shape).abs().square()
    axes = [
        (torch.fft.rfftfreq if axis == 2 else torch.fft.fftfreq)(n, size)
        for axis, (n, size) in enumerate(zip(shape, voxel_size, strict=True))
    ]
    k = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).to(power)
    length = k.norm(dim=-1)
    low, high = BAND
    band = (length > low) & (length < high)
    power, k, length = power[band], k[band], length[band]
    ring = ((length - low) / (high - low) * RINGS).long().clamp(0, RINGS - 1)
    level = _sums(power, ring, RINGS) / _sums(torch.ones_like(power), ring, RINGS).clamp_min(1)
    energy = (power / level.clamp_min(1e-30)[ring]).cpu()
    direction = (k / length[:, None]).cpu()
    direction = torch.where(direction[:, 2:] < 0, -direction, direction)
    rows, columns = BINS
    row = (direction[:, 2] * rows).long().clamp(0, rows - 1)
    azimuth = torch.atan2(direction[:, 1], direction[:, 0]) / (2 * math.pi) + 0.5
    place = row * columns + (azimuth * columns).long().clamp(0, columns - 1)
    count = _sums(torch.ones_like(energy), place, rows * columns)
    total = torch.stack([_sums(part, place, rows * columns) for part in direction.T], dim=1)
    taken = count > 0
    mean_direction = total[taken] / total[taken].norm(dim=1, keepdim=True)
    return _sums(energy, place, rows * columns)[taken], count[taken], mean_direction


def _sums(values: Tensor, index: Tensor, size: int) -> Tensor:
    return torch.zeros(size).to(values).index_add(0, index, values)


def _half_sphere(count: int) -> Tensor:
    """Directions evenly over the half with z >= 0, (count, 3): a Fibonacci spiral."""
    index = torch.arange(count) + 0.5
    z = 1 - index / count
    angle = math.pi * (1 + math.sqrt(5)) * index
    across = (1 - z.square()).sqrt()
    return torch.stack([across * angle.cos(), across * angle.sin(), z], dim=1)


def _around(direction: Tensor, angle: float) -> Tensor:
    """A direction and two rings of others about it, the outer one at an angle [rad]: (17, 3)."""
    helper = torch.eye(3)[int(direction.abs().argmin())]
    across = torch.linalg.cross(direction, helper)
    across = across / across.norm()
    other = torch.linalg.cross(direction, across)
    found = [direction]
    for tilt in (angle / 2, angle):
        for turn in torch.linspace(0, 2 * math.pi, 9)[:-1].tolist():
            aside = math.cos(turn) * across + math.sin(turn) * other
            found.append(math.cos(tilt) * direction + math.sin(tilt) * aside)
    return torch.stack(found)
