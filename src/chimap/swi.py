"""Susceptibility-weighted images: what a radiologist reads beside a map, from the same acquisition.

Darker is more paramagnetic: veins, blood, iron. These are pictures, not measurements.
"""

import math

import torch
from torch.nn.functional import max_pool3d

from chimap.arrays import Echoes, Mask, Triple, Volume
from chimap.linalg import SPACE, along_axis


def swi(phase: Echoes, magnitude: Echoes, voxel_size: Triple, *, low_pass: float = 0.125, power: int = 4) -> Volume:
    """Magnitude times a mask made of the high-passed phase, which falls from 1 at 0 to 0 at pi.

    The phase is high-passed without unwrapping, by the complex signal over its own low-pass (homodyne filter). The
    echoes are combined by the root of the sum of squares.

    Args:
        phase: Wrapped [rad], growing with the field, shape (echo, x, y, z).
        magnitude: Same shape.
        voxel_size: [mm].
        low_pass: Where the Hann window of the low-pass ends [1/mm]; as published, the middle 64 of 512 points of a
            field of view of 256 mm.
        power: How often the mask multiplies.

    Returns:
        Shape (x, y, z), in the magnitude's unit.

    References:
        Haacke et al. 2004, doi:10.1002/mrm.20198.
    """
    signal = torch.polar(magnitude, phase)
    spectrum = torch.fft.fftn(signal, dim=SPACE)
    spectrum *= _hann(signal, voxel_size, low_pass)
    fast = torch.angle(signal * torch.fft.ifftn(spectrum, dim=SPACE).conj())
    weight = 1 - (fast / math.pi).clamp(0, 1)
    return (magnitude * weight**power).square().sum(dim=0).sqrt()


def true_swi(
    chi: Volume, magnitude: Echoes, mask: Mask, *, least: float = 0.0, most: float = 0.45, power: int = 2
) -> Volume:
    """Magnitude times a mask made of chi: unlike the phase, chi does not depend on how a vein lies in the field.

    Args:
        chi: [ppm], shape (x, y, z).
        magnitude: Shape (echo, x, y, z).
        mask: Where chi is valid; elsewhere the magnitude is left as it is.
        least: Up to this chi [ppm] nothing is darkened,
        most: from this one on everything.
        power: How often the mask multiplies.

    Returns:
        Shape (x, y, z), in the magnitude's unit.

    References:
        Liu et al. 2017, doi:10.1002/nbm.3552.
    """
    weight = 1 - ((chi - least) / (most - least)).clamp(0, 1) * mask
    return magnitude.square().sum(dim=0).sqrt() * weight**power


def minimum_intensity_projection(
    volume: Volume, mask: Mask, voxel_size: Triple, b0_direction: Triple, *, thickness: float = 10.0
) -> Volume:
    """The smallest value of the mask within a slab around each slice, so that a vein is seen in one piece.

    Slices are along the longest side of the voxels, or along the axis nearest to B0 where sides are alike.

    Args:
        volume: Shape (x, y, z).
        mask: Voxels that count; 0 where a slab holds none.
        voxel_size: [mm].
        b0_direction: In voxel axes.
        thickness: Of the slab [mm].
    """
    axis = max(range(3), key=lambda i: (round(voxel_size[i], 2), abs(b0_direction[i])))
    half = max(round((thickness / voxel_size[axis] - 1) / 2), 0)
    kernel, padding = [1, 1, 1], [0, 0, 0]
    kernel[axis], padding[axis] = 2 * half + 1, half
    least = -max_pool3d(torch.where(mask, -volume, -torch.inf)[None, None], kernel, stride=1, padding=padding)[0, 0]
    return torch.where(torch.isfinite(least), least, 0)


def weighted_images(
    phase: Echoes,
    magnitude: Echoes,
    chi: Volume,
    brain: Mask,
    mask: Mask,
    voxel_size: Triple,
    b0_direction: Triple,
) -> dict[str, Volume]:
    """Everything of this kind that one acquisition gives.

    Args:
        phase: Wrapped [rad], shape (echo, x, y, z).
        magnitude: Same shape.
        chi: [ppm], shape (x, y, z).
        brain: Voxels that count for projections.
        mask: Where chi is valid.
        voxel_size: [mm].
        b0_direction: In voxel axes.

    Returns:
        {"swi", "swi_mip", "true_swi", "true_swi_mip": (x, y, z) in the magnitude's unit}; those of "mip" are
        minimum-intensity projections.
    """
    found = {"swi": swi(phase, magnitude, voxel_size), "true_swi": true_swi(chi, magnitude, mask)}
    for name in tuple(found):
        found[f"{name}_mip"] = minimum_intensity_projection(found[name], brain, voxel_size, b0_direction)
    return dict(sorted(found.items()))


def _hann(like: torch.Tensor, voxel_size: Triple, end: float) -> Volume:
    """A window in k-space, 1 at 0 and 0 from `end` [1/mm] on."""
    square = torch.zeros(like.shape[-3:], device=like.device)
    for axis, (n, size) in enumerate(zip(like.shape[-3:], voxel_size, strict=True)):
        square = square + along_axis(torch.fft.fftfreq(n, d=size, device=like.device).square(), axis)
    return torch.cos(math.pi / 2 * (square.sqrt() / end).clamp_max(1)).square()
