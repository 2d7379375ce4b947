"""Scans of one head in several positions: from the frame of each into that of the first."""

import importlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from chimap.arrays import Mask, Shape, Triple, Volume
from chimap.errors import InputError
from chimap.inversion.frame import Frame, into, sampled
from chimap.io import space


@dataclass(frozen=True)
class Position:
    """One scan of a head.

    Attributes:
        local_field: [ppm], shape (x, y, z).
        mask: Where it is valid, same shape.
        affine: Voxel index to scanner coordinates [mm], 4 x 4.
        b0_direction: Unit vector in this scan's voxel axes.
        to_common: Scanner coordinates of this scan [mm] to those of a space in which the head lies still, a rigid
            motion, 4 x 4.
        magnitude: Same shape, any unit, or None.
    """

    local_field: Volume
    mask: Mask
    affine: np.ndarray
    b0_direction: Triple
    to_common: np.ndarray
    magnitude: Volume | None = None


def in_first_frame(positions: Sequence[Position]) -> list[Position]:
    """All scans on the grid of the first, with B0 as it lay in the head.

    The field is a scalar: it is resampled by cubic splines, and only the direction of B0 turns. Outside the mask it
    goes on with its nearest value, so that splines do not mix in zeros.
    """
    first = positions[0]
    x, y, z = first.mask.shape
    return [first, *(_moved(position, first, (x, y, z)) for position in positions[1:])]


def _moved(position: Position, first: Position, shape: Shape) -> Position:
    between = np.linalg.inv(position.affine) @ np.linalg.inv(position.to_common) @ first.to_common @ first.affine
    b0 = turned_b0(position, first)
    a, b, c = position.mask.shape
    frame = Frame(between[:3, :3], between[:3, 3], shape, space.voxel_size(first.affine), b0, (a, b, c))
    if np.abs(between - np.eye(4)).max() < 1e-6 and position.mask.shape == first.mask.shape:
        moved = position
    else:
        field, mask = into(position.local_field, position.mask, frame)
        mask &= _within(between, shape, position.mask.shape).to(mask.device)
        magnitude = position.magnitude
        if magnitude is not None:
            magnitude = sampled(magnitude, frame.matrix, frame.offset, shape, order=1)
        moved = replace(position, local_field=field * mask, mask=mask, magnitude=magnitude)
    return replace(moved, affine=first.affine, b0_direction=b0, to_common=first.to_common)


def turned_b0(position: Position, first: Position) -> Triple:
    """Direction of a scan's B0 in the voxel axes of the first."""
    turn = np.linalg.inv(first.to_common)[:3, :3] @ position.to_common[:3, :3]
    x, y, z = _axes(first.affine).T @ turn @ _axes(position.affine) @ np.asarray(position.b0_direction)
    norm = math.sqrt(x * x + y * y + z * z)
    return float(x) / norm, float(y) / norm, float(z) / norm


def overlap(position: Position, first: Position) -> float:
    """Dice coefficient of the masks of a scan and of the first, both in the frame of the first."""
    x, y, z = first.mask.shape
    between = np.linalg.inv(position.affine) @ np.linalg.inv(position.to_common) @ first.to_common @ first.affine
    moved = sampled(position.mask.float(), between[:3, :3], between[:3, 3], (x, y, z), order=1) > 0.5
    moved &= _within(between, (x, y, z), position.mask.shape).to(moved.device)
    return float(2 * (moved & first.mask).sum() / (moved.sum() + first.mask.sum()))


def rigid(matrix: np.ndarray, name: str) -> np.ndarray:
    """The matrix, with a rotation that is one to the last digit.

    Raises:
        InputError: It is not 4 x 4, or no rigid motion.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise InputError(f"{name} holds no 4 x 4 matrix with 0 0 0 1 as its last row")
    left, stretch, right = np.linalg.svd(matrix[:3, :3])
    if np.abs(stretch - 1).max() > 0.01 or np.linalg.det(matrix[:3, :3]) < 0:
        raise InputError(f"{name} is no rigid motion: it stretches or mirrors (factors {np.round(stretch, 3)})")
    whole = matrix.copy()
    whole[:3, :3] = left @ right
    return whole


def register(position: Position, first: Position) -> np.ndarray:
    """The rigid motion [mm] from a scan to the first, by their magnitudes, 4 x 4.

    Coarse turns up to 60 degrees are compared by correlation, and the best few refined; mutual information then
    decides.

    Raises:
        InputError: A magnitude is missing, or SimpleITK is.

    References:
        Mattes et al. 2003, doi:10.1109/TMI.2003.809072.
    """
    try:
        sitk: Any = importlib.import_module("SimpleITK")
    except ImportError:
        raise InputError("registration needs SimpleITK: pip install 'chimap[registration]'") from None
    if position.magnitude is None or first.magnitude is None:
        raise InputError("registration needs the magnitude of every scan")
    fixed, moving = _image(sitk, first.magnitude, first.affine), _image(sitk, position.magnitude, position.affine)
    centres = [_centre(one.mask, one.affine) for one in (first, position)]
    start = sitk.Euler3DTransform()
    start.SetCenter(tuple(centres[0]))
    start.SetTranslation(tuple(centres[1] - centres[0]))

    coarse, finer = 8.0, (4.0, 2.0)

    def method(spacing: float) -> Any:
        found = sitk.ImageRegistrationMethod()
        # few voxels fill no joint histogram; many stand the shading of the coils better in one
        if spacing > finer[-1]:
            found.SetMetricAsCorrelation()
        else:
            found.SetMetricAsMattesMutualInformation(32)
        found.SetInterpolator(sitk.sitkLinear)
        found.SetMetricSamplingStrategy(found.NONE)
        found.SetOptimizerAsRegularStepGradientDescent(
            learningRate=spacing,
            minStep=spacing / 200,
            numberOfIterations=200,
            relaxationFactor=0.7,
            gradientMagnitudeTolerance=1e-9,
        )
        found.SetOptimizerScalesFromPhysicalShift()
        return found

    def refined(transform: Any, spacing: float) -> tuple[float, Any]:
        search, moved = method(spacing), sitk.Euler3DTransform(transform)
        search.SetInitialTransform(moved, inPlace=True)
        search.Execute(_coarser(sitk, fixed, spacing), _coarser(sitk, moving, spacing))
        return search.GetMetricValue(), moved

    few = _coarser(sitk, fixed, coarse), _coarser(sitk, moving, coarse)
    tried = []
    steps = [math.radians(angle) for angle in range(-60, 61, 20)]
    for x, y, z in itertools.product(steps, repeat=3):
        candidate = sitk.Euler3DTransform(start)
        candidate.SetRotation(x, y, z)
        look = method(coarse)
        look.SetInitialTransform(candidate)
        tried.append((look.MetricEvaluate(*few), candidate))
    tried.sort(key=lambda one: one[0])
    best = min((refined(candidate, coarse) for _, candidate in tried[:4]), key=lambda one: one[0])
    for spacing in finer:
        best = refined(best[1], spacing)
    # SimpleITK maps points of the fixed image to the moving one, in (left, back, up)
    euler = best[1]
    turn, centre = np.asarray(euler.GetMatrix()).reshape(3, 3), np.asarray(euler.GetCenter())
    to_moving = np.eye(4)
    to_moving[:3, :3] = turn
    to_moving[:3, 3] = np.asarray(euler.GetTranslation()) + centre - turn @ centre
    return _FLIP @ np.linalg.inv(to_moving) @ _FLIP


_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def _image(sitk: Any, volume: Volume, affine: np.ndarray) -> Any:
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.cpu().numpy().T))
    flipped = _FLIP @ affine
    image.SetOrigin(tuple(flipped[:3, 3]))
    image.SetSpacing(space.voxel_size(affine))
    image.SetDirection(tuple((_FLIP[:3, :3] @ _axes(affine)).ravel()))
    return image


def _coarser(sitk: Any, image: Any, spacing: float) -> Any:
    """The image smoothed and with voxels of `spacing` [mm], where its own are smaller."""
    factors = [max(1, round(spacing / size)) for size in image.GetSpacing()]
    if max(factors) == 1:
        return image
    widths = [factor * size / 2 for factor, size in zip(factors, image.GetSpacing(), strict=True)]
    return sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, widths), factors)


def _centre(mask: Mask, affine: np.ndarray) -> np.ndarray:
    """Middle of a mask in scanner coordinates (left, back, up) [mm]."""
    middle = mask.nonzero().double().mean(dim=0).cpu().numpy()
    return (_FLIP @ affine @ np.append(middle, 1))[:3]


def _axes(affine: np.ndarray) -> np.ndarray:
    """Directions of the voxel axes, columns, made orthonormal by the least change."""
    steps = np.asarray(affine, dtype=np.float64)[:3, :3]
    left, _, right = np.linalg.svd(steps / np.linalg.norm(steps, axis=0))
    return left @ right


def _within(between: np.ndarray, shape: Shape, other: Sequence[int]) -> Mask:
    """Which voxels of `shape` lie within another grid, through the matrix that leads there."""
    axes = [torch.arange(n, dtype=torch.float64) for n in shape]
    voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    there = voxels @ torch.from_numpy(between[:3, :3]).T + torch.from_numpy(between[:3, 3])
    size = torch.tensor(list(other), dtype=torch.float64)
    return ((there >= -0.5) & (there <= size - 0.5)).all(dim=-1)
