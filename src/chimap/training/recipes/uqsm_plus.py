"""uQSM+: uQSM with strong sources added to the field, which have to come back in chi and change nothing else.

Liu, Improved Model-based Learning with Data Augmentation for QSM.
"""

from dataclasses import replace
from typing import Any, cast

import torch

from chimap import losses
from chimap.networks.apply import predict
from chimap.networks.unet import UQSM_PLUS
from chimap.physics.random_sources import perturbation_map
from chimap.physics.solids import Solid
from chimap.training.augmentation import flipped
from chimap.training.recipes import uqsm
from chimap.training.recipes.fields import data_weight, dipoles
from chimap.training.recipes.uqsm import SAMPLES
from chimap.training.samples import Sample
from chimap.training.settings import Settings

_GPU = Settings(
    recipe="uqsm+",
    network=UQSM_PLUS,
    samples=replace(SAMPLES, shape=(96, 96, 96)),
    batch=4,
    steps=4000,
    input_scale=100.0,
    output_scale=0.03,
    # The published code has 0.06 for total variation, and 0.1 for the consistency at the end: decision 11
    weights={"variation": 0.12, "consistency": 1.5, "last_consistency": 1.5, "noise": 1e-3},
    choices={"fidelity": "nonlinear", "augmentation": "sources", "solid": "ellipsoid"},
    learning_rate=8e-4,
)
NEEDS_CHI = False
CHOICES = {
    "fidelity": uqsm.CHOICES["fidelity"],
    "augmentation": ("sources", "flipping", "noise", "none"),
    "solid": ("ellipsoid", "cuboid", "sphere", "cylinder"),
}
"""The paper's comparisons: augmentations of appendix B (the noise's SD [ppm] is the weight of its name, which the paper
does not give), solids of appendix C."""
SIZES = {
    "uqsm+": {
        "gpu": _GPU,
        "cpu": replace(_GPU, network=replace(UQSM_PLUS, base=16), samples=SAMPLES, batch=1, steps=4000),
    }
}


def loss(
    network: torch.nn.Module, sample: Sample, settings: Settings, step: int, generator: torch.Generator
) -> dict[str, Any]:
    """Fidelity(chi) + w_variation TV(chi) + w(t) (consistency at the sources + elsewhere), of what the network gives.

    With another augmentation than sources, uQSM's loss.
    """
    augmentation = settings.choices["augmentation"]
    if augmentation == "sources":
        return _with_sources(network, sample, settings, step, generator)
    if augmentation == "flipping":
        sample = flipped(sample, generator)
    shown = sample.measured_local_field
    if augmentation == "noise":  # to be seen through: the field that chi has to explain has none of it
        white = torch.randn(shown.shape, generator=generator, device=shown.device)
        shown = shown + settings.weights["noise"] * white
    return uqsm.loss_when_shown(shown, network, sample, settings)


def _with_sources(
    network: torch.nn.Module, sample: Sample, settings: Settings, step: int, generator: torch.Generator
) -> dict[str, Any]:
    mask, field, unit = sample.mask, sample.measured_local_field, settings.output_scale
    x, y, z = field.shape[-3:]
    solid = cast(Solid, settings.choices["solid"])
    sources, insides, fields = [], [], []
    for size, dipole in zip(sample.voxel_size.tolist(), dipoles(sample), strict=True):
        source, inside = perturbation_map((x, y, z), (size[0], size[1], size[2]), generator=generator, kinds=[solid])
        sources.append(source)
        insides.append(inside)
        fields.append(dipole(source))
    source, inside, added = torch.stack(sources), torch.stack(insides), torch.stack(fields)
    both = predict(
        network,
        torch.cat([field, field + added]),
        torch.cat([mask, mask]),
        input_scale=settings.input_scale,
        output_scale=unit,
    )
    chi, perturbed = both.chunk(2)
    at_source, elsewhere = losses.consistency_losses(chi / unit, perturbed / unit, source / unit, inside, mask)
    parts = {
        "fidelity": uqsm.fidelity(chi, field, data_weight(sample), sample, settings),
        "variation": losses.total_variation_loss(chi / unit),
        "at the sources": at_source,
        "elsewhere": elsewhere,
    }
    ramp = losses.consistency_weight(
        step / settings.steps, peak=settings.weights["consistency"], rest=settings.weights["last_consistency"]
    )
    total = parts["fidelity"] + settings.weights["variation"] * parts["variation"] + ramp * (at_source + elsewhere)
    return {"loss": total, **parts}
