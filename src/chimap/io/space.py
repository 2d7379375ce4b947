"""How an image lies in the scanner."""

import math
from collections.abc import Sequence

import numpy as np

from chimap.arrays import Triple
from chimap.errors import InputError


def b0_from_affine(affine: np.ndarray) -> Triple:
    """Unit vector of B0, the scanner's z axis, in voxel axes.

    The voxel axes are the affine's columns, made orthonormal by the least change (polar decomposition) where
    they are sheared. A left-handed affine has left-handed axes.
    """
    steps = np.asarray(affine, dtype=np.float64)[:3, :3]
    left, _, right = np.linalg.svd(steps / np.linalg.norm(steps, axis=0))
    x, y, z = np.round((left @ right)[2], 12) + 0.0  # rounding and + 0.0 leave neither 1e-17 nor -0
    return float(x), float(y), float(z)


def b0_from_user(direction: Sequence[float]) -> Triple:
    """Unit vector of a direction in voxel axes that the user gave.

    Raises:
        InputError: It has no length, or not three components.
    """
    given = tuple(float(component) for component in direction)
    norm = math.sqrt(sum(component**2 for component in given))
    if len(given) != 3 or not (math.isfinite(norm) and norm > 0):
        listed = " ".join(f"{component:g}" for component in given)
        raise InputError(f"--b0-dir is {listed}, which has no length: needed a direction in voxel axes, such as 0 0 1")
    return given[0] / norm, given[1] / norm, given[2] / norm


def voxel_size(affine: np.ndarray) -> Triple:
    """Lengths of the voxel's edges [mm], to a nanometre: files hold 1.8 as 1.79999995."""
    x, y, z = np.round(np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0), 6)
    return float(x), float(y), float(z)


def nearest(values: np.ndarray, affine: np.ndarray, like_affine: np.ndarray, like_shape: Sequence[int]) -> np.ndarray:
    """An image's values at the voxels of another grid: those of the nearest voxel, 0 beyond the image.

    Args:
        values: Shape (x, y, z), of any type.
        affine: Of the image [mm].
        like_affine: Of the other grid [mm].
        like_shape: Its size (x, y, z).

    Returns:
        Shape `like_shape`, the type of `values`.
    """
    to_image = np.linalg.solve(np.asarray(affine, np.float64), np.asarray(like_affine, np.float64))
    steps = [np.arange(n, dtype=np.float64) for n in like_shape[:3]]
    index, inside = [], np.ones(tuple(like_shape[:3]), bool)
    for row, n in zip(to_image[:3], values.shape, strict=True):
        place = row[0] * steps[0][:, None, None] + row[1] * steps[1][:, None] + row[2] * steps[2] + row[3]
        whole = np.floor(place + 0.5).astype(np.int32)
        inside &= (whole >= 0) & (whole < n)
        index.append(np.clip(whole, 0, n - 1))
    return np.where(inside, values[tuple(index)], 0).astype(values.dtype)
