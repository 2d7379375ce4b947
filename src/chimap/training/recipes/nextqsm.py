"""NeXtQSM: from total field to local field and chi, consistent with the data (Cognolato et al. 2023,
doi:10.1016/j.media.2022.102700).

Both networks learn by themselves first, the second one from the true local field with its error, and then together.
"""

import math
from dataclasses import replace
from typing import Any

import torch

from chimap import losses
from chimap.networks.variational import NEXTQSM
from chimap.training.recipes.shown import found_in
from chimap.training.recipes.supervised import centred
from chimap.training.samples import Sample, SampleSettings
from chimap.training.settings import Settings

# What lies in a sample has to explain its local field: the data term compares the two. Brain beyond it counts as
# background, like everything else. Half of the samples have chi without anatomy, as in the paper.
_SAMPLES = SampleSettings(
    shape=(96, 96, 96), tilt=math.pi / 2, snr=(15.0, 200.0), blobs=0.3, hybrid=0.5, whole_brain=False
)
_GPU = Settings(
    recipe="nextqsm",
    network=replace(NEXTQSM, sharp=True),
    samples=replace(_SAMPLES, shape=(160, 160, 160)),
    takes="total field",
    batch=2,
    steps=1500,
    learning_rate=1e-3,
    input_scale=30.0,
    output_scale=1 / 30.0,
    weights={"local field": 1.0, "separately": 0.4},
)
NEEDS_CHI = True
SIZES = {"nextqsm": {"gpu": _GPU, "cpu": replace(_GPU, samples=_SAMPLES, batch=1)}}


def loss(
    network: torch.nn.Module, sample: Sample, settings: Settings, step: int, generator: torch.Generator
) -> dict[str, Any]:
    """L1(chi) + w_local L1(local field), both in the unit of what the network gives.

    For the first share of the steps that the weight "separately" says, chi is found from the measured local field
    instead of the one that the first network gives.
    """
    unit, mask = settings.output_scale, sample.mask
    together = step >= settings.weights["separately"] * settings.steps
    given = None if together else sample.measured_local_field
    local, chi = found_in(network, sample, settings, local_field=given).unbind(dim=1)
    parts = {
        "chi": losses.masked_l1(centred(chi, mask) / unit, centred(sample.chi, mask) / unit, mask),
        "local field": losses.masked_l1(local / unit, sample.local_field / unit, mask),
    }
    return {"loss": parts["chi"] + settings.weights["local field"] * parts["local field"], **parts}
