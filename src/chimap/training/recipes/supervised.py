"""What QSMnet and QSMnet+ minimise: L1 of chi, of its field and of its gradient."""

from typing import Any

import torch
from torch import Tensor

from chimap import losses
from chimap.networks.apply import predict
from chimap.training.recipes.fields import dipoles
from chimap.training.samples import Sample
from chimap.training.settings import Settings

CHOICES = {"gradient": ("axes", "neighbours")}
"""As the paper prints it, or as its code has it."""


def loss(
    network: torch.nn.Module, sample: Sample, settings: Settings, step: int, generator: torch.Generator
) -> dict[str, Any]:
    """L1(chi) + w_model |A chi - A truth| + w_gradient |grad|, all of what the network gives, in its own units.

    Both means are taken inside the mask. The published code takes the field's in ppm, which makes it about a hundredth
    of its nominal weight; here all three are in the units of the output, and the weights say what counts.

    References:
        Yoon et al. 2018, doi:10.1016/j.neuroimage.2018.06.030; Jung et al. 2020,
        doi:10.1016/j.neuroimage.2020.116619.
    """
    unit = settings.output_scale
    chi = predict(
        network,
        sample.measured_local_field,
        sample.mask,
        input_scale=settings.input_scale,
        output_scale=unit,
    )
    # chi is known up to a constant: both are relative to the mean in the mask
    found, truth = _centred(chi, sample.mask), _centred(sample.chi, sample.mask)
    parts = {
        "chi": losses.masked_l1(found, truth, sample.mask) / unit,
        "model": _field_loss(found - truth, sample) / unit,
        "gradient": _gradient_loss(found, truth, sample, settings) / unit,
    }
    weights = settings.weights
    total = parts["chi"] + weights["model"] * parts["model"] + weights["gradient"] * parts["gradient"]
    return {"loss": total, **parts}


def _gradient_loss(found: Tensor, truth: Tensor, sample: Sample, settings: Settings) -> Tensor:
    if settings.choices.get("gradient") == "neighbours":
        return losses.neighbour_l1(found, truth)
    return losses.gradient_l1(found, truth, sample.mask)


def _field_loss(difference: Tensor, sample: Sample) -> Tensor:
    terms = [
        losses.field_l1(one[None], torch.zeros_like(one)[None], mask[None], dipole)
        for one, mask, dipole in zip(difference, sample.mask, dipoles(sample), strict=True)
    ]
    return torch.stack(terms).mean()


def _centred(chi: Tensor, mask: Tensor) -> Tensor:
    count = mask.sum(dim=(-3, -2, -1), keepdim=True).clamp_min(1)
    return (chi - (chi * mask).sum(dim=(-3, -2, -1), keepdim=True) / count) * mask
