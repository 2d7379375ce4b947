"""Networks that learn from the one scan at hand: the deep image prior and zero-shot uQSM+.

They work in the scan's own frame, with its own dipole model, so any direction of B0 and any voxel size is theirs.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from chimap import losses
from chimap.arrays import Mask, Shape, Volume
from chimap.linalg import bounding_box
from chimap.networks.apply import predict
from chimap.networks.unet import UQSM, UQSM_PLUS, UNet, UNetShape
from chimap.physics.dipole import DipoleModel
from chimap.physics.random_sources import perturbation_map

INPUT_SCALE, OUTPUT_SCALE = 100.0, 0.03
"""Field [ppm] to the network's input, and its output to chi [ppm], as in uQSM's code."""
MARGIN = 8
"""Voxels of zeros around the mask."""

Progress = Callable[[int, int], None]


def deep_image_prior(
    local_field: Volume,
    mask: Mask,
    dipole: DipoleModel,
    weight: Volume | None = None,
    *,
    iterations: int = 200,
    base: int = 16,
    learning_rate: float = 1e-3,
    variation: float = 1e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Volume:
    """Fit an untrained U-Net to the one field and stop before it fits the noise: NDI + w TV, `iterations` steps.

    Args:
        local_field: [ppm], shape (x, y, z).
        mask: Same shape.
        dipole: For the same grid.
        weight: W of the data, 0 to about 1; the mask if None.
        iterations: Steps of Adam; stopping is the regularisation.
        base: Channels of the first level.
        learning_rate: Of Adam.
        variation: Weight of the total variation, of chi over 0.03 ppm per voxel.
        seed: Of the network's first weights.
        progress: Called with step and steps.

    Returns:
        chi [ppm], zero outside the mask.

    References:
        Ulyanov et al. 2018, doi:10.1109/CVPR.2018.00984; as a comparator of uQSM: Liu and Koch 2020,
        doi:10.48550/arXiv.2004.06259.
    """
    shape = UNetShape(inputs=2, base=base, norm=UQSM.norm, slope=UQSM.slope, last_kernel=UQSM.last_kernel)
    scan = _Scan.of(local_field, mask, dipole, weight)
    network = _network(shape, seed, local_field.device)
    optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
    for step in range(iterations):
        chi = _predict(network, scan.field, scan.mask)
        loss = _unsupervised(chi, scan, scan.dipole, variation)
        _step(optimiser, loss, network)
        if progress is not None:
            progress(step + 1, iterations)
    return scan.chi(network)


def zero_shot_uqsm_plus(
    local_field: Volume,
    mask: Mask,
    dipole: DipoleModel,
    weight: Volume | None = None,
    *,
    patch_steps: int = 400,
    full_steps: int = 40,
    patch: int = 64,
    base: int = 16,
    learning_rate: float = 8e-4,
    variation: float = 0.06,
    full_variation: float = 4e-3,
    strength: float = 1.5,
    tolerance: float = 0.002,
    seed: int = 0,
    progress: Progress | None = None,
) -> Volume:
    """uQSM+ trained on the one scan: on patches with added sources, then on the whole field without.

    The second part stops early where the mean loss of ten steps is not `tolerance` below that of the ten before.
    A patch's field is that of the patch alone as far as the loss knows; the whole field makes up for that at the end.

    Args:
        local_field: [ppm], shape (x, y, z).
        mask: Same shape.
        dipole: For the same grid.
        weight: W of the data, 0 to about 1; the mask if None.
        patch_steps: Steps on patches; the consistency of the sources ramps up and down over them as in training.
        full_steps: Most steps on the whole field.
        patch: Edge of a patch [voxels], at most that of the brain's box.
        base: Channels of the first level; the paper has 24.
        learning_rate: Of Adam on patches; a fifth of it on the whole field.
        variation: Weight of the total variation on patches, of chi over 0.03 ppm per voxel.
        full_variation: On the whole field; 0.002 to 0.004 in the paper.
        strength: chi of the added sources [ppm].
        tolerance: Least relative gain in ten steps.
        seed: Of weights, patches and sources.
        progress: Called with step and steps.

    Returns:
        chi [ppm], zero outside the mask.

    References:
        Liu, Improved Model-based Learning with Data Augmentation for QSM.
    """
    shape = UNetShape(inputs=UQSM_PLUS.inputs, base=base, slope=UQSM_PLUS.slope)
    scan = _Scan.of(local_field, mask, dipole, weight)
    network = _network(shape, seed, local_field.device)
    optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
    generator = torch.Generator(local_field.device).manual_seed(seed)
    x, y, z = (min(patch, n) for n in scan.field.shape[1:])
    small = DipoleModel((x, y, z), dipole.voxel_size, dipole.b0_direction, padding=[n // 2 for n in (x, y, z)])
    small = small.to(local_field.device)
    total = patch_steps + full_steps
    for step in range(patch_steps):
        part = scan.patch((x, y, z), generator)
        source, inside = perturbation_map((x, y, z), dipole.voxel_size, generator=generator, strength=strength)
        fields = torch.cat([part.field, part.field + small(source)])
        chi, perturbed = _predict(network, fields, part.mask.expand_as(fields)).chunk(2)
        at, elsewhere = losses.consistency_losses(
            chi / OUTPUT_SCALE, perturbed / OUTPUT_SCALE, source[None] / OUTPUT_SCALE, inside[None], part.mask
        )
        ramp = losses.consistency_weight(step / patch_steps)
        loss = _unsupervised(chi, part, small, variation) + ramp * (at + elsewhere)
        _step(optimiser, loss, network)
        if progress is not None:
            progress(step + 1, total)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate / 5
    seen: list[float] = []
    for step in range(full_steps):
        loss = _unsupervised(_predict(network, scan.field, scan.mask), scan, scan.dipole, full_variation)
        _step(optimiser, loss, network)
        seen.append(float(loss.detach()))
        if progress is not None:
            progress(patch_steps + step + 1, total)
        if len(seen) >= 20 and sum(seen[-10:]) > (1 - tolerance) * sum(seen[-20:-10]):
            break
    return scan.chi(network)


class _Scan:
    """A field cut to the brain's box, as a batch of one, with what its losses need."""

    def __init__(self, field: Tensor, mask: Tensor, weight: Tensor, dipole: DipoleModel):
        self.field, self.mask, self.weight, self.dipole = field, mask, weight, dipole
        self.box: tuple[slice, slice, slice] | None = None
        self.whole: tuple[int, ...] = ()

    @staticmethod
    def of(local_field: Volume, mask: Mask, dipole: DipoleModel, weight: Volume | None) -> "_Scan":
        box = bounding_box(mask, (MARGIN,) * 3)
        inside = mask[box][None]
        trust = inside.to(local_field) if weight is None else weight[box][None] / weight[mask].quantile(0.9)
        x, y, z = inside.shape[1:]
        cut = DipoleModel((x, y, z), dipole.voxel_size, dipole.b0_direction, padding=16).to(local_field.device)
        scan = _Scan(local_field[box][None] * inside, inside, trust.clamp_max(1) * inside, cut)
        scan.box, scan.whole = box, tuple(local_field.shape)
        return scan

    def patch(self, shape: Shape, generator: torch.Generator) -> "_Scan":
        """A place at random that holds at least half as much brain as the fullest of a few."""
        best, most = None, -1.0
        for _ in range(8):
            draw = torch.rand(3, generator=generator, device=generator.device).tolist()
            first = [int(share * (n - m + 1)) for share, n, m in zip(draw, self.field.shape[1:], shape, strict=True)]
            place = (slice(None), *(slice(a, a + m) for a, m in zip(first, shape, strict=True)))
            filled = float(self.mask[place].float().mean())
            if filled > most:
                best, most = place, filled
            if filled > 0.5:
                break
        assert best is not None
        return _Scan(self.field[best], self.mask[best], self.weight[best], self.dipole)

    @torch.no_grad()
    def chi(self, network: nn.Module) -> Volume:
        """What the network finds, on the grid of the scan."""
        found = _predict(network, self.field, self.mask)[0]
        chi = found.new_zeros(self.whole)
        chi[self.box] = found
        return chi


def _network(shape: UNetShape, seed: int, device: torch.device) -> UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(shape)
    return network.to(device)


def _predict(network: nn.Module, field: Tensor, mask: Tensor) -> Tensor:
    return predict(network, field, mask, input_scale=INPUT_SCALE, output_scale=OUTPUT_SCALE)


def _unsupervised(chi: Tensor, scan: _Scan, dipole: DipoleModel, variation: float) -> Tensor:
    fidelity = losses.nonlinear_field_loss(chi, scan.field, scan.mask, scan.weight, dipole, radians=INPUT_SCALE)
    return fidelity + variation * losses.total_variation_loss(chi / OUTPUT_SCALE)


def _step(optimiser: torch.optim.Optimizer, loss: Tensor, network: nn.Module) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if math.isfinite(float(nn.utils.clip_grad_norm_(network.parameters(), 1.0))):
        optimiser.step()
