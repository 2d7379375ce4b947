"""How volumes are turned for pictures, from their affine.

A picture reads the same whatever order the file keeps its axes in. Oblique acquisitions are shown in their
own planes, each axis named by the anatomical direction closest to it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from chimap.arrays import Mask, Shape, Triple
from chimap.errors import InputError
from chimap.linalg import bounding_box


@dataclass(frozen=True)
class View:
    """How volumes of one grid are shown.

    Attributes:
        order: The file's axis that runs right, anterior and superior.
        flipped: Whether that axis runs the other way.
        voxel_size: Along right, anterior, superior [mm].
        centre: Voxel in which the three planes cross, in the file's axes.
        box: The part that is shown, in the file's axes.
    """

    order: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    voxel_size: Triple
    centre: tuple[int, int, int]
    box: tuple[slice, slice, slice]

    @property
    def shape(self) -> Shape:
        """Of a turned volume."""
        x, y, z = (self.box[axis].stop - self.box[axis].start for axis in self.order)
        return x, y, z

    def turned(self, volume: torch.Tensor) -> np.ndarray:
        """The shown part, (x, y, z) of the file turned to (right, anterior, superior)."""
        array = volume[self.box].detach().cpu().numpy().transpose(self.order)
        return array[tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)]

    def turned_index(self, voxel: Sequence[int]) -> tuple[int, int, int]:
        """Where a voxel of the file lies in a turned volume, moved to the nearest one shown."""
        found = []
        for axis, flip in zip(self.order, self.flipped, strict=True):
            start, stop = self.box[axis].start, self.box[axis].stop
            index = min(max(voxel[axis], start), stop - 1) - start
            found.append(stop - start - 1 - index if flip else index)
        return found[0], found[1], found[2]

    def turned_vector(self, vector: Triple) -> Triple:
        """A direction in voxel axes, along right, anterior and superior."""
        signs = [-1.0 if flip else 1.0 for flip in self.flipped]
        x, y, z = (sign * vector[axis] for sign, axis in zip(signs, self.order, strict=True))
        return x, y, z


def view_of(affine: np.ndarray, voxel_size: Triple, mask: Mask, *, margin: float | None = None) -> View:
    """The view through the centre of a mask.

    Args:
        affine: Voxel index to scanner coordinates [mm], 4 x 4, scanner axes right, anterior, superior.
        voxel_size: Along x, y, z of the file [mm].
        mask: Shape (x, y, z). Where it is empty, the grid's centre is shown.
        margin: Show the mask's box and this much around it [mm]; None shows the whole grid.

    Raises:
        InputError: The affine does not tell where every axis points.
    """
    from nibabel.orientations import io_orientation

    affine = np.asarray(affine, dtype=float)
    directions = affine[:3, :3]
    if affine.shape != (4, 4) or not np.isfinite(directions).all() or abs(np.linalg.det(directions)) < 1e-9:
        raise InputError(f"the affine {affine.tolist()} is singular, needed one that places every voxel")
    orientation = io_orientation(affine)
    order = [int(axis) for axis in np.argsort(orientation[:, 0])]
    flipped = [bool(orientation[axis, 1] < 0) for axis in order]
    whole = slice(0, mask.shape[0]), slice(0, mask.shape[1]), slice(0, mask.shape[2])
    if mask.any():
        x, y, z = (int(round(float(along.float().mean()))) for along in torch.nonzero(mask, as_tuple=True))
    else:
        x, y, z = (n // 2 for n in mask.shape)
    if margin is None or not mask.any():
        box = whole
    else:
        box = bounding_box(mask, [math.ceil(margin / size) for size in voxel_size])
    return View(
        order=(order[0], order[1], order[2]),
        flipped=(flipped[0], flipped[1], flipped[2]),
        voxel_size=(voxel_size[order[0]], voxel_size[order[1]], voxel_size[order[2]]),
        centre=(x, y, z),
        box=box,
    )
