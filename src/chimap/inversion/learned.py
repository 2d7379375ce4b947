"""Weights as inversions: chi of a local field by a network that has learned.

A network knows the voxels and the directions of B0 that it has learned with, those of the package 1 mm and along z. Any
other scan is brought into that frame and its chi back; what is lost is lost by interpolation.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import affine_transform, distance_transform_edt
from torch import Tensor

from chimap import losses
from chimap.arrays import Mask, Progress, Shape, Triple, Volume
from chimap.linalg import bounding_box
from chimap.networks.apply import predict
from chimap.networks.unet import UNet
from chimap.networks.weights import SUFFIX, Trained, load_trained, read_trained
from chimap.physics.dipole import DipoleModel

MARGIN = 8
"""Voxels around the mask that the network sees, zeros."""
STRAIGHT = math.radians(3.0)
"""A direction of B0 this little beyond those that were learned counts as one of them."""
ALIKE = 0.08
"""Voxels whose edges differ by no more than this share count as the same."""


def by_network(
    local_field: Volume,
    mask: Mask,
    dipole: DipoleModel,
    weight: Volume | None = None,
    *,
    weights: str | Path,
    refinement: int = 0,
    bf16: bool = False,
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
        bf16: Convolutions of the pass that gives chi in bfloat16: faster, and less exact (benchmarks/inference.py).
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
        local_field, mask, dipole, _found(weights), weight=weight, refinement=refinement, bf16=bf16, progress=progress
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
        _found(weights),
        weight=weight,
        refinement=iterations,
        learning_rate=learning_rate,
        variation=0.0,
        progress=progress,
    )


def _found(weights: str | Path) -> Trained:
    """The weights of a file, or those of a name in the package."""
    if Path(weights).suffix == SUFFIX:
        return read_trained(Path(weights))
    return load_trained(str(weights))


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
        bf16: Convolutions of the pass that gives chi in bfloat16.
        progress: Called with step and steps of the refinement.
    """
    outer = bounding_box(mask, (MARGIN,) * 3)
    field, inside = (local_field * mask)[outer], mask[outer]
    trust = inside.to(field) if weight is None else (weight * mask)[outer]
    size, b0 = dipole.voxel_size, dipole.b0_direction
    frame = frame_of(size, b0, tuple(field.shape), trained.voxel_sizes, trained.tilt)
    if frame is not None:
        trust = _sampled(trust, frame.matrix, frame.offset, frame.shape, order=1)
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
            loss(_predict(network, part, part_mask, trained)).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            if progress is not None:
                progress(step + 1, refinement)
    chi = torch.zeros_like(field)
    with torch.no_grad(), torch.autocast(field.device.type, torch.bfloat16, enabled=bf16):
        chi[box] = _predict(network, part, part_mask, trained)[0]
    if frame is not None:
        chi = out_of(chi, inside, frame)
    whole = torch.zeros_like(local_field)
    whole[outer] = chi
    return whole * mask


def _predict(network: UNet, field: Tensor, mask: Tensor, trained: Trained) -> Tensor:
    return predict(network, field, mask, input_scale=trained.input_scale, output_scale=trained.output_scale)


@dataclass(frozen=True)
class Frame:
    """Where the voxels of a frame that a network knows lie in a scan.

    Attributes:
        matrix: Frame voxel to scan voxel, (3, 3).
        offset: Scan voxel of the frame's first voxel.
        shape: Of the frame.
        voxel_size: Of the frame [mm].
        b0_direction: In it.
        scan_shape: Of the scan.
    """

    matrix: np.ndarray
    offset: np.ndarray
    shape: Shape
    voxel_size: Triple
    b0_direction: Triple
    scan_shape: Shape


def frame_of(
    voxel_size: Triple,
    b0_direction: Triple,
    shape: tuple[int, ...],
    learned: Sequence[Triple] = ((1.0, 1.0, 1.0),),
    tilt: float = 0.0,
) -> Frame | None:
    """The frame that a network knows, over the whole scan; None where the scan is in such a frame already.

    Args:
        voxel_size: Of the scan [mm].
        b0_direction: In its voxel axes.
        shape: Of its grid.
        learned: Voxel sizes [mm] that the network knows; the one closest to the scan's is taken.
        tilt: Largest angle between B0 and z that it knows [rad]; beyond, the scan is turned so that B0 is along z.
    """
    b0 = np.asarray(b0_direction) / np.linalg.norm(b0_direction)
    b0 = b0 if b0[2] >= 0 else -b0  # the field of the opposite direction is the same
    size = np.asarray(voxel_size)
    ratios = [np.abs(np.log(np.asarray(one) / size)) for one in learned]
    nearest = min(range(len(learned)), key=lambda index: float(ratios[index].max()))
    straight = b0[2] >= math.cos(min(tilt + STRAIGHT, math.pi / 2))
    if straight and ratios[nearest].max() <= math.log(1 + ALIKE):
        return None
    # the shortest turn from z to B0: the anatomy stays as upright as it can
    turn = np.eye(3)
    if not straight:
        axis, cosine = np.cross([0.0, 0.0, 1.0], b0), float(b0[2])
        cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
        turn = turn + cross + cross @ cross / (1 + cosine)  # columns: the frame's axes in the scan's [mm]
    new = np.asarray(learned[nearest])
    extent = (np.asarray(shape) - 1) * size
    corners = np.array(np.meshgrid(*[(-e / 2, e / 2) for e in extent], indexing="ij")).reshape(3, -1)
    reach = np.abs(turn.T @ corners).max(axis=1)
    x, y, z = (int(n) for n in np.ceil(2 * reach / new).astype(int) + 1)
    matrix = turn * new / size[:, None]
    offset = (np.asarray(shape) - 1) / 2 - matrix @ ((np.array([x, y, z]) - 1) / 2)
    i, j, k = (float(value) for value in turn.T @ b0)
    a, b, c = shape
    return Frame(matrix, offset, (x, y, z), learned[nearest], (i, j, k), (a, b, c))


def how_resampled(weights: str | Path, voxel_size: Triple, b0_direction: Triple, shape: Shape) -> str | None:
    """A sentence for the report on what a network needs of a scan; None where the scan is as the network knows it."""
    known = _found(weights)
    frame = frame_of(voxel_size, b0_direction, shape, known.voxel_sizes, known.tilt)
    if frame is None:
        return None
    size = " x ".join(f"{edge:.3g}" for edge in frame.voxel_size)
    b0 = np.asarray(b0_direction) / np.linalg.norm(b0_direction)
    angle = math.degrees(math.acos(min(abs(float(b0 @ np.asarray(frame.b0_direction))), 1.0)))
    turned = f"turned by {angle:.0f} degrees and " if angle > 1 else ""
    return (
        f"The network has learned with other voxels or directions of B0: the local field was {turned}resampled to "
        f"voxels of {size} mm, and chi brought back, which blurs a little."
    )


def into(field: Tensor, mask: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
    """Field and mask in the frame; for the splines the field goes on beyond the mask with its nearest value."""
    inside = _sampled(mask.float(), frame.matrix, frame.offset, frame.shape, order=1) > 0.5
    moved = _sampled(_continued(field, mask), frame.matrix, frame.offset, frame.shape, order=3)
    return moved * inside, inside


def out_of(chi: Tensor, mask: Tensor, frame: Frame) -> Tensor:
    """chi of the frame on the grid of the scan."""
    matrix = np.linalg.inv(frame.matrix)
    return _sampled(_continued(chi, mask), matrix, -matrix @ frame.offset, frame.scan_shape, order=3)


def _continued(volume: Tensor, mask: Tensor) -> Tensor:
    """The volume with each voxel beyond the mask as the nearest one inside."""
    nearest = distance_transform_edt(~mask.cpu().numpy(), return_distances=False, return_indices=True)
    i, j, k = (torch.from_numpy(index).to(volume.device) for index in np.asarray(nearest))
    return volume[i, j, k]


def _sampled(volume: Tensor, matrix: np.ndarray, offset: np.ndarray, shape: Shape, *, order: int) -> Tensor:
    """Splines at matrix @ voxel + offset; beyond the grid its outermost voxels."""
    values = volume.cpu().numpy()
    moved = affine_transform(values, matrix, offset, shape, order=order, mode="nearest")  # pyright: ignore
    return torch.from_numpy(moved).to(volume)
