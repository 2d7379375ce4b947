"""Batches changed on the way to the network."""

from dataclasses import replace

import torch
from torch import Tensor

from chimap.training.samples import Sample

VOLUMES = (
    "chi",
    "local_field",
    "measured_local_field",
    "total_field",
    "phase",
    "magnitude",
    "field_noise",
    "mask",
    "labels",
)


def flipped(sample: Sample, generator: torch.Generator) -> Sample:
    """The batch mirrored in x, in y, in both or not at all, B0 with it."""
    axes = [axis for axis in (0, 1) if float(torch.rand(1, generator=generator, device=generator.device)) < 0.5]
    if not axes:
        return sample
    volumes: dict[str, Tensor] = {}
    for name in VOLUMES:
        volume = getattr(sample, name)
        if volume is not None:
            volumes[name] = volume.flip([axis - 3 for axis in axes])
    b0 = sample.b0_direction.clone()
    b0[:, axes] *= -1
    brain = sample.brain
    if brain is not None:
        brain = brain.clone()
        brain[:, 0, axes] *= -1
    return replace(sample, b0_direction=b0, brain=brain, **volumes)
