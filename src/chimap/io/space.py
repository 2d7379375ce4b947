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
