"""NeXtQSM: from total field to local field and chi, consistent with the data (Cognolato et al. 2023,
doi:10.1016/j.media.2022.102700).

Both networks learn by themselves first, the second one from the true local field with its error, and then together. The
second one is small and takes most of the time, so each can also be trained alone, one after the other with `--start`.
"""

import math
from dataclasses import replace
from typing import Any

import torch

from chimap import losses
from chimap.networks.laplacian import interior
from chimap.networks.variational import NEXTQSM
from chimap.training.recipes.shown import found_in, inversion_alone, wanted_field
from chimap.training.recipes.supervised import centred
from chimap.training.samples import Sample, SampleSettings
from chimap.training.settings import Settings

# What lies in a sample has to explain its local field: the data term compares the two. Brain beyond it counts as
# background, like everything else. Half of the samples have chi without anatomy, and pockets of air around the
# brain, as in the paper: 18 in a litre are a hundred around a brain in a box of 192 mm.
_SAMPLES = SampleSettings(
    shape=(96, 96, 96), tilt=math.pi / 2, snr=(15.0, 200.0), blobs=0.3, hybrid=0.5, sources=18, whole_brain=False
)
_GPU = Settings(
    recipe="nextqsm",
    network=replace(NEXTQSM, begun=True),
    samples=replace(_SAMPLES, shape=(160, 160, 160)),
    takes="total field",
    batch=2,
    steps=1500,
    learning_rate=1e-3,
    input_scale=30.0,
    output_scale=1 / 30.0,
    weights={"local field": 1.0, "separately": 0.4},
    choices={"learns": "both"},
)
NEEDS_CHI = True
CHOICES = {"learns": ("both", "inversion")}
"""Which of the two networks; the first alone learns where the setting `gives` is the local field."""
SIZES = {"nextqsm": {"gpu": _GPU, "cpu": replace(_GPU, samples=_SAMPLES, batch=1)}}


def loss(
    network: torch.nn.Module, sample: Sample, settings: Settings, step: int, generator: torch.Generator
) -> dict[str, Any]:
    """L1(chi) + w_local L1(local field), both in the unit of what the network gives.

    For the first share of the steps that the weight "separately" says, chi is found from the measured local field
    instead of the one that the first network gives. Where only one of the networks learns, its part is all there is.
    """
    unit, mask, weights = settings.output_scale, sample.mask, settings.weights
    separately = step < weights["separately"] * settings.steps
    given = sample.measured_local_field if separately else None
    found = found_in(network, sample, settings, local_field=given)
    parts = {}
    if settings.gives == "chi":
        parts["chi"] = losses.masked_l1(centred(found[:, 1], mask) / unit, centred(sample.chi, mask) / unit, mask)
    if not inversion_alone(settings):
        inner = interior(mask[:, None])[:, 0] > 0  # at the rim itself little is known of the background
        parts["local field"] = losses.masked_l1(found[:, 0] / unit, wanted_field(sample, settings) / unit, inner)
    return {"loss": sum({"chi": 1.0, **weights}[name] * part for name, part in parts.items()), **parts}
