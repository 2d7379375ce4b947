"""The frame that a network knows: scans are brought into it by splines, and what is found there back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import affine_transform, distance_transform_edt
from torch import Tensor

from chimap.arrays import Shape, Triple
from chimap.linalg import shortest_turns

STRAIGHT = math.radians(3.0)
"""A direction of B0 this little beyond those that were learned counts as one of them."""
ALIKE = 0.08
"""Voxels whose edges differ by no more than this share count as the same."""


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
    # the shortest turn from z to B0: the anatomy stays as upright as it can; columns: the axes in the scan's [mm]
    turn = np.eye(3) if straight else shortest_turns(torch.from_numpy(b0)[None])[0].numpy()
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


def into(field: Tensor, mask: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
    """Field and mask in the frame; for the splines the field goes on beyond the mask with its nearest value."""
    inside = sampled(mask.float(), frame.matrix, frame.offset, frame.shape, order=1) > 0.5
    moved = sampled(_continued(field, mask), frame.matrix, frame.offset, frame.shape, order=3)
    return moved * inside, inside


def out_of(chi: Tensor, mask: Tensor, frame: Frame) -> Tensor:
    """chi of the frame on the grid of the scan."""
    matrix = np.linalg.inv(frame.matrix)
    return sampled(_continued(chi, mask), matrix, -matrix @ frame.offset, frame.scan_shape, order=3)


def _continued(volume: Tensor, mask: Tensor) -> Tensor:
    """The volume with each voxel beyond the mask as the nearest one inside."""
    nearest = distance_transform_edt(~mask.cpu().numpy(), return_distances=False, return_indices=True)
    i, j, k = (torch.from_numpy(index).to(volume.device) for index in np.asarray(nearest))
    return volume[i, j, k]


def sampled(volume: Tensor, matrix: np.ndarray, offset: np.ndarray, shape: Shape, *, order: int) -> Tensor:
    """Splines at matrix @ voxel + offset; beyond the grid its outermost voxels."""
    values = volume.cpu().numpy()
    moved = affine_transform(values, matrix, offset, shape, order=order, mode="nearest")  # pyright: ignore
    return torch.from_numpy(moved).to(volume)
