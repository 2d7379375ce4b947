"""uQSM: learned from fields alone (Liu and Koch 2020, doi:10.48550/arXiv.2004.06259)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from chimap import losses
from chimap.arrays import Volume
from chimap.networks.apply import predict
from chimap.networks.unet import UQSM
from chimap.training.recipes.fields import data_weight, dipoles
from chimap.training.samples import Sample, SampleSettings
from chimap.training.settings import Settings

# The local field is that of the sample's own sources: what lies beyond would have to be explained by chi inside.
SAMPLES = SampleSettings(tilt=0.0, scan=False, whole_brain=False, snr=(15.0, 200.0))
_GPU = Settings(
    recipe="uqsm",
    network=UQSM,
    samples=replace(SAMPLES, shape=(96, 96, 96)),
    batch=8,
    steps=4000,
    # field times 100 and chi over 0.03, as the authors' code: a standard deviation of about 1
    input_scale=100.0,
    output_scale=0.03,
    weights={"variation": 1e-3},
    choices={"fidelity": "nonlinear"},
)
NEEDS_CHI = False
CHOICES = {"fidelity": ("nonlinear", "weighted", "linear")}
"""The paper's NDI, WLDI and LDI."""
SIZES = {
    "uqsm": {"gpu": _GPU, "cpu": replace(_GPU, network=replace(UQSM, base=16), samples=SAMPLES, batch=2, steps=4000)}
}


def loss(
    network: torch.nn.Module, sample: Sample, settings: Settings, step: int, generator: torch.Generator
) -> dict[str, Any]:
    """Fidelity + w_variation TV, of what the network gives.

    The fidelity is NDI, or WLDI or LDI in the paper's comparison. NDI compares exp(i r A chi) with exp(i r f), r being
    the input's scale: 100 rad/ppm, as in the authors' code, which is about five times the phase of 25 ms at 3 T.
    """
    return loss_when_shown(sample.measured_local_field, network, sample, settings)


def loss_when_shown(shown: Volume, network: torch.nn.Module, sample: Sample, settings: Settings) -> dict[str, Any]:
    """The loss where the network sees a field that need not be the one it is compared with."""
    chi = predict(network, shown, sample.mask, input_scale=settings.input_scale, output_scale=settings.output_scale)
    parts = {
        "fidelity": fidelity(chi, sample.measured_local_field, data_weight(sample), sample, settings),
        "variation": losses.total_variation_loss(chi / settings.output_scale),
    }
    return {"loss": parts["fidelity"] + settings.weights["variation"] * parts["variation"], **parts}


def fidelity(chi: Volume, field: Volume, weight: Tensor, sample: Sample, settings: Settings) -> Tensor:
    """The chosen field loss of a batch, each sample with its own direction of B0."""
    kind = settings.choices["fidelity"]
    compare = losses.nonlinear_field_loss if kind == "nonlinear" else losses.weighted_field_loss
    if kind == "linear":
        weight = torch.ones_like(weight)
    terms = [
        compare(
            chi[i : i + 1],
            field[i : i + 1],
            sample.mask[i : i + 1],
            weight[i : i + 1],
            dipole,
            radians=settings.input_scale,
        )
        for i, dipole in enumerate(dipoles(sample))
    ]
    return torch.stack(terms).mean()
