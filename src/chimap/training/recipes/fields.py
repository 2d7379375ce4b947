"""What the losses of all recipes need to know about fields."""

from functools import lru_cache

import torch
from torch import Tensor

from chimap.arrays import Shape, Triple
from chimap.physics.dipole import DipoleModel, applied_to_each
from chimap.training.samples import Sample


def dipoles(sample: Sample) -> list[DipoleModel]:
    """The dipole model of each sample of a batch, zero-padded by half of its size."""
    x, y, z = sample.chi.shape[-3:]
    return [
        _dipole((x, y, z), (a, b, c), (i, j, k), str(sample.chi.device))
        for (a, b, c), (i, j, k) in zip(sample.voxel_size.tolist(), sample.b0_direction.tolist(), strict=True)
    ]


def fields_of(chi: Tensor, sample: Sample) -> Tensor:
    """Field [ppm] of chi [ppm], (batch, x, y, z), each with its sample's direction of B0."""
    return applied_to_each(dipoles(sample), chi)


@lru_cache(maxsize=16)
def _dipole(shape: Shape, voxel_size: Triple, b0_direction: Triple, device: str) -> DipoleModel:
    return DipoleModel(shape, voxel_size, b0_direction, padding=[n // 2 for n in shape]).to(device)


def data_weight(sample: Sample) -> Tensor:
    """How far each voxel's field is to be trusted, 0 to 1: the median noise over its own."""
    noise = sample.field_noise
    middle = torch.stack([one[mask].median() for one, mask in zip(noise, sample.mask, strict=True)])
    return (middle.reshape(-1, 1, 1, 1) / noise).clamp_max(1.0) * sample.mask
