"""How strongly to regularise, found from the field itself."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from chimap.arrays import Mask, Triple, Volume
from chimap.errors import InputError
from chimap.linalg import SPACE, along_axis, rfft
from chimap.physics.dipole import DipoleModel, dipole_kernel

Criterion = Literal["discrepancy", "l-curve"]
CRITERIA: tuple[Criterion, ...] = ("discrepancy", "l-curve")

DECADES = 2.0
"""How far around the method's own default lambda is looked for, to both sides."""
NEAR_CONE = 0.02
"""|D| below which a field holds next to nothing of chi."""
LEFT = 0.9
"""Share of the estimated error that is left to the misfit: chi takes some of the error with it."""
SHELLS = 32
"""In which the power near the cone is averaged, from k = 0 to the corner of k-space."""


@dataclass(frozen=True)
class Point:
    """One inversion.

    Attributes:
        regularisation: lambda.
        misfit: Root mean square of D chi - f in the mask [ppm].
        penalty: Of chi, see `penalty_of`.
    """

    regularisation: float
    misfit: float
    penalty: float


@dataclass(frozen=True)
class Choice:
    """A chosen lambda.

    Attributes:
        regularisation: It.
        criterion: How it was chosen.
        misfit: What it leaves of the field [ppm].
        error: Of the field [ppm], which the misfit should equal, or nearly so; None for the L-curve.
        known: Whether the error was given, not estimated.
        points: All inversions that were made, by lambda.
        reached: Whether the criterion was met within the range of lambda.
    """

    regularisation: float
    criterion: Criterion
    misfit: float
    error: float | None
    known: bool
    points: tuple[Point, ...]
    reached: bool

    @property
    def sentence(self) -> str:
        """What was done, for a record."""
        made = f"lambda = {self.regularisation:.3g} was chosen from {len(self.points)} inversions by the "
        low, high = self.points[0].regularisation, self.points[-1].regularisation
        if self.error is None:
            text = f"{made}corner of the L-curve"
            return text if self.reached else f"{text}, which has none from {low:.2g} to {high:.2g}: look at chi"
        source = "given" if self.known else "estimated near the dipole's cone"
        text = (
            f"{made}discrepancy principle: misfit {self.misfit:.3g} ppm, error of the field {self.error:.3g} ppm, "
            f"{source}"
        )
        return (
            text
            if self.reached
            else f"{text}; from {low:.2g} to {high:.2g} no lambda brings them together: look at chi"
        )


def choose(
    invert: Callable[[float], Volume],
    local_field: Volume,
    mask: Mask,
    dipole: DipoleModel,
    *,
    criterion: Criterion,
    around: float,
    penalty: Callable[[Volume], float],
    error: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Choice:
    """Choose lambda for an inversion.

    "discrepancy" finds the largest lambda for which chi explains the field as well as the field is known: the root
    mean square of D chi - f in the mask equals `error`, or `LEFT` of an estimated one, to 2 %. "l-curve" finds the
    corner of log penalty over log misfit, where less regularisation begins to cost much and to explain little: its
    greatest curvature, on a grid of half a decade and then a finer one around the corner.

    Args:
        invert: lambda to chi [ppm].
        local_field: f [ppm], shape (x, y, z).
        mask: Where it is valid.
        dipole: D.
        criterion: One of `CRITERIA`.
        around: A lambda that is usual; others differ from it by a factor of 100 at most.
        penalty: Of chi, as the inversion has it.
        error: SD of the field's error [ppm], noise and all that no chi explains; `error_near_cone` if None.
        progress: Called with (inversion, most inversions).

    Raises:
        InputError: The criterion is not known, or the error is no number above 0.

    References:
        Morozov 1966, doi:10.1016/0041-5553(66)90046-2; Hansen and O'Leary 1993, doi:10.1137/0914086.
    """
    if criterion not in CRITERIA:
        raise InputError(f"regularisation cannot be chosen by {criterion!r}; there are {', '.join(CRITERIA)}")
    if error is not None and not (math.isfinite(error) and error > 0):
        raise InputError(f"the error of the field is {error:g}, needed ppm above 0")
    points: dict[float, Point] = {}

    def at(exponent: float) -> Point:
        if exponent not in points:
            value = around * 10**exponent
            chi = invert(value)
            misfit = float((dipole(chi) - local_field)[mask].square().mean().sqrt())
            points[exponent] = Point(value, misfit, penalty(chi))
            if progress is not None:
                progress(len(points), 16)
        return points[exponent]

    known = False
    if criterion == "l-curve":
        chosen, found, error = *_corner_of(at, around), None
    else:
        known = error is not None
        error = error_near_cone(local_field, mask, dipole.voxel_size, dipole.b0_direction) if error is None else error
        chosen, found = _discrepancy(at, error if known else LEFT * error)
    here = at(chosen)
    ordered = tuple(points[exponent] for exponent in sorted(points))
    return Choice(here.regularisation, criterion, here.misfit, error, known, ordered, found)


def _corner_of(at: Callable[[float], Point], around: float) -> tuple[float, bool]:
    """Exponent of the corner, and whether there is one; that of the usual lambda if not."""
    rough, found = corner([at(float(exponent)) for exponent in np.arange(-DECADES, DECADES + 0.25, 0.5)])
    if not found:
        return 0.0, False
    middle = round(math.log10(rough / around), 3)
    fine = [round(middle + step, 3) for step in (-0.5, -0.3, -0.1, 0.1, 0.3, 0.5)]
    value, finer = corner([at(exponent) for exponent in fine])
    return next((one for one in fine if finer and at(one).regularisation == value), middle), True


def _discrepancy(at: Callable[[float], Point], error: float) -> tuple[float, bool]:
    """Exponent whose misfit is the error, and whether there is one; the usual lambda if the misfit stays larger.

    The misfit falls with lambda only as far as what is cut off at the mask allows, so the search comes from above.
    """
    above, below = None, DECADES
    while at(below).misfit > error:
        above, below = below, below - 0.5
        if below < -DECADES:
            return 0.0, False
    if above is None:
        return below, False
    for _ in range(8):
        middle = (above + below) / 2
        misfit = at(middle).misfit
        if abs(misfit / error - 1) < 0.02:
            return middle, True
        above, below = (middle, below) if misfit > error else (above, middle)
    return below, True


def corner(points: Sequence[Point]) -> tuple[float, bool]:
    """lambda at the greatest curvature of (log misfit, log penalty), and whether the curve turns that way at all.

    References:
        Hansen and O'Leary 1993, doi:10.1137/0914086.
    """
    scale = np.log([point.regularisation for point in points])
    x = np.log([max(point.misfit, 1e-30) for point in points])
    y = np.log([max(point.penalty, 1e-30) for point in points])
    dx, dy = np.gradient(x, scale), np.gradient(y, scale)
    bend = dx * np.gradient(dy, scale) - dy * np.gradient(dx, scale)
    curvature = bend / np.maximum(dx**2 + dy**2, 1e-30) ** 1.5
    # where less regularisation raises the misfit, only what the mask cuts off is being fitted
    curvature[(dx <= 0) | (dy >= 0)] = -np.inf
    curvature[[0, -1]] = -np.inf  # known from one side only
    best = int(np.argmax(curvature))
    return points[best].regularisation, bool(curvature[best] > 0)


def penalty_of(kind: str, mask: Mask, voxel_size: Triple) -> Callable[[Volume], float]:
    """The size of chi that a method holds down, over neighbours that both lie in the mask.

    "chi" is the Euclidean norm [ppm], "gradient" that of the gradient [ppm / mm], and "variation" the sum of the
    gradient's absolute values.
    """

    def steps(chi: Volume) -> list[torch.Tensor]:
        pairs = [(axis, mask.narrow(axis, 1, mask.shape[axis] - 1)) for axis in SPACE]
        both = [(axis, ahead & mask.narrow(axis, 0, mask.shape[axis] - 1)) for axis, ahead in pairs]
        return [chi.diff(dim=axis)[pair] / size for (axis, pair), size in zip(both, voxel_size, strict=True)]

    def penalty(chi: Volume) -> float:
        if kind == "chi":
            return float(chi[mask].norm())
        if kind == "gradient":
            return math.sqrt(sum(float(step.square().sum()) for step in steps(chi)))
        return sum(float(step.abs().sum()) for step in steps(chi))

    return penalty


def error_near_cone(local_field: Volume, mask: Mask, voxel_size: Triple, b0_direction: Triple) -> float:
    """SD of what no chi explains in a field [ppm]: noise, and errors of other origin.

    Where D(k) is zero a field holds nothing of chi, so all that is there is error. Its power is averaged over |D| below
    `NEAR_CONE` in shells of |k|, as errors need not be white, and each shell's mean is taken for the whole shell.
    What the mask cuts off leaks onto the cone as well, so a field that is nearly free of errors looks worse than it is.

    Args:
        local_field: [ppm], shape (x, y, z).
        mask: Where it is valid.
        voxel_size: [mm].
        b0_direction: In voxel axes.
    """
    shape = local_field.shape
    power = rfft(local_field * mask).abs().square()
    kernel = dipole_kernel(shape, voxel_size, b0_direction, half=True, device=local_field.device)
    squared = torch.zeros_like(kernel)
    for axis, (n, size) in enumerate(zip(shape, voxel_size, strict=True)):
        k = torch.fft.fftfreq(n, d=size, device=local_field.device)
        squared = squared + along_axis(k[: n // 2 + 1] if axis == 2 else k, axis).square()
    radius = squared.sqrt()
    twice = torch.full_like(kernel, 2.0)  # the half of k-space that rfft leaves out
    twice[..., 0] = 1
    if shape[2] % 2 == 0:
        twice[..., -1] = 1
    shell = (radius * (SHELLS / radius.max())).long().clamp(max=SHELLS - 1)
    near = (kernel.abs() < NEAR_CONE) & (radius > 0)
    total = 0.0
    for index in range(SHELLS):
        here = shell == index
        some = power[here & near]
        if some.numel() >= 4:
            total += float(some.mean() * twice[here].sum())
    return math.sqrt(total / math.prod(shape) / int(mask.sum()))
