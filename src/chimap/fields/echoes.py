"""What the echoes share that is no field: the phase at echo time zero."""

import math

import torch
from torch import Tensor

from chimap.arrays import Echoes, Mask, Triple, Volume
from chimap.errors import InputError
from chimap.fields.tree import phase_deviation, unwrap_volume
from chimap.linalg import block_mean, from_blocks
from chimap.physics.phase import TURN, wrap
from chimap.physics.shim import centred_positions


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


def readout_phase(
    phase: Echoes,
    magnitude: Echoes | None,
    mask: Mask,
    echo_times: tuple[float, ...],
    voxel_size: Triple,
    *,
    least: float = 0.3,
    explained: float = 0.7,
) -> Volume | None:
    """What a bipolar read-out adds to the even echoes' phase and takes from the odd ones'; None where it does neither.

    Gradient delays and eddy currents leave a phase that changes its sign with the read-out's direction, mostly a ramp
    along it. With evenly spaced echoes the second difference over them is four times this phase, whatever field and
    offset are. A constant part is the same as a constant field, and cannot be told from it.

    Args:
        phase: Wrapped [rad], shape (echo, x, y, z).
        magnitude: Same shape, or None.
        mask: Where the phase can be trusted.
        echo_times: [s], ascending.
        voxel_size: [mm].
        least: A ramp is believed from this change over the mask on [rad], peak to peak,
        explained: and where a polynomial of second order explains this share of the second difference's variance.

    Returns:
        [rad], (x, y, z), to be added to the phase of the second, fourth, ... echo and subtracted from that of the
        others; None with fewer than three echoes, uneven echo times, or nothing to correct.

    References:
        The model: Eckstein et al. 2018, doi:10.1002/mrm.26963.
    """
    check_echoes(phase, magnitude, mask, echo_times)
    steps = [later - earlier for earlier, later in zip(echo_times, echo_times[1:], strict=False)]
    if len(steps) < 2 or max(steps) > 1.02 * min(steps):
        return None
    parts = torch.zeros(2, *phase.shape[1:], dtype=phase.dtype, device=phase.device)
    for first in range(len(phase) - 2):
        strength = torch.ones_like(phase[0])
        if magnitude is not None:
            a, b, c = magnitude[first : first + 3]
            strength = a * b * b * c
        # 2 phase(e+1) - phase(e) - phase(e+2): -4 times what the middle echo has, of the other sign for every other e
        angle = (-1) ** first * (2 * phase[first + 1] - phase[first] - phase[first + 2])
        parts += strength * torch.stack([angle.cos(), angle.sin()])
    strength = torch.hypot(*parts) * mask
    smooth = _smooth_phase(torch.atan2(parts[1], parts[0]), strength, voxel_size, 5.0)
    terms = [torch.ones_like(smooth), *centred_positions(smooth, voxel_size)]
    terms = [term.expand(smooth.shape) for term in terms]
    terms += [terms[i] * terms[j] for i in range(1, 4) for j in range(i, 4)]
    columns = torch.stack([term[mask] for term in terms], dim=1).double()
    values, weight = smooth[mask].double(), strength[mask].double().sqrt()
    weight = weight / weight.max()
    found = torch.linalg.lstsq(columns * weight[:, None], (values * weight)[:, None]).solution[:, 0]
    fitted = columns @ found
    varied = (weight * (values - (weight * values).sum() / weight.sum()) ** 2).sum()
    left = (weight * (values - fitted) ** 2).sum()
    ramp = found[1:4].to(smooth)
    extent = sum(
        abs(float(slope)) * float(term[mask].max() - term[mask].min())
        for slope, term in zip(ramp, terms[1:4], strict=True)
    )
    if extent / 4 < least or float(left) > (1 - explained) * float(varied):
        return None
    polynomial = torch.zeros_like(smooth)
    for factor, term in zip(found.tolist(), terms, strict=True):
        polynomial += factor * term
    return -polynomial / 4


def without_readout_phase(phase: Echoes, found: Volume) -> Echoes:
    """Wrapped phase [rad] (echo, x, y, z) without a read-out phase, as if all echoes had been read one way."""
    signs = phase.new_tensor([1.0 if echo % 2 else -1.0 for echo in range(len(phase))]).reshape(-1, 1, 1, 1)
    return wrap(phase + signs * found)


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
    i, j, k = (max(round(0.6 * smoothing / size), 1) for size in voxel_size)
    steps, coarse_size = (i, j, k), (i * voxel_size[0], j * voxel_size[1], k * voxel_size[2])
    parts = torch.stack([precision * torch.cos(angle), precision * torch.sin(angle), precision])
    parts = block_mean(parts, steps)
    for axis, size in enumerate(coarse_size):
        parts = _gaussian(parts, axis + 1, smoothing / size)
    known = parts[2] > 1e-4 * parts[2].max()
    wrapped = torch.atan2(parts[1], parts[0])
    smooth = unwrap_volume(wrapped, torch.full_like(wrapped, 0.1), known, coarse_size)
    smooth = _fill(smooth, known)
    return from_blocks(smooth, steps, angle.shape)


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
