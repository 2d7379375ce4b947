"""What is wrong with this acquisition, in one sentence each, with the name of the file that says so."""

import math
from collections.abc import Sequence

import numpy as np

from chimap.errors import InputError

GRID_TOLERANCE = 1e-3
"""Largest difference of steps and origins, in voxels, before two grids count as different."""

SEVERAL = (
    "if they are repetitions of one measurement, give one of them at a time, and if they are the channels of a coil, "
    "combine them first, on the scanner or with a program such as ASPIRE"
)
"""Ends the sentence about too many volumes, which look the same in both cases."""


def echo_times(times: Sequence[float], source: str) -> None:
    """Refuse echo times that are not plausible seconds, naming the file or option they came from."""
    listed = ", ".join(f"{time:g}" for time in times)
    if not all(math.isfinite(time) and time > 0 for time in times):
        raise InputError(f"{source}: echo times are {listed}, every one must be above 0")
    if any(time > 0.5 for time in times):
        raise InputError(f"{source}: echo times are {listed}, which are milliseconds; needed seconds")


def same_time(a: float, b: float) -> bool:
    """Whether two echo times [s] are equal as far as files round them: to 10 microseconds."""
    return abs(a - b) <= 1e-5


def field_strength(value: float, source: str) -> None:
    """Refuse a field strength that cannot be tesla."""
    if not 0.05 <= value <= 25:
        raise InputError(f"{source}: field strength is {value:g}, needed tesla, such as 3")


def finite(data: np.ndarray, name: str) -> None:
    """Refuse values that are not finite."""
    bad = data.size - int(np.isfinite(data).sum())
    if bad:
        raise InputError(f"{name} holds {bad} values that are not finite numbers; needed a number in every voxel")


def affine(matrix: np.ndarray, name: str) -> None:
    """Refuse a matrix that does not place voxels in space."""
    steps = matrix[:3, :3]
    if not np.isfinite(matrix).all():
        raise InputError(f"{name}: the affine holds values that are not finite")
    lengths = np.linalg.norm(steps, axis=0)
    if not (lengths > 1e-6).all() or abs(np.linalg.det(steps / np.maximum(lengths, 1e-6))) < 1e-3:
        raise InputError(f"{name}: the affine is singular, so it gives no voxel size and no direction of B0")


def same_grid(
    name: str,
    shape: Sequence[int],
    matrix: np.ndarray,
    like_name: str,
    like_shape: Sequence[int],
    like: np.ndarray,
) -> None:
    """Refuse an image whose voxels are not those of another one.

    Args:
        name: Of the image in question.
        shape: Its grid (x, y, z).
        matrix: Its affine [mm].
        like_name: Of the image it must agree with.
        like_shape: That one's grid.
        like: That one's affine [mm].
    """
    if tuple(shape[:3]) != tuple(like_shape[:3]):
        raise InputError(
            f"{name} has the grid {tuple(shape[:3])}, {like_name} {tuple(like_shape[:3])}: they must be equal"
        )
    # both matrices in voxels of the other image, where a difference means the same in every direction
    difference = np.linalg.solve(like[:3, :3], (matrix - like)[:3, :])
    if np.abs(difference).max() > GRID_TOLERANCE:
        axes, like_axes = orientation(matrix), orientation(like)
        how = (
            f"its axes point to {axes}, those of the other to {like_axes}"
            if axes != like_axes
            else f"its affine differs by up to {np.abs(difference).max():.3g} voxels"
        )
        raise InputError(f"{name} does not lie on the grid of {like_name}: {how}; resample it first")


def orientation(matrix: np.ndarray) -> str:
    """Where x, y and z point, nearest first, as letters such as RAS."""
    import nibabel

    return "".join(nibabel.orientations.aff2axcodes(matrix))
