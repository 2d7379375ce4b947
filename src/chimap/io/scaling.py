"""From stored phase values to radians: as the user or the file says, or by a guess that is called one."""

import math
from typing import NamedTuple

import numpy as np

from chimap.errors import InputError

TURN = 2 * math.pi
# Share of voxels within 2 % of either end of the range. Wrapped phase piles up there, few other images do.
WRAPPED_SHARE = 3e-3
# Where the range is one that a vendor uses, less evidence is needed: a head may wrap at few places.
KNOWN_RANGE_SHARE = 2e-4


class Scale(NamedTuple):
    """phase [rad] = (stored - zero) * 2 pi / turn.

    Attributes:
        zero: Stored value of phase 0.
        turn: Stored values in one turn.
        said: How this is known, as a sentence.
        guessed: Whether nothing stated it.
    """

    zero: float
    turn: float
    said: str
    guessed: bool = False


def scale_of(
    values: np.ndarray,
    name: str,
    *,
    phase_range: tuple[float, float] | None = None,
    units: str | None = None,
    stated: Scale | None = None,
) -> Scale:
    """How stored values become radians. The user's word wins, then the file's, then a guess.

    Args:
        values: Stored phase after the file's own slope and intercept, shape (echo, x, y, z).
        name: Of the file, for messages.
        phase_range: Stored values that are one turn, from the user.
        units: "Units" of the BIDS sidecar.
        stated: What a DICOM header says.

    Raises:
        InputError: The values do not fit what was stated, or nothing can be guessed.
    """
    low, high = float(values.min()), float(values.max())
    for echo, volume in enumerate(values, start=1):
        first, last = float(volume.min()), float(volume.max())
        which = name if len(values) == 1 else f"{name}, echo {echo}"
        if first == last:
            raise InputError(f"{which}: phase is {first:g} in every voxel; needed a phase image")
        if last - first < 0.01 * (high - low):
            raise InputError(
                f"{which}: phase runs over {first:g} to {last:g} and over {low:g} to {high:g} in all echoes: "
                "they are not scaled alike"
            )
    if phase_range is not None:
        return _from_user(phase_range, low, high, name)
    if stated is not None:
        _within(stated.zero - stated.turn / 2, stated.zero + stated.turn / 2, low, high, name, stated.said)
        return stated
    if units is not None and units.lower() in ("rad", "radian", "radians"):
        _within(-math.pi, math.pi, low, high, name, "the sidecar says rad")
        return Scale(0.0, TURN, "Phase was taken in radians, as the sidecar says.")
    if units is not None and units.lower() not in ("arbitrary", "a.u.", "au", "1", "n/a", "none", "us"):
        raise InputError(f"{name}: the sidecar says Units {units!r}, needed phase in rad or in arbitrary units")
    return _guess(values, low, high, name)


def to_radians(values: np.ndarray, scale: Scale) -> np.ndarray:
    """Phase [rad] in -pi..pi, float32."""
    phase = ((values - np.float32(scale.zero)) * np.float32(TURN / scale.turn)).astype(np.float32)
    if phase.max() > 1.01 * math.pi:  # only where 0 to 2 pi was recognised
        phase = np.remainder(phase + np.float32(math.pi), np.float32(TURN)) - np.float32(math.pi)
    return phase


def _from_user(phase_range: tuple[float, float], low: float, high: float, name: str) -> Scale:
    first, last = (float(value) for value in phase_range)
    if not (math.isfinite(first) and math.isfinite(last) and first < last):
        raise InputError(f"--phase-range is {first:g} {last:g}, needed a low and a higher value")
    _within(first, last, low, high, name, f"--phase-range is {first:g} {last:g}")
    middle = (first + last) / 2
    said = f"Phase values from {first:g} to {last:g} were taken as one turn, as the user said."
    return Scale(middle, last - first, said)


def _within(first: float, last: float, low: float, high: float, name: str, why: str) -> None:
    slack = 0.01 * (last - first) / 2
    if low < first - slack or high > last + slack:
        raise InputError(
            f"{name}: phase runs from {low:g} to {high:g}, but {why.rstrip('.')}, "
            f"which allows {first:g} to {last:g}; give wrapped phase, or its range by --phase-range LOW HIGH"
        )


def _guess(values: np.ndarray, low: float, high: float, name: str) -> Scale:
    share = _share_at_ends(values, low, high)
    whole = all(bool((volume == np.rint(volume)).all()) for volume in values)
    if share >= KNOWN_RANGE_SHARE:
        if not whole and _reaches(low, high, -math.pi, math.pi):
            return _guessed(0.0, TURN, "values within -pi and pi were taken as radians")
        if not whole and _reaches(low, high, 0.0, TURN):
            return _guessed(0.0, TURN, "values from 0 to 2 pi were taken as radians and wrapped")
        if whole and high <= 4095 and _reaches(low, high, 0.0, 4095.0):
            return _guessed(2048.0, 4096.0, "integers from 0 to 4095 (12 bit) were taken as one turn")
        if whole and high <= 4095 and low >= -4096 and _reaches(low, high, -4096.0, 4095.0):
            return _guessed(0.0, 8192.0, "integers from -4096 to 4095 (Siemens, slope 2) were taken as one turn")
        if _reaches(low, high, -1000 * math.pi, 1000 * math.pi):
            return _guessed(0.0, 1000 * TURN, "values from -3142 to 3142 (GE, Philips) were taken as milliradians")
    if share >= WRAPPED_SHARE:
        turn = f"values from {low:g} to {high:g}, filled to both ends as in wrapped phase, were taken as a turn"
        if abs(low + high) <= 0.01 * (high - low):
            return _guessed(0.0, 2 * max(-low, high), turn)
        return _guessed((low + high) / 2, high - low, turn)
    raise InputError(
        f"{name}: phase runs from {low:g} to {high:g} but does not fill both ends of that range as "
        "wrapped phase does: give the stored values that are one turn with --phase-range LOW HIGH, or "
        "wrapped phase if this one is unwrapped already"
    )


def _guessed(zero: float, turn: float, what: str) -> Scale:
    return Scale(zero, turn, f"Guessed: {what}; state it with --phase-range LOW HIGH.", guessed=True)


def _reaches(low: float, high: float, first: float, last: float) -> bool:
    """Whether a range comes within 2 % of both ends of another, and beyond neither by more than 1 %."""
    slack = 0.02 * (last - first) / 2
    return -slack / 2 <= low - first <= slack and -slack / 2 <= last - high <= slack


def _share_at_ends(values: np.ndarray, low: float, high: float) -> float:
    """Share of voxels within 2 % of the emptier end. Zeros, the background of masked data, do not count."""
    margin = 0.02 * (high - low)
    counted = below = above = 0
    for volume in values:
        measured = volume[volume != 0]
        counted += measured.size
        below += int((measured <= low + margin).sum())
        above += int((measured >= high - margin).sum())
    return min(below, above) / max(counted, 1)
