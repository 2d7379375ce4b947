"""A brain mask as tools draw it: what separates a user's mask from the true one."""

import math

import torch
from torch import Tensor

from chimap.arrays import Mask, Triple
from chimap.errors import InputError
from chimap.linalg import SPACE, along_axis
from chimap.physics.dipole import unit_vector
from chimap.simulation.smooth_noise import gaussian_blur, smooth_noise

BITES = 0.3
"""Probability that pieces are bitten out near the base, where air makes the signal vanish; then one to three."""
BITE_RADIUS = (4.0, 10.0)
"""[mm]."""
HOLES = 0.2
"""Probability of holes, as dark veins and iron leave them in a thresholded image; then one to three."""
HOLE_RADIUS = (1.5, 4.0)
"""[mm]."""
FLOOR = 0.7
"""Least blur of the mask, as a share of the voxel size."""


def imperfect_mask(
    mask: Mask,
    voxel_size: Triple,
    *,
    amount_mm: float,
    generator: torch.Generator,
    down: Triple = (0.0, 0.0, -1.0),
) -> Mask:
    """Draw a mask that differs from the true one as the result of a tool does.

    The surface moves out and in by a smooth random distance, with patches of 10 to 20 mm: three quarters of its
    variance. The last quarter is one distance for the whole surface, since tools draw brains too wide or too
    narrow. Then `BITES` and `HOLES`, whatever the amount; then what is thinner than two voxels along any axis goes,
    so no voxel is left on its own. Nothing is filled and no part is dropped: a bite may cut a piece off.

    Distance comes from the mask blurred by a Gaussian, which across a flat surface is the normal distribution of
    depth. So furrows and ridges narrower than about 2.5 amounts are smoothed away, and no point moves by more than
    2.5 amounts.

    Args:
        mask: Shape (x, y, z).
        voxel_size: [mm].
        amount_mm: SD of the distance [mm], 0 for the mask as it is; 1 to 2 is typical.
        generator: On the mask's device.
        down: Towards the feet, in voxel axes: where the bites are.

    Returns:
        Shape (x, y, z), not a part of `mask`: a field that is to be cut with it must be known a little outside.

    Raises:
        InputError: An empty mask, an amount below 0, or a mask so small that nothing is left.
    """
    if not (amount_mm >= 0 and math.isfinite(amount_mm)):
        raise InputError(f"the amount of mask error is {amount_mm} mm, needed a length from 0")
    if mask.dim() != 3 or not mask.any():
        raise InputError(f"the mask of shape {tuple(mask.shape)} is empty or has not the shape (x, y, z)")
    if amount_mm == 0:
        return mask.clone()
    x, y, z = mask.shape
    draw = torch.rand(4, generator=generator, device=mask.device).tolist()
    common = float(torch.randn((), generator=generator, device=mask.device))
    patches = smooth_noise((x, y, z), voxel_size, 10 + 10 * draw[0], generator=generator)
    outwards = patches.mul_(math.sqrt(0.75)).add_(0.5 * common).clamp_(-2.5, 2.5)  # [amounts]
    # wide enough that 2.5 amounts are still on its slope, and that it sees a surface run between the voxels
    sigma = max(1.25 * amount_mm, FLOOR * math.prod(voxel_size) ** (1 / 3))
    blurred = gaussian_blur(mask.float(), voxel_size, sigma).clamp_(0, 1)
    moved = blurred > torch.erf(outwards.mul_(-amount_mm / (sigma * math.sqrt(2)))).add_(1).mul_(0.5)

    steps = [max(round(3.0 / size), 1) for size in voxel_size]  # places to choose from: 3 mm apart will do
    places = tuple(slice(None, None, step) for step in steps)
    if draw[1] < BITES:
        rim = (blurred * (1 - blurred))[places]
        sizes = [step * size for step, size in zip(steps, voxel_size, strict=True)]
        number = 1 + int(3 * draw[2])
        _carve(moved, rim * _base(rim > 0.05, sizes, down), steps, voxel_size, number, BITE_RADIUS, generator)
    if draw[3] < HOLES:
        number = 1 + int(3 * draw[3] / HOLES)
        _carve(moved, mask[places].float(), steps, voxel_size, number, HOLE_RADIUS, generator)
    moved = _open(moved)
    if not moved.any():
        raise InputError(f"nothing is left of the mask: it is too small for errors of {amount_mm:g} mm")
    return moved


def _base(rim: Tensor, sizes: list[float], down: Triple) -> Tensor:
    """The third of the rim's height that lies lowest, beyond the rim too."""
    direction = unit_vector(down)
    depth = torch.zeros(rim.shape, device=rim.device)
    for axis, (n, size, along) in enumerate(zip(rim.shape, sizes, direction, strict=True)):
        depth = depth + along_axis(torch.arange(n, device=rim.device) * (size * along), axis)
    lowest = depth.masked_fill(~rim, -torch.inf).amax()
    highest = depth.masked_fill(~rim, torch.inf).amin()
    return depth > lowest - (lowest - highest) / 3


def _carve(
    mask: Tensor,
    weight: Tensor,
    steps: list[int],
    voxel_size: Triple,
    number: int,
    radii: tuple[float, float],
    generator: torch.Generator,
) -> None:
    """Take uneven balls out of `mask`, in place, around places drawn with the probability `weight`."""
    if not weight.sum() > 0:
        return
    chosen = torch.multinomial(weight.flatten(), number, replacement=True, generator=generator)
    middles = torch.stack(torch.unravel_index(chosen, weight.shape), dim=1).tolist()
    scales = torch.rand(number, generator=generator, device=mask.device).tolist()
    for middle, scale in zip(middles, scales, strict=True):
        radius = radii[0] + (radii[1] - radii[0]) * scale
        box, axes = [], []
        for i, step, size, n in zip(middle, steps, voxel_size, mask.shape, strict=True):
            centre = i * step
            reach = math.ceil(1.5 * radius / size)
            box.append(slice(max(centre - reach, 0), min(centre + reach + 1, n)))
            axes.append((torch.arange(box[-1].start, box[-1].stop, device=mask.device) - centre) * size)
        i, j, k = (along_axis(axis**2, d) for d, axis in enumerate(axes))
        distance = torch.sqrt(i + j + k)
        x, y, z = distance.shape
        uneven = smooth_noise((x, y, z), voxel_size, radius, generator=generator).mul_(0.2).clamp_(-0.5, 0.5)
        mask[tuple(box)] &= distance > radius * (1 + uneven)


def _open(mask: Mask) -> Mask:
    """The voxels that lie in a block of 2 x 2 x 2 voxels of the mask."""
    axes = [axis for axis in SPACE if mask.shape[axis] > 1]
    blocks = mask  # in the end: the voxel is the first one of such a block
    for axis in axes:
        n = mask.shape[axis]
        both = torch.zeros_like(mask)
        both.narrow(axis, 0, n - 1).copy_(blocks.narrow(axis, 0, n - 1) & blocks.narrow(axis, 1, n - 1))
        blocks = both
    for axis in axes:
        n = mask.shape[axis]
        either = blocks.clone()
        either.narrow(axis, 1, n - 1).logical_or_(blocks.narrow(axis, 0, n - 1))
        blocks = either
    return blocks
