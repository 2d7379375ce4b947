"""What a network finds in a sample, shown what its settings say."""

import torch
from torch import Tensor, nn

from chimap.inversion.total_field import pdf_tv
from chimap.networks.apply import outputs
from chimap.physics.dipole import DipoleModel
from chimap.physics.shim import shim_field
from chimap.training.samples import Sample
from chimap.training.settings import Settings


def found_in(network: nn.Module, sample: Sample, settings: Settings, *, local_field: Tensor | None = None) -> Tensor:
    """All outputs of a network [ppm] for a batch: (batch, outputs, x, y, z).

    One that finds local field and chi can be given a `local_field` [ppm] to find chi of, the measured one where only
    this part of it learns; and it stops at the local field where the settings say that it gives that.
    """
    unseen = inversion_alone(settings)  # nobody asks for what the first network finds
    if unseen and local_field is None:
        local_field = sample.measured_local_field
    volume = torch.zeros_like(sample.measured_local_field) if unseen else shown(sample, settings)
    begun = None
    if _begins(settings):
        begun = volume if unseen else begun_of(volume, sample)
    return outputs(
        network,
        volume,
        sample.mask,
        input_scale=settings.input_scale,
        output_scale=settings.output_scale,
        b0_direction=sample.b0_direction,
        voxel_size=sample.voxel_size,
        radians_per_ppm=sample.radians_per_ppm,
        begun=begun,
        local_field=local_field,
        local_only=settings.network.kind == "variational" and settings.gives == "local field",
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


@torch.no_grad()
def begun_of(field: Tensor, sample: Sample) -> Tensor:
    """The local field [ppm] of a batch of total fields to begin with: by PDF and TV in turns."""
    x, y, z = field.shape[-3:]
    found = []
    for one, mask, (i, j, k), (a, b, c) in zip(
        field, sample.mask, sample.b0_direction.tolist(), sample.voxel_size.tolist(), strict=True
    ):
        dipole = DipoleModel((x, y, z), (a, b, c), (i, j, k), padding=0)
        found.append(pdf_tv(one, None, mask, dipole)[0])
    return torch.stack(found)


def wanted(sample: Sample, settings: Settings) -> Tensor:
    """What the network is to find [ppm]."""
    return sample.chi if settings.gives == "chi" else wanted_field(sample, settings)


def wanted_field(sample: Sample, settings: Settings) -> Tensor:
    """The local field [ppm] that a network is to find.

    One that begins with a local field finds the smooth part of the background that is still in it: error and noise of
    the measured field stay, and to ask for their removal would only hide what it can learn.
    """
    return sample.measured_local_field if _begins(settings) else sample.local_field


def inversion_alone(settings: Settings) -> bool:
    """Whether of a network that finds local field and chi only the second part learns: from the measured field."""
    return settings.gives == "chi" and settings.choices.get("learns") == "inversion"


def _begins(settings: Settings) -> bool:
    return settings.network.kind == "variational" and settings.network.begun
