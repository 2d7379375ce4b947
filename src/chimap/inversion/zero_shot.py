"""Networks that learn from the one scan at hand: the deep image prior and zero-shot uQSM+.

They work in the scan's own frame, with its own dipole model, so any direction of B0 and any voxel size is theirs.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from chimap import losses
from chimap.arrays import Mask, Progress, Shape, Volume
from chimap.errors import InputError
from chimap.linalg import bounding_box
from chimap.networks.apply import predict
from chimap.networks.checkpoint import optimiser_tensors, restore_optimiser
from chimap.networks.unet import UQSM, UQSM_PLUS, UNet, UNetShape
from chimap.physics.dipole import DipoleModel
from chimap.physics.random_sources import perturbation_map

INPUT_SCALE, OUTPUT_SCALE = 100.0, 0.03
"""Field [ppm] to the network's input, and its output to chi [ppm], as in uQSM's code."""
MARGIN = 8
"""Voxels of zeros around the mask."""

CHECKPOINT_EVERY = 25
"""Steps between two states that are kept."""


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
    checkpoint: Path | None = None,
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
        checkpoint: File that keeps the state every `CHECKPOINT_EVERY` steps; where it exists, it is gone on from.

    Returns:
        chi [ppm], zero outside the mask.

    Raises:
        InputError: The checkpoint is of another scan or other settings.

    References:
        Ulyanov et al. 2018, doi:10.1109/CVPR.2018.00984; as a comparator of uQSM: Liu and Koch 2020,
        doi:10.48550/arXiv.2004.06259.
    """
    shape = UNetShape(inputs=2, base=base, norm=UQSM.norm, slope=UQSM.slope, last_kernel=UQSM.last_kernel)
    scan = _Scan.of(local_field, mask, dipole, weight)
    fit = _Fit.begun(shape, seed, local_field.device)
    about = {"method": "dip", "base": base, "learning_rate": learning_rate, "variation": variation, "seed": seed}
    fit.go_on_from(checkpoint, scan, about)
    while fit.step < iterations:
        chi = _predict(fit.network, scan.field, scan.mask)
        fit.learn(_unsupervised(chi, scan, scan.dipole, variation), learning_rate)
        fit.keep(checkpoint, scan, about)
        if progress is not None:
            progress(fit.step, iterations)
    return scan.chi(fit.network)


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
    checkpoint: Path | None = None,
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
        checkpoint: File that keeps the state every `CHECKPOINT_EVERY` steps; where it exists, it is gone on from.

    Returns:
        chi [ppm], zero outside the mask.

    Raises:
        InputError: The checkpoint is of another scan or other settings.

    References:
        Liu, Improved Model-based Learning with Data Augmentation for QSM.
    """
    shape = UNetShape(inputs=UQSM_PLUS.inputs, base=base, slope=UQSM_PLUS.slope)
    scan = _Scan.of(local_field, mask, dipole, weight)
    x, y, z = (min(patch, n) for n in scan.field.shape[1:])
    small = DipoleModel((x, y, z), dipole.voxel_size, dipole.b0_direction, padding=[n // 2 for n in (x, y, z)])
    small = small.to(local_field.device)

    def on_a_patch(fit: _Fit) -> Tensor:
        part = scan.patch((x, y, z), fit.generator)
        source, inside = perturbation_map((x, y, z), dipole.voxel_size, generator=fit.generator, strength=strength)
        fields = torch.cat([part.field, part.field + small(source)])
        chi, perturbed = _predict(fit.network, fields, part.mask.expand_as(fields)).chunk(2)
        at, elsewhere = losses.consistency_losses(
            chi / OUTPUT_SCALE, perturbed / OUTPUT_SCALE, source[None] / OUTPUT_SCALE, inside[None], part.mask
        )
        ramp = losses.consistency_weight(fit.step / patch_steps)
        return _unsupervised(chi, part, small, variation) + ramp * (at + elsewhere)

    fit = _Fit.begun(shape, seed, local_field.device)
    about = {"method": "zs-uqsm+", "patch_steps": patch_steps, "patch": patch, "base": base, "strength": strength}
    about |= {"learning_rate": learning_rate, "variation": variation, "full_variation": full_variation, "seed": seed}
    fit.go_on_from(checkpoint, scan, about)
    while fit.step < patch_steps + full_steps:
        if fit.step < patch_steps:
            fit.learn(on_a_patch(fit), learning_rate)
        else:
            chi = _predict(fit.network, scan.field, scan.mask)
            fit.learn(_unsupervised(chi, scan, scan.dipole, full_variation), learning_rate / 5)
        fit.keep(checkpoint, scan, about)
        if progress is not None:
            progress(fit.step, patch_steps + full_steps)
        whole = fit.losses[patch_steps:]
        if len(whole) >= 20 and sum(whole[-10:]) > (1 - tolerance) * sum(whole[-20:-10]):
            break
    return scan.chi(fit.network)


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

    def fingerprint(self) -> str:
        """Of all that the fit depends on beside its settings."""
        parts = [self.field, self.mask, self.weight]
        data = b"".join(part.cpu().contiguous().numpy().tobytes() for part in parts)
        frame = f"{self.dipole.voxel_size} {self.dipole.b0_direction}".encode()
        return hashlib.sha256(data + frame).hexdigest()

    @torch.no_grad()
    def chi(self, network: nn.Module) -> Volume:
        """What the network finds, on the grid of the scan."""
        found = _predict(network, self.field, self.mask)[0]
        chi = found.new_zeros(self.whole)
        chi[self.box] = found
        return chi


@dataclass
class _Fit:
    """A network that learns, and all that decides how it goes on."""

    network: UNet
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    losses: list[float]

    @property
    def step(self) -> int:
        return len(self.losses)

    @staticmethod
    def begun(shape: UNetShape, seed: int, device: torch.device) -> "_Fit":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = UNet(shape)
        network = network.to(device)
        return _Fit(network, torch.optim.Adam(network.parameters()), torch.Generator(device).manual_seed(seed), [])

    def learn(self, loss: Tensor, rate: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if math.isfinite(float(nn.utils.clip_grad_norm_(self.network.parameters(), 1.0))):
            self.optimiser.step()
        self.losses.append(float(loss.detach()))

    def keep(self, file: Path | None, scan: "_Scan", settings: Mapping[str, object]) -> None:
        if file is None or self.step % CHECKPOINT_EVERY:
            return
        tensors = {f"network.{name}": value.contiguous().cpu() for name, value in self.network.state_dict().items()}
        tensors |= {f"optimiser.{name}": value for name, value in optimiser_tensors(self.optimiser).items()}
        tensors["generator"] = self.generator.get_state()
        about = {"scan": scan.fingerprint(), "settings": json.dumps(settings), "losses": json.dumps(self.losses)}
        file.parent.mkdir(parents=True, exist_ok=True)
        hidden = file.with_name(f"{file.name}.new")
        save_file(tensors, hidden, about)
        os.replace(hidden, file)

    def go_on_from(self, file: Path | None, scan: "_Scan", settings: Mapping[str, object]) -> None:
        if file is None or not file.exists():
            return
        with safe_open(file, framework="pt") as content:
            about = content.metadata()
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        if about["scan"] != scan.fingerprint() or json.loads(about["settings"]) != settings:
            raise InputError(f"{file} keeps a fit to another scan or with other settings: {about['settings']}")
        self.network.load_state_dict(_under("network.", tensors))
        restore_optimiser(self.optimiser, _under("optimiser.", tensors))
        self.generator.set_state(tensors["generator"])
        self.losses = json.loads(about["losses"])


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _predict(network: nn.Module, field: Tensor, mask: Tensor) -> Tensor:
    return predict(network, field, mask, input_scale=INPUT_SCALE, output_scale=OUTPUT_SCALE)


def _unsupervised(chi: Tensor, scan: _Scan, dipole: DipoleModel, variation: float) -> Tensor:
    fidelity = losses.nonlinear_field_loss(chi, scan.field, scan.mask, scan.weight, dipole, radians=INPUT_SCALE)
    return fidelity + variation * losses.total_variation_loss(chi / OUTPUT_SCALE)
