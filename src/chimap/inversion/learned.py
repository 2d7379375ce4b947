"""Weights as inversions: chi of a local field by a network that has learned.

A network knows the voxels and the directions of B0 that it has learned with, those of the package 1 mm and along z. Any
other scan is brought into that frame and its chi back; what is lost is lost by interpolation.
"""

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from chimap import losses
from chimap.arrays import Mask, Progress, Shape, Triple, Volume
from chimap.errors import InputError
from chimap.inversion.frame import frame_of, into, out_of, sampled
from chimap.linalg import bounding_box
from chimap.networks.apply import mirror_images, predict
from chimap.networks.precision import BF16
from chimap.networks.weights import SUFFIX, Trained, load_trained, read_trained
from chimap.physics.dipole import DipoleModel

MARGIN = 8
"""Voxels around the mask that the network sees, zeros."""


def by_network(
    local_field: Volume,
    mask: Mask,
    dipole: DipoleModel,
    weight: Volume | None = None,
    *,
    weights: str | Path,
    refinement: int = 0,
    turn: bool = True,
    images: int = 3,
    bf16: bool = BF16,
    progress: Progress | None = None,
) -> Volume:
    """chi by a network that has learned.

    Args:
        local_field: [ppm], shape (x, y, z).
        mask: Same shape.
        dipole: Says voxel size and direction of B0.
        weight: Of the data in a refinement; the mask if None.
        weights: Name of those that come with the package, such as "uqsm+", or the best.safetensors of a training.
        refinement: So many steps of uQSM+'s own loss on this scan edit the weights first.
        turn: Whether a scan is turned where the network does not know its direction of B0. Without, it is taken as it
            is, to see what that does.
        images: A network that is told the direction of B0 is shown up to so many mirror images of the scan, and chi is
            the mean of what it finds (`networks.apply.mirror_images`); not after a refinement, which knows one.
        bf16: Convolutions of the pass that gives chi in bfloat16: faster where the processor has them, and a little
            less exact (benchmarks/inference.py).
        progress: Called with step and steps of a refinement.

    Returns:
        chi [ppm], zero outside the mask.

    Raises:
        InputError: There are no such weights, or the file holds none.

    References:
        uQSM: Liu and Koch 2020, doi:10.48550/arXiv.2004.06259. uQSM+: Liu, Improved Model-based Learning with Data
        Augmentation for QSM. QSMnet: Yoon et al. 2018, doi:10.1016/j.neuroimage.2018.06.030. QSMnet+: Jung et al.
        2020, doi:10.1016/j.neuroimage.2020.116619.
    """
    return invert(
        local_field,
        mask,
        dipole,
        trained_by(weights, "local field"),
        weight=weight,
        refinement=refinement,
        turn=turn,
        images=images,
        bf16=bf16,
        progress=progress,
    )


def fine(
    local_field: Volume,
    mask: Mask,
    dipole: DipoleModel,
    weight: Volume | None = None,
    *,
    weights: str | Path = "qsmnet+",
    iterations: int = 20,
    learning_rate: float = 1e-4,
    progress: Progress | None = None,
) -> Volume:
    """chi by a network whose weights the fidelity of this one field edits: minimise |W m (A U(f) - f)|^2 over U.

    Arguments and result as `by_network`.

    References:
        Zhang et al. 2020, FINE, doi:10.1016/j.neuroimage.2020.116579.
    """
    return invert(
        local_field,
        mask,
        dipole,
        trained_by(weights, "local field"),
        weight=weight,
        refinement=iterations,
        learning_rate=learning_rate,
        variation=0.0,
        progress=progress,
    )


def trained_by(weights: str | Path, *takes: str) -> Trained:
    """The weights of a file, or those of a name in the package.

    Raises:
        InputError: There are none, or the network takes something else than what it would be given.
    """
    found = read_trained(Path(weights)) if Path(weights).suffix == SUFFIX else load_trained(str(weights))
    if takes and found.takes not in takes:
        raise InputError(f"the network of {Path(weights).name} takes the {found.takes}, and is given the {takes[0]}")
    return found


def invert(
    local_field: Volume,
    mask: Mask,
    dipole: DipoleModel,
    trained: Trained,
    *,
    weight: Volume | None = None,
    refinement: int = 0,
    learning_rate: float = 1e-4,
    variation: float = 4e-3,
    turn: bool = True,
    images: int = 1,
    bf16: bool = False,
    progress: Progress | None = None,
) -> Volume:
    """chi [ppm] of a local field [ppm] by a trained network, in the frame that it knows.

    Args:
        local_field: Shape (x, y, z).
        mask: Same shape.
        dipole: Says voxel size and direction of B0.
        trained: The network and its scales.
        weight: Of the data in a refinement; the mask if None.
        refinement: Steps on this scan.
        learning_rate: Of them.
        variation: Weight of the total variation in them.
        turn: As `by_network` has it.
        images: Likewise.
        bf16: Convolutions of the pass that gives chi in bfloat16.
        progress: Called with step and steps of the refinement.
    """
    outer = bounding_box(mask, (MARGIN,) * 3)
    field, inside = (local_field * mask)[outer], mask[outer]
    trust = inside.to(field) if weight is None else (weight * mask)[outer]
    size, b0 = dipole.voxel_size, dipole.b0_direction
    frame = frame_of(size, b0, tuple(field.shape), trained.voxel_sizes, trained.tilt if turn else math.pi / 2)
    if frame is not None:
        trust = sampled(trust, frame.matrix, frame.offset, frame.shape, order=1)
        field, inside = into(field, inside, frame)
        size, b0 = frame.voxel_size, frame.b0_direction
    box = bounding_box(inside, (MARGIN,) * 3)
    network = trained.network.to(local_field.device)
    part, part_mask = field[box][None], inside[box][None]
    if refinement > 0:
        x, y, z = part.shape[1:]
        model = DipoleModel((x, y, z), size, b0, padding=16).to(field.device)
        part_trust = (trust[box][None] / trust[inside].quantile(0.9)).clamp(0, 1)

        def loss(chi: Tensor) -> Tensor:
            fit = losses.weighted_field_loss(chi, part, part_mask, part_trust, model, radians=trained.input_scale)
            return fit + variation * losses.total_variation_loss(chi / trained.output_scale)

        network = copy.deepcopy(network)
        optimiser = torch.optim.Adam(network.requires_grad_(True).parameters(), lr=learning_rate)
        for step in range(refinement):  # in evaluation mode: statistics of a batch normalisation stay as learned
            optimiser.zero_grad(set_to_none=True)
            loss(_predict(network, part, part_mask, trained, size, b0)).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            if progress is not None:
                progress(step + 1, refinement)
    chi = torch.zeros_like(field)
    shown = range(1 if refinement else mirror_images(network, b0, images))
    with torch.no_grad(), torch.autocast(field.device.type, torch.bfloat16, enabled=bf16):
        chi[box] = _predict(network, part, part_mask, trained, size, b0, shown)[0]
    if frame is not None:
        chi = out_of(chi, inside, frame)
    whole = torch.zeros_like(local_field)
    whole[outer] = chi
    return whole * mask


def _predict(
    network: nn.Module,
    field: Tensor,
    mask: Tensor,
    trained: Trained,
    size: Triple,
    b0: Triple,
    images: Sequence[int] = (0,),
) -> Tensor:
    return predict(
        network,
        field,
        mask,
        input_scale=trained.input_scale,
        output_scale=trained.output_scale,
        b0_direction=field.new_tensor([b0]),
        voxel_size=field.new_tensor([size]),
        images=images,
    )


def how_resampled(
    weights: str | Path, voxel_size: Triple, b0_direction: Triple, shape: Shape, *, turn: bool = True
) -> str | None:
    """A sentence for the report on what a network needs of a scan; None where the scan is as the network knows it."""
    known = trained_by(weights)
    frame = frame_of(voxel_size, b0_direction, shape, known.voxel_sizes, known.tilt if turn else math.pi / 2)
    if frame is None:
        return None
    size = " x ".join(f"{edge:.3g}" for edge in frame.voxel_size)
    b0 = np.asarray(b0_direction) / np.linalg.norm(b0_direction)
    angle = math.degrees(math.acos(min(abs(float(b0 @ np.asarray(frame.b0_direction))), 1.0)))
    turned = f"turned by {angle:.0f} degrees and " if angle > 1 else ""
    return (
        f"The network has learned with other voxels or directions of B0: the {known.takes} was {turned}resampled to "
        f"voxels of {size} mm, and what it found brought back, which blurs a little."
    )
