"""Weights as inversions: chi of a local field by a network that has learned.

The networks learned on axial fields of 1 mm voxels, within a sample of brain. Any other scan is brought into that
frame, B0 along z and 1 mm, and its chi back. chi and field share one frame, so nothing is lost but by interpolation.
"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import affine_transform, distance_transform_edt
from torch import Tensor

from chimap import losses
from chimap.arrays import Mask, Shape, Triple, Volume
from chimap.linalg import bounding_box
from chimap.networks.apply import predict
from chimap.networks.unet import UNet
from chimap.networks.weights import Trained, load_trained, read_trained
from chimap.physics.dipole import DipoleModel

MARGIN = 8
"""Voxels around the mask that the network sees, zeros."""
STRAIGHT = math.radians(3.0)
"""A direction of B0 this close to z counts as z."""
ISOTROPIC = 0.08
"""Voxels whose edges are this close to 1 mm count as 1 mm."""


def uqsm_plus(
    local_field: Volume, mask: Mask, dipole: DipoleModel, weight: Volume | None = None, *, refinement: int = 0
) -> Volume:
    """chi by uQSM+, a U-Net that learned from fields alone.

    Args:
        local_field: [ppm], shape (x, y, z).
        mask: Same shape.
        dipole: Says voxel size and direction of B0.
        weight: Of the data in a refinement; the mask if None.
        refinement: So many steps of uQSM+'s own loss on this scan edit the weights first.

    Returns:
        chi [ppm], zero outside the mask.

    References:
        Liu, Improved Model-based Learning with Data Augmentation for QSM.
    """
    return invert(local_field, mask, dipole, load_trained("uqsm+"), weight=weight, refinement=refinement)


def qsmnet_plus(
    local_field: Volume, mask: Mask, dipole: DipoleModel, weight: Volume | None = None, *, refinement: int = 0
) -> Volume:
    """chi by QSMnet+, a U-Net that learned from chi of simulated heads, scaled and turned in sign.

    Arguments and result as `uqsm_plus`.

    References:
        Jung et al. 2020, doi:10.1016/j.neuroimage.2020.116619.
    """
    return invert(local_field, mask, dipole, load_trained("qsmnet+"), weight=weight, refinement=refinement)


def fine(
    local_field: Volume,
    mask: Mask,
    dipole: DipoleModel,
    weight: Volume | None = None,
    *,
    iterations: int = 20,
    learning_rate: float = 1e-4,
) -> Volume:
    """chi by QSMnet+ whose weights the fidelity of this one field edits: minimise |W m (A U(f) - f)|^2 over U.

    Arguments and result as `uqsm_plus`.

    References:
        Zhang et al. 2020, FINE, doi:10.1016/j.neuroimage.2020.116579.
    """
    return invert(
        local_field,
        mask,
        dipole,
        load_trained("qsmnet+"),
        weight=weight,
        refinement=iterations,
        learning_rate=learning_rate,
        variation=0.0,
    )


def from_file(
    local_field: Volume,
    mask: Mask,
    dipole: DipoleModel,
    weight: Volume | None = None,
    *,
    weights: Path,
    refinement: int = 0,
) -> Volume:
    """chi by weights of a training of one's own (best.safetensors). Other arguments and result as `uqsm_plus`."""
    return invert(local_field, mask, dipole, read_trained(weights), weight=weight, refinement=refinement)


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
    """
    frame = frame_of(dipole.voxel_size, dipole.b0_direction, tuple(local_field.shape))
    field, inside, trust = local_field * mask, mask, mask.to(local_field) if weight is None else weight * mask
    size, b0 = dipole.voxel_size, dipole.b0_direction
    if frame is not None:
        trust = _sampled(trust, frame.matrix, frame.offset, frame.shape, order=1)
        field, inside = into(field, mask, frame)
        size, b0 = (1.0, 1.0, 1.0), (0.0, 0.0, 1.0)
    box = bounding_box(inside, (MARGIN,) * 3)
    network = trained.network.to(local_field.device)
    part, part_mask = field[box][None], inside[box][None]
    if refinement > 0:
        part_trust = (trust[box][None] / trust[inside].quantile(0.9)).clamp(0, 1)
        network = _refined(trained, part, part_mask, part_trust, size, b0, refinement, learning_rate, variation).to(
            local_field.device
        )
    chi = torch.zeros_like(field)
    with torch.no_grad():
        chi[box] = _predict(network, part, part_mask, trained)[0]
    if frame is not None:
        chi = out_of(chi, inside, frame)
    return chi * mask


def _refined(
    trained: Trained,
    field: Tensor,
    mask: Tensor,
    weight: Tensor,
    voxel_size: Triple,
    b0_direction: Triple,
    steps: int,
    learning_rate: float,
    variation: float,
) -> UNet:
    """A copy of the network after a few steps on one field; statistics of a batch normalisation stay as learned."""
    network = copy.deepcopy(trained.network).to(field.device).requires_grad_(True).eval()
    x, y, z = field.shape[1:]
    model = DipoleModel((x, y, z), voxel_size, b0_direction, padding=16).to(field.device)
    optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
    for _ in range(steps):
        optimiser.zero_grad(set_to_none=True)
        chi = _predict(network, field, mask, trained)
        loss = losses.weighted_field_loss(chi, field, mask, weight, model, radians=trained.input_scale)
        if variation:
            loss = loss + variation * losses.total_variation_loss(chi / trained.output_scale)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
    return network.requires_grad_(False)


def _predict(network: UNet, field: Tensor, mask: Tensor, trained: Trained) -> Tensor:
    return predict(network, field, mask, input_scale=trained.input_scale, output_scale=trained.output_scale)


@dataclass(frozen=True)
class Frame:
    """Where the voxels of the networks' frame lie in a scan.

    Attributes:
        matrix: Frame voxel to scan voxel, (3, 3).
        offset: Scan voxel of the frame's first voxel.
        shape: Of the frame.
        scan_shape: Of the scan.
    """

    matrix: np.ndarray
    offset: np.ndarray
    shape: Shape
    scan_shape: Shape


def frame_of(voxel_size: Triple, b0_direction: Triple, shape: tuple[int, ...]) -> Frame | None:
    """The frame of 1 mm with B0 along z over the whole scan; None where the scan is in it already."""
    b0 = np.asarray(b0_direction)
    b0 = b0 if b0[2] >= 0 else -b0  # the field of the opposite direction is the same
    size = np.asarray(voxel_size)
    if b0[2] > math.cos(STRAIGHT) and np.all(np.abs(size - 1) < ISOTROPIC):
        return None
    # the shortest turn from z to B0: the anatomy stays as upright as it can
    axis, cosine = np.cross([0.0, 0.0, 1.0], b0), float(b0[2])
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = np.eye(3) + cross + cross @ cross / (1 + cosine)  # columns: the frame's axes in the scan's [mm]
    extent = (np.asarray(shape) - 1) * size
    corners = np.array(np.meshgrid(*[(-e / 2, e / 2) for e in extent], indexing="ij")).reshape(3, -1)
    reach = np.abs(turn.T @ corners).max(axis=1)
    x, y, z = (int(n) for n in np.ceil(2 * reach).astype(int) + 1)
    matrix = turn / size[:, None]
    offset = (np.asarray(shape) - 1) / 2 - matrix @ ((np.array([x, y, z]) - 1) / 2)
    a, b, c = shape
    return Frame(matrix, offset, (x, y, z), (a, b, c))


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
