"""Samples from measured local fields, of one's own scans: with chi for every recipe, without for uQSM and uQSM+."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chimap.arrays import Triple
from chimap.errors import InputError
from chimap.training.samples import Sample, SampleSettings, stacked


@dataclass(frozen=True)
class MeasuredField:
    """One scan to learn from. Volumes (x, y, z).

    Attributes:
        name: For messages.
        local_field: [ppm].
        mask: Where it is valid.
        chi: [ppm], or None.
        magnitude: Weighs the data, or None.
        voxel_size: [mm].
        b0_direction: Unit vector in voxel axes.
    """

    name: str
    local_field: Tensor
    mask: Tensor
    chi: Tensor | None
    magnitude: Tensor | None
    voxel_size: Triple
    b0_direction: Triple


def frames_of(scans: Sequence[MeasuredField]) -> dict[str, Any]:
    """Voxel sizes and tilt of the scans, as `SampleSettings` has them: validation is drawn alike, and a network that
    learned from them is used in their frame.
    """
    along_z = min(abs(scan.b0_direction[2]) for scan in scans)
    return {"voxel_sizes": tuple(dict.fromkeys(scan.voxel_size for scan in scans)), "tilt": math.acos(min(along_z, 1))}


def draw_crops(scans: Sequence[MeasuredField], settings: SampleSettings, seeds: Sequence[int]) -> Sample:
    """One crop for each seed: a scan and a place at random that holds enough brain.

    A crop has no error of its own, so measured and true field are one; chi is zero where there is none. The noise is
    that of the magnitude, one over it.

    Raises:
        InputError: A scan is smaller than a crop, or holds no place with enough brain.
    """
    return stacked([_crop(scans, settings, seed) for seed in seeds])


def _crop(scans: Sequence[MeasuredField], settings: SampleSettings, seed: int) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    scan = scans[int(torch.randint(len(scans), (1,), generator=generator))]
    shape = settings.shape
    room = [n - m for n, m in zip(scan.mask.shape, shape, strict=True)]
    if min(room) < 0:
        raise InputError(f"{scan.name} has a grid of {tuple(scan.mask.shape)}, smaller than a sample of {shape}")
    for _ in range(200):
        first = [int(torch.randint(n + 1, (1,), generator=generator)) for n in room]
        place = tuple(slice(a, a + n) for a, n in zip(first, shape, strict=True))
        mask = scan.mask[place]
        if float(mask.float().mean()) >= settings.least_brain:
            break
    else:
        share = 100 * settings.least_brain
        raise InputError(f"{scan.name}: no place of {shape} voxels that holds {share:.0f} % brain was found")
    field = scan.local_field[place] * mask
    magnitude = mask.to(field) if scan.magnitude is None else scan.magnitude[place].to(field)
    return Sample(
        chi=torch.zeros_like(field) if scan.chi is None else scan.chi[place] * mask,
        local_field=field,
        measured_local_field=field,
        total_field=None,
        phase=None,
        magnitude=None,
        field_noise=1 / magnitude.clamp_min(1e-6),
        mask=mask,
        b0_direction=field.new_tensor(scan.b0_direction),
        voxel_size=field.new_tensor(scan.voxel_size),
        radians_per_ppm=field.new_tensor(0.0),
    )
