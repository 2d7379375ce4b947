"""What the echoes have in common: the phase at echo time zero, and the field."""

import math

import torch
from torch import Tensor

from chimap.arrays import Echoes, Mask, Triple, Volume
from chimap.errors import InputError
from chimap.fields.tree import TURN, phase_deviation, unwrap_volume, wrap
from chimap.physics.units import radians_per_ppm


def check_echoes(
    phase: Echoes, magnitude: Echoes | None, mask: Mask, echo_times: tuple[float, ...], what: str = "phase"
) -> None:
    """Refuse echoes, mask and echo times that do not belong together.

    Raises:
        InputError: Says which shapes came.
    """
    if phase.ndim != 4:
        raise InputError(f"{what} has shape {tuple(phase.shape)}, needed (echo, x, y, z)")
    if len(echo_times) != len(phase):
        raise InputError(f"{len(echo_times)} echo times came with {len(phase)} echoes of {what}")
    if magnitude is not None and magnitude.shape != phase.shape:
        raise InputError(f"magnitude has shape {tuple(magnitude.shape)}, {what} {tuple(phase.shape)}: not equal")
    if mask.shape != phase.shape[1:]:
        raise InputError(f"the mask has shape {tuple(mask.shape)}, an echo {tuple(phase.shape[1:])}: not equal")
    if not mask.any():
        raise InputError("the mask is empty")
    times = (0.0, *echo_times)
    if not all(later > earlier for earlier, later in zip(times, times[1:], strict=False)):
        raise InputError(f"echo times are {', '.join(f'{time:g}' for time in echo_times)}: above 0 and ascending")


def phase_offset(
    phase: Echoes,
    magnitude: Echoes | None,
    mask: Mask,
    echo_times: tuple[float, ...],
    voxel_size: Triple,
    *,
    smoothing: float = 5.0,
) -> Volume:
    """Smooth phase that all echoes share: what coils and receiver add, which no field explains.

    The first echo is unwrapped in space; the second, less what the field has turned it by until then, is the
    offset times a factor, whatever the field is. That is smoothed as a complex number.

    Args:
        phase: Wrapped [rad], shape (echo, x, y, z).
        magnitude: Same shape, or None.
        mask: Where the phase can be trusted.
        echo_times: [s], ascending.
        voxel_size: [mm].
        smoothing: Standard deviation of the Gaussian [mm].

    Returns:
        [rad], shape (x, y, z), continuous in the mask and not wrapped, zero outside; zero for one echo.

    References:
        MCPC-3D-S: Eckstein et al. 2018, doi:10.1002/mrm.26963.
    """
    check_echoes(phase, magnitude, mask, echo_times)
    if len(phase) == 1:
        return torch.zeros_like(phase[0])
    deviation = phase_deviation(phase, magnitude, mask)
    first = unwrap_volume(phase[0], deviation[0], mask, voxel_size)
    return offset_from_first(first, phase, deviation, mask, echo_times, voxel_size, smoothing=smoothing)


def offset_from_first(
    first: Volume,
    phase: Echoes,
    deviation: Echoes,
    mask: Mask,
    echo_times: tuple[float, ...],
    voxel_size: Triple,
    *,
    smoothing: float,
) -> Volume:
    """Offset [rad] given the first echo unwrapped, zero outside the mask.

    With ratio = TE2 / TE1, second - ratio * first = (1 - ratio) * offset up to whole turns.

    Some pairs of constants, one added to the offset and one to the field, leave two echoes as they are. Of
    those that also suit the later echoes, the pair with the median field closest to 0 is taken: evenly spaced
    echoes cannot tell.
    """
    ratio = echo_times[1] / echo_times[0]
    scaled = phase[1] - ratio * first
    precision = torch.where(mask, 1 / (deviation[1].square() + (ratio * deviation[0]).square()), 0.0)
    smooth = _smooth_phase(scaled, precision, voxel_size, smoothing)
    offset = torch.where(mask, smooth / (1 - ratio), 0.0)

    places = torch.nonzero(mask.flatten())[:, 0]
    places = places[:: max(len(places) // 100_000, 1)]  # enough voxels for two constants
    flat = [echo.flatten()[places] for echo in (offset, first, *phase[1:])]
    weight = [1 / echo.flatten()[places].square() for echo in deviation]
    field, total = (flat[1] - flat[0]) * weight[0] * echo_times[0], weight[0] * echo_times[0] ** 2
    turned = flat[0] + field / total * echo_times[1]
    second = turned + wrap(flat[2] - turned) - flat[0]
    field += second * weight[1] * echo_times[1]
    field /= total + weight[1] * echo_times[1] ** 2
    later = []
    for echo, weights, time in zip(flat[3:], weight[2:], echo_times[2:], strict=True):
        later.append(float(torch.polar(weights, echo - flat[0] - field * time).sum().angle()))
    middle = float(field.median())
    choices = []
    for turns in range(-6, 7):  # of the second echo
        constant = TURN * turns / (ratio - 1)
        shift = -constant / echo_times[0]
        misfit = sum(
            abs(math.remainder(angle - constant - shift * time, TURN))
            for angle, time in zip(later, echo_times[2:], strict=True)
        )
        choices.append((misfit, abs(middle + shift), constant))
    best = min(choices)[0]
    _, _, constant = min(
        (choice for choice in choices if choice[0] <= best + 0.3 * len(later)), key=lambda choice: choice[1]
    )
    return torch.where(mask, offset + constant, 0.0)


def _smooth_phase(angle: Volume, precision: Volume, voxel_size: Triple, smoothing: float) -> Volume:
    """Angle of precision * exp(i angle), smoothed and continuous where there is precision.

    It is smoothed and unwrapped on a coarser grid and interpolated from there.
    """
    steps = [max(round(0.6 * smoothing / size), 1) for size in voxel_size]
    coarse_size = (steps[0] * voxel_size[0], steps[1] * voxel_size[1], steps[2] * voxel_size[2])
    parts = torch.stack([precision * torch.cos(angle), precision * torch.sin(angle), precision])
    padding = [n for size, step in zip(angle.shape[::-1], steps[::-1], strict=True) for n in (0, -size % step)]
    parts = torch.nn.functional.pad(parts, padding)
    parts = torch.nn.functional.avg_pool3d(parts, tuple(steps))
    for axis, size in enumerate(coarse_size):
        parts = _gaussian(parts, axis + 1, smoothing / size)
    known = parts[2] > 1e-4 * parts[2].max()
    wrapped = torch.atan2(parts[1], parts[0])
    smooth = unwrap_volume(wrapped, torch.full_like(wrapped, 0.1), known, coarse_size)
    smooth = _fill(smooth, known)
    # this interpolation places the coarse voxels' centres where the means belong
    wide = [n * step for n, step in zip(smooth.shape, steps, strict=True)]
    fine = torch.nn.functional.interpolate(smooth[None, None], size=wide, mode="trilinear", align_corners=False)
    x, y, z = angle.shape
    return fine[0, 0, :x, :y, :z]


def _fill(volume: Volume, known: Mask) -> Volume:
    """Give unknown voxels the mean of their known neighbours, twice: interpolation looks there."""
    for _ in range(2):
        sums, weights = volume * known, known.float()
        for axis in (-3, -2, -1):
            sums, weights = _gaussian(sums, axis, 0.7), _gaussian(weights, axis, 0.7)
        volume = torch.where(known, volume, sums / weights.clamp_min(1e-6))
        known = known | (weights > 1e-3)
    return volume


def _gaussian(volume: Tensor, axis: int, deviation: float) -> Tensor:
    """Convolve along one axis with a Gaussian, in voxels; zero beyond the border."""
    reach = max(math.ceil(3 * deviation), 1)
    result = torch.zeros_like(volume)
    n = volume.shape[axis]
    for offset in range(-min(reach, n - 1), min(reach, n - 1) + 1):
        weight = math.exp(-(offset**2) / (2 * deviation**2))
        length = n - abs(offset)
        target, source = max(offset, 0), max(-offset, 0)
        result.narrow(axis, target, length).add_(volume.narrow(axis, source, length), alpha=weight)
    return result


def combine_echoes(
    unwrapped: Echoes,
    magnitude: Echoes | None,
    mask: Mask,
    echo_times: tuple[float, ...],
    field_strength: float,
) -> tuple[Volume, Volume]:
    r"""Field of all echoes: minimise sum_e w_e (phase_e - 2 pi gamma_bar B0 TE_e field)^2 in every voxel.

    The weights w_e are magnitude^2, the inverse variance of the phase. The line goes through the origin, so a
    phase offset has to be removed before (`phase_offset`).

    An echo as a whole may be off by turns, which unwrapping in space cannot know. The echoes' medians over
    the mask decide: among up to three turns of the first echo, each with the turns of the others that suit it
    best, the one is taken whose medians lie best on a line through the origin; among equally good ones, the
    one with the smallest field. Evenly spaced echoes whose first is a multiple of the spacing cannot tell
    better, and one echo cannot either: the field then is right up to a constant, with its median closest to
    0.

    Args:
        unwrapped: [rad], shape (echo, x, y, z).
        magnitude: Same shape, any unit; None weighs all echoes and voxels alike.
        mask: Where the phase is valid.
        echo_times: [s].
        field_strength: [T].

    Returns:
        Total field [ppm], zero outside the mask, and its standard deviation [ppm] per noise of the magnitude
        image (without magnitude: per phase noise [rad]), infinite outside and where nothing was measured.

    References:
        Liu et al. 2013, doi:10.1002/mrm.24272; weights: Gilbert et al. 2012,
        doi:10.1016/j.neuroimage.2012.03.020.
    """
    check_echoes(unwrapped, magnitude, mask, echo_times, "unwrapped phase")
    scale = [radians_per_ppm(time, field_strength) for time in echo_times]
    weight = torch.ones_like(unwrapped) if magnitude is None else magnitude.square()
    medians = [float(echo[mask].median()) for echo in unwrapped]
    turns = _common_turns(medians, [float(echo[mask].mean()) for echo in weight], echo_times)
    moment = torch.zeros_like(unwrapped[0])
    total = torch.zeros_like(unwrapped[0])
    for echo, weights, factor, turn in zip(unwrapped, weight, scale, turns, strict=True):
        moment += weights * (echo + TURN * turn) * factor
        total += weights * factor**2
    plain = sum(echo + TURN * turn for echo, turn in zip(unwrapped, turns, strict=True)) / sum(scale)
    measured = total > 0  # elsewhere the plain mean is as good as anything, and the infinite noise says so
    field = torch.where(measured, moment / total.clamp_min(1e-30), plain)
    noise = torch.where(mask & measured, total.clamp_min(1e-30).rsqrt(), torch.inf)
    return torch.where(mask, field, 0.0), noise


def _common_turns(medians: list[float], weights: list[float], echo_times: tuple[float, ...]) -> list[int]:
    """Turns of each whole echo that bring the medians onto a line through the origin."""
    found = []
    for extra in range(-3, 4):
        turns, moment, total = [], 0.0, 0.0
        for median, weight, time in zip(medians, weights, echo_times, strict=True):
            expected = moment / total * time if turns else median + TURN * extra
            turns.append(round((expected - median) / TURN))
            moment += weight * time * (median + TURN * turns[-1])
            total += weight * time**2
        slope = moment / total
        misfit = sum(
            weight * (median + TURN * turn - slope * time) ** 2
            for median, weight, time, turn in zip(medians, weights, echo_times, turns, strict=True)
        )
        found.append((misfit / sum(weights), abs(slope), turns))
    best = min(found)[0]
    return min((choice for choice in found if choice[0] <= best + 0.1), key=lambda choice: choice[1])[2]
