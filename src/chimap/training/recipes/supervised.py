"""What a network that learns from true maps minimises: the distance of chi, of its field and of its gradient."""

from typing import Any

import torch
from torch import Tensor

from chimap import losses
from chimap.training.recipes.fields import fields_of
from chimap.training.recipes.shown import found_in, wanted
from chimap.training.samples import Sample
from chimap.training.settings import Settings

GRADIENT = {"gradient": ("axes", "neighbours")}
"""QSMnet's, as its paper prints it or as its code has it."""
DISTANCE = {"distance": ("absolute", "squared")}
"""Papers with squares do not have a single haemorrhage rule a batch of two."""


def loss(
    network: torch.nn.Module, sample: Sample, settings: Settings, step: int, generator: torch.Generator
) -> dict[str, Any]:
    """L1(chi) + w_model |A chi - A truth| + w_gradient |grad|, all of what the network gives, in its own units.

    A part without a weight is left out, and where squares are chosen, they take the place of absolute values. All means
    are taken inside the mask. The published code takes the field's in ppm, which makes it about a hundredth
    of its nominal weight; here all three are in the units of the output, and the weights say what counts.

    References:
        Yoon et al. 2018, doi:10.1016/j.neuroimage.2018.06.030; Jung et al. 2020,
        doi:10.1016/j.neuroimage.2020.116619.
    """
    unit = settings.output_scale
    found, truth = found_in(network, sample, settings)[:, -1], wanted(sample, settings)
    if settings.gives == "chi":
        found, truth = centred(found, sample.mask), centred(truth, sample.mask)
    squared = settings.choices.get("distance") == "squared"
    distance = losses.masked_l2 if squared else losses.masked_l1
    parts = {settings.gives: distance(found / unit, truth / unit, sample.mask)}
    weights = settings.weights
    if "model" in weights:
        difference = fields_of(found - truth, sample) / unit
        parts["model"] = distance(difference, torch.zeros_like(difference), sample.mask)
    if "gradient" in weights:
        parts["gradient"] = _gradient_loss(found, truth, sample, settings) / unit
    total = sum(weights.get(name, 1.0) * part for name, part in parts.items())
    return {"loss": total, **parts}


def _gradient_loss(found: Tensor, truth: Tensor, sample: Sample, settings: Settings) -> Tensor:
    if settings.choices.get("gradient") == "neighbours":
        return losses.neighbour_l1(found, truth)
    return losses.gradient_l1(found, truth, sample.mask)


def centred(chi: Tensor, mask: Tensor) -> Tensor:
    """chi (batch, x, y, z) relative to its mean in the mask, zero outside: it is known up to a constant."""
    count = mask.sum(dim=(-3, -2, -1), keepdim=True).clamp_min(1)
    return (chi - (chi * mask).sum(dim=(-3, -2, -1), keepdim=True) / count) * mask
