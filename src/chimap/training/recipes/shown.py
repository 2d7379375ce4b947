"""What a network finds in a sample, shown what its settings say."""

import torch
from torch import Tensor, nn

from chimap.networks.apply import outputs
from chimap.physics.shim import shim_field
from chimap.training.samples import Sample
from chimap.training.settings import Settings


def found_in(network: nn.Module, sample: Sample, settings: Settings, *, local_field: Tensor | None = None) -> Tensor:
    """All outputs of a network [ppm] for a batch: (batch, outputs, x, y, z).

    One that finds local field and chi can be given a `local_field` [ppm] to find chi of.
    """
    return outputs(
        network,
        shown(sample, settings),
        sample.mask,
        input_scale=settings.input_scale,
        output_scale=settings.output_scale,
        b0_direction=sample.b0_direction,
        voxel_size=sample.voxel_size,
        radians_per_ppm=sample.radians_per_ppm,
        local_field=local_field,
    )


def shown(sample: Sample, settings: Settings) -> Tensor:
    """The volume that the network sees: a field [ppm] with its error and noise, or the phase [rad].

    Of a total field, a second-order polynomial is taken away first, as a network's user does too.
    """
    if settings.takes == "local field":
        return sample.measured_local_field
    if settings.takes == "phase":
        assert sample.phase is not None
        return sample.phase
    assert sample.total_field is not None
    field = sample.total_field + sample.measured_local_field - sample.local_field
    parts = zip(field, sample.mask, sample.voxel_size.tolist(), strict=True)
    return torch.stack([one - shim_field(one, mask.float(), (x, y, z)) for one, mask, (x, y, z) in parts])


def wanted(sample: Sample, settings: Settings) -> Tensor:
    """What the network is to find [ppm]."""
    return sample.chi if settings.gives == "chi" else sample.local_field
