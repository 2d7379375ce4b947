"""The MNI152 brain that nilearn carries, and the cavity of the skull around it.

Atlas coordinates are mm of MNI space: x to the right, y to the front, z up.
"""

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chimap.errors import InputError

LOW = (-115.0, -155.0, -150.0)
HIGH = (115.0, 125.0, 115.0)
"""Box of atlas coordinates that holds the whole head down to the neck."""


@dataclass(frozen=True)
class Grid:
    """Values on a lattice of atlas coordinates.

    Attributes:
        values: Shape (channel, x, y, z).
        low: Atlas coordinates of the first voxel [mm].
        high: Of the last one.
    """

    values: Tensor
    low: tuple[float, ...]
    high: tuple[float, ...]

    def at(self, points: Tensor) -> Tensor:
        """Interpolate at points (3, *shape) [mm]: (channel, *shape), beyond the rim its value."""
        low = torch.tensor(self.low).reshape(3, *[1] * (points.ndim - 1))
        high = torch.tensor(self.high).reshape(3, *[1] * (points.ndim - 1))
        scaled = (points - low) * (2 / (high - low)) - 1
        places = scaled.flip(0).flatten(1).T.reshape(1, 1, 1, -1, 3)  # grid_sample counts axes from the last
        found = torch.nn.functional.grid_sample(
            self.values[None], places, mode="bilinear", padding_mode="border", align_corners=True
        )
        return found.reshape(-1, *points.shape[1:])


@dataclass(frozen=True)
class Atlas:
    """The brain and the cavity of the skull.

    Attributes:
        brain: Shares of grey matter, white matter, CSF, and of brain as a whole.
        cavity: Distance to the inner skull [mm], negative inside.
    """

    brain: Grid
    cavity: Grid


@lru_cache(maxsize=1)
def load_atlas() -> Atlas:
    """Read the MNI152 maps and build the cavity.

    Raises:
        InputError: nilearn's files are not where its package keeps them.
    """
    intensity, low = _template("t1")
    grey, _ = _template("gm")
    white, _ = _template("wm")
    brain = intensity > 0
    box = tuple(
        slice(
            int(np.flatnonzero(brain.any(axis=other))[0]) - 2,
            int(np.flatnonzero(brain.any(axis=other))[-1]) + 3,
        )
        for other in ((1, 2), (0, 2), (0, 1))
    )
    box = tuple(slice(max(part.start, 0), part.stop) for part in box)
    t1, g, w = (torch.from_numpy(volume[box].astype(np.float32)) / 255 for volume in (intensity, grey, white))
    inside = (t1 > 0).float()
    # T1 tells the CSF of narrow sulci, which the averaged tissue maps give to grey matter
    csf = torch.maximum((1 - g - w).clamp_min(0), torch.sigmoid((0.47 - t1) * 30))
    # averages of many brains have soft borders; cubing the shares gives back the folds of one
    shares = torch.stack([g, w, csf]).pow(3) * inside
    shares /= shares.sum(dim=0).clamp_min(1e-6)
    first = [low[axis] + box[axis].start for axis in range(3)]
    last = [first[axis] + t1.shape[axis] - 1 for axis in range(3)]
    tissue = Grid(torch.cat([shares, inside[None]]), tuple(first), tuple(last))
    return Atlas(tissue, _cavity(tissue))


def _template(name: str) -> tuple[np.ndarray, list[float]]:
    """One map as stored, 0..255, and the atlas coordinates of its first voxel. The voxels are 1 mm, axes RAS.

    The file is read without importing nilearn, which would take seconds.
    """
    from nibabel.nifti1 import Nifti1Image

    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise InputError("the built-in head needs the package nilearn, which is not installed")
    file = Path(spec.origin).parent / "datasets" / "data" / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    if not file.is_file():
        raise InputError(f"the built-in head needs nilearn's MNI152 maps; this nilearn has no {file}")
    image = Nifti1Image.from_filename(file)
    return np.asarray(image.dataobj), [float(value) for value in np.asarray(image.affine)[:3, 3]]


def _cavity(tissue: Grid, *, step: float = 3.0, reach: float = 15.0, gap: float = 3.0) -> Grid:
    """Distance to the inner skull: the brain closed by a ball of `reach` mm and grown by `gap` mm, the spinal
    canal added below."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    axes = [torch.arange(low, high + step, step) for low, high in zip(LOW, HIGH, strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    brain = (tissue.at(points)[3] > 0.5).numpy()
    grown = np.asarray(distance_transform_edt(~brain)) * step <= reach
    depth = np.asarray(distance_transform_edt(grown)) * step
    cavity = torch.from_numpy(depth > reach)
    x, y, z = points
    canal = torch.sqrt(x**2 + (y + 44 - (z + 60) * 0.1) ** 2) < 7
    cavity |= canal & (z < -55)
    # EDT counts from voxel centres: half a step on both sides of the border
    inside = cavity.numpy()
    distance = np.asarray(distance_transform_edt(~inside)) - np.asarray(distance_transform_edt(inside))
    distance = gaussian_filter(distance * step, 1.2) - gap
    last = tuple(float(axis[-1]) for axis in axes)
    return Grid(torch.from_numpy(distance.astype(np.float32))[None], LOW, last)
