"""AFTER-QSM: a network of axial fields between two turns, and a second one against the blur (Xiong et al. 2023,
doi:10.1016/j.neuroimage.2022.119842).
"""

import math
from dataclasses import replace
from typing import Any

import torch

from chimap import losses
from chimap.networks.affine import AFTER_QSM
from chimap.training.recipes.shown import found_in
from chimap.training.recipes.supervised import centred
from chimap.training.samples import Sample, SampleSettings
from chimap.training.settings import Settings

_GPU = Settings(
    recipe="after-qsm",
    network=AFTER_QSM,
    samples=SampleSettings(tilt=math.pi / 2, snr=(15.0, 200.0), scan=False),
    batch=4,
    steps=4000,
    learning_rate=4e-4,
    input_scale=90.0,
    output_scale=0.028,
    freeze_norm=0.6,
)
NEEDS_CHI = True
_SMALL = replace(AFTER_QSM, width=16, growth=8)
SIZES = {"after-qsm": {"gpu": _GPU, "cpu": replace(_GPU, network=_SMALL, batch=2, steps=3000)}}


def loss(
    network: torch.nn.Module, sample: Sample, settings: Settings, step: int, generator: torch.Generator
) -> dict[str, Any]:
    """L1 of chi before the refinement and after it, both relative to the mean in the mask."""
    rough, fine = found_in(network, sample, settings).unbind(dim=1)
    truth = centred(sample.chi, sample.mask) / settings.output_scale
    parts = {
        name: losses.masked_l1(centred(found, sample.mask) / settings.output_scale, truth, sample.mask)
        for name, found in (("chi", fine), ("chi before", rough))
    }
    return {"loss": parts["chi"] + parts["chi before"], **parts}
