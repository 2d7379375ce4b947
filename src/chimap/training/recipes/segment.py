"""Regions of the brain from magnitude and chi: the labels of simulated heads, chi as an inversion would find it.

The true chi is too good to learn from: what the network is shown is a closed-form inversion of the sample's field with
its error and noise, regularised as chance has it, in the sample's own imperfect mask.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from chimap.inversion.direct import l2_gradient, tikhonov, tkd
from chimap.networks.unet import SEGMENT
from chimap.parcellation import REGIONS, channels_of, classes_of, places_of
from chimap.physics.dipole import DipoleModel
from chimap.training.samples import Sample, SampleSettings, stacked
from chimap.training.settings import Settings

# In use the head stands as it lay in the scanner, so it nods and turns, but is never upside down. The field is that of
# the sample's own chi: an inversion would put sources from around it inside.
_SAMPLES = SampleSettings(
    shape=(80, 80, 80),
    voxel_sizes=((1.25, 1.25, 1.25),),
    tilt=math.radians(20),
    snr=(15.0, 200.0),
    field_error=(0.0, 0.5),
    spread=1.5,
    reach=0.6,
    whole_brain=False,
)
_CPU = Settings(
    recipe="segment",
    network=SEGMENT,
    samples=_SAMPLES,
    takes="magnitude and chi",
    gives="regions",
    batch=1,
    steps=1500,
    learning_rate=2e-3,
    weights={"dice": 1.0},
    average=0.99,
    validation_samples=8,
)
NEEDS_CHI = True
SIZES = {"segment": {"cpu": _CPU, "gpu": replace(_CPU, batch=4, steps=4000)}}
UNSEEN = 0.2
"""Probability that the magnitude is missing."""
LOST = 0.1
"""Probability that the place in the brain is not known, as in a slab."""
SMALL = {"red nucleus": 4.0, "substantia nigra": 4.0, "dentate nucleus": 4.0}
TISSUE = {"white matter": 1.0, "grey matter": 1.0, "cerebellar cortex": 1.0, "cerebellar white matter": 1.0, "csf": 1.0}
"""Weights of voxels in the cross entropy; those of other regions count twice."""


def loss(
    network: nn.Module, sample: Sample, settings: Settings, step: int, generator: torch.Generator
) -> dict[str, Any]:
    """Weighted cross entropy + w_dice (1 - mean soft Dice of the regions in the batch), inside the mask.

    References:
        Soft Dice: Milletari et al. 2016, doi:10.1109/3DV.2016.79.
    """
    assert sample.labels is not None
    channels, truth = shown(sample, generator), classes_of(sample.labels)
    if float(torch.rand(1, generator=generator, device=generator.device)) < 0.5:  # left and right
        channels, truth = channels.flip(-3), truth.flip(-3)
        channels[:, 2] *= -1
        mask = sample.mask.flip(-3)
    else:
        mask = sample.mask
    scores = network(channels).float().movedim(1, -1)[mask]  # (voxels, classes)
    truth = truth[mask]
    weights = scores.new_tensor([1.0, *(SMALL.get(name, TISSUE.get(name, 2.0)) for name in REGIONS)])
    entropy = nn.functional.cross_entropy(scores, truth, weights)
    shares = scores.softmax(dim=1)
    wanted = nn.functional.one_hot(truth, scores.shape[1]).to(shares)
    there = wanted.sum(dim=0)
    overlap = (2 * (shares * wanted).sum(dim=0) + 1) / (shares.sum(dim=0) + there + 1)
    dice = 1 - overlap[1:][there[1:] > 0].mean() if (there[1:] > 0).any() else entropy.new_zeros(())
    return {"loss": entropy + settings.weights["dice"] * dice, "entropy": entropy, "dice": dice}


@torch.no_grad()
def shown(sample: Sample, generator: torch.Generator) -> Tensor:
    """What the network sees of a batch, drawn: an inversion, a blur as of resampling, perhaps no magnitude."""
    device = generator.device
    chi = inverted(sample, generator)
    magnitude = sample.magnitude
    assert magnitude is not None
    both = torch.stack([magnitude * sample.mask, chi], dim=1)
    half = 0.33 * torch.rand(3, generator=generator, device=device)
    for axis, share in enumerate(half.tolist()):
        if float(torch.rand(1, generator=generator, device=device)) < 0.5:
            both = (1 - share) * both + share / 2 * (both.roll(1, axis - 3) + both.roll(-1, axis - 3))
    magnitude, chi = both.unbind(dim=1)
    shift = 0.01 * torch.randn(len(chi), 1, 1, 1, generator=generator, device=device)
    unseen = float(torch.rand(1, generator=generator, device=device)) < UNSEEN
    places = None if float(torch.rand(1, generator=generator, device=device)) < LOST else placed(sample, generator)
    channels = channels_of(None if unseen else magnitude, chi, sample.mask, places)
    channels[:, 1] += sample.mask * shift / 0.1
    return channels


def placed(sample: Sample, generator: torch.Generator) -> Tensor:
    """The place of each voxel in a brain whose box is known to a few mm, as masks differ."""
    assert sample.brain is not None
    device, batch = generator.device, len(sample.brain)
    off = torch.randn(batch, 3, generator=generator, device=device)
    box = sample.brain.clone()
    box[:, 0] += 2.5 * off
    box[:, 1] *= 1 + 0.03 * torch.randn(batch, 3, generator=generator, device=device)
    x, y, z = sample.chi.shape[1:]
    a, b, c = sample.voxel_size[0].tolist()
    return places_of(box, (x, y, z), (a, b, c))


def inverted(sample: Sample, generator: torch.Generator) -> Tensor:
    """chi [ppm] of a batch by one of three inversions in closed form."""
    kind, strength = torch.rand(2, generator=generator, device=generator.device).tolist()
    maps = []
    for field, mask, (a, b, c), (i, j, k) in zip(
        sample.measured_local_field,
        sample.mask,
        sample.voxel_size.tolist(),
        sample.b0_direction.tolist(),
        strict=True,
    ):
        x, y, z = field.shape
        dipole = DipoleModel((x, y, z), (a, b, c), (i, j, k), padding=16).to(field.device)
        if kind < 0.6:
            maps.append(l2_gradient(field, mask, dipole, regularisation=10 ** (-2.5 + 1.5 * strength)))
        elif kind < 0.8:
            maps.append(tkd(field, mask, dipole, threshold=0.1 + 0.15 * strength))
        else:
            maps.append(tikhonov(field, mask, dipole, regularisation=10 ** (-2.5 + 1.5 * strength)))
    return torch.stack(maps)


@torch.no_grad()
def dice_missed(network: nn.Module, samples: Sequence[Sample]) -> float:
    """100 minus the mean Dice [%] of the regions, each over all samples."""
    both = torch.zeros(len(REGIONS) + 1)
    either = torch.zeros(len(REGIONS) + 1)
    for index, one in enumerate(samples):
        sample = stacked([one])
        assert sample.labels is not None
        channels = shown(sample, torch.Generator(sample.chi.device).manual_seed(index))
        found = network(channels).argmax(dim=1)[sample.mask]
        truth = classes_of(sample.labels)[sample.mask]
        both += torch.bincount(found[found == truth], minlength=len(both)).cpu()
        either += (torch.bincount(found, minlength=len(both)) + torch.bincount(truth, minlength=len(both))).cpu()
    dice = (2 * both / either)[1:]
    return 100 - 100 * float(dice[either[1:] > 0].mean())
