"""Phase unwrapping: the phase of every echo without its jumps by whole turns."""

import numpy as np
import torch
from torch import Tensor

from chimap.arrays import Echoes, Mask, Triple, Volume
from chimap.fields.echoes import check_echoes, offset_from_first
from chimap.fields.tree import phase_deviation, unwrap_volume
from chimap.linalg import bounding_box
from chimap.physics.phase import TURN

NOISY = 0.33
"""Phase noise [rad] from which on a voxel's neighbours are asked, too: a wrap then is a matter of chance."""
ROUGHNESS = 0.5
"""How far the field of a voxel lies from its neighbours' mean, over how far they lie from each other."""


def unwrap_quality_guided(
    phase: Echoes,
    magnitude: Echoes | None,
    mask: Mask,
    echo_times: tuple[float, ...],
    voxel_size: Triple,
    *,
    smoothing: float = 5.0,
) -> Echoes:
    """Unwrap the first echo in space, along its most reliable edges, and the others in time.

    Every later echo is put at the turn that is closest to what all echoes before it predict: a line through
    the phase offset, fitted with the inverse variance of the phase. Where an echo is noisy, its turn is
    chosen once more, from all other echoes and the field of the 26 voxels around.

    Args:
        phase: Wrapped [rad], shape (echo, x, y, z).
        magnitude: Same shape, any unit; None takes the noise from the phase.
        mask: Where to unwrap. Parts that do not touch are brought to one level as well as can be.
        echo_times: [s], ascending.
        voxel_size: [mm].
        smoothing: Of the offset that the echoes share [mm]; it only serves the prediction and stays in.

    Returns:
        [rad], whole turns away from `phase` in the mask, zero outside.

    Raises:
        InputError: The shapes do not belong together, or the mask is empty.

    References:
        Dymerska et al. 2021, doi:10.1002/mrm.28563, for region growing in the first echo, the others in time.
    """
    check_echoes(phase, magnitude, mask, echo_times)
    box = (slice(None), *bounding_box(mask, (1, 1, 1)))
    result = torch.zeros_like(phase)
    phase, mask = phase[box], mask[box[1:]]
    deviation = phase_deviation(phase, None if magnitude is None else magnitude[box], mask)
    first = unwrap_volume(phase[0], deviation[0], mask, voxel_size)
    if len(phase) == 1:
        offset = torch.zeros_like(first)
    else:
        offset = offset_from_first(first, phase, deviation, mask, echo_times, voxel_size, smoothing=smoothing)
    inside = torch.empty(len(phase), int(mask.sum()), dtype=phase.dtype, device=phase.device)
    for echo in range(len(phase)):
        inside[echo] = phase[echo][mask]
    precision = torch.stack([echo[mask] for echo in deviation]).square_().reciprocal_()
    start = first[mask]
    unwrapped = _unwrap_in_time(inside, start, precision, offset[mask], mask, echo_times)
    whole = torch.zeros_like(phase)
    whole[:, mask] = unwrapped
    result[box] = whole
    return result


def _unwrap_in_time(
    phase: Tensor, first: Tensor, precision: Tensor, offset: Tensor, mask: Mask, echo_times: tuple[float, ...]
) -> Tensor:
    """Unwrap (echo, voxel) given its first echo unwrapped and the inverse variance of each phase."""
    bare = phase - offset
    turned, moment, total = _follow_line(bare, first - offset, precision, echo_times)
    noisy = torch.nonzero((precision < NOISY**-2).any(dim=0))[:, 0]
    if len(noisy) > 0:
        around, certainty = _field_around(moment / total, total, mask)
        around, certainty = around[noisy], certainty[noisy]
        start = turned[0, noisy]
        start = torch.where(precision[0, noisy] < NOISY**-2, around * echo_times[0], start)
        again = _follow_line(bare[:, noisy], start, precision[:, noisy], echo_times, certainty * around, certainty)
        turned[:, noisy] = again[0]
    # whole turns are counted and added to what was measured, so that rounding errors do not add up
    return phase + TURN * torch.round((turned - bare) / TURN)


def _follow_line(
    phase: Tensor,
    first: Tensor,
    precision: Tensor,
    echo_times: tuple[float, ...],
    moment: Tensor | float = 0.0,
    total: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Put every echo at the turn that is closest to the line through the origin fitted to the echoes before.

    `first` is where the first echo is expected. `moment` / `total` is a field [rad/s] known before, `total`
    its inverse variance. Returns the echoes and both sums with all echoes in them.
    """
    turned = torch.empty_like(phase)
    for echo, time in enumerate(echo_times):
        expected = first if echo == 0 else moment / total * time
        turned[echo] = phase[echo] + TURN * torch.round((expected - phase[echo]) / TURN)
        moment = moment + precision[echo] * time * turned[echo]
        total = total + precision[echo] * time**2
    return turned, torch.as_tensor(moment), torch.as_tensor(total)


def _field_around(field: Tensor, precision: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    """Mean field of the 26 voxels around each of the mask, and its inverse variance as a guess at the
    voxel's.

    The variance is that of the mean, by noise, and how much the field differs among those voxels.
    """
    totals = []
    for values in (precision, precision * field, precision * field.square()):
        volume = torch.zeros(mask.shape, dtype=field.dtype, device=field.device)
        volume[mask] = values
        totals.append(_sum_of_27(volume)[mask] - values)
    weight = totals[0].clamp_min(1e-20)
    mean = totals[1] / weight
    spread = (totals[2] / weight - mean.square()).clamp_min(0)
    certainty = 1 / (ROUGHNESS**2 * spread + 1 / weight)
    alone = totals[0] <= 1e-6 * precision  # no neighbour in the mask
    return torch.where(alone, field, mean), torch.where(alone, 0.0, certainty)


def _sum_of_27(volume: Volume) -> Volume:
    for axis in range(3):
        n = volume.shape[axis]
        total = volume.clone()
        total.narrow(axis, 0, n - 1).add_(volume.narrow(axis, 1, n - 1))
        total.narrow(axis, 1, n - 1).add_(volume.narrow(axis, 0, n - 1))
        volume = total
    return volume


def unwrap_laplacian(
    phase: Echoes, magnitude: Echoes | None, mask: Mask, echo_times: tuple[float, ...], voxel_size: Triple
) -> Echoes:
    """Solve laplacian(u) = cos(phase) laplacian(sin(phase)) - sin(phase) laplacian(cos(phase)) for u.

    The right side is the Laplacian of the true phase, whatever its wraps. The cosine transform takes the
    Laplacian exactly and mirrors the volume at its faces, which pads it without a jump. The result is smooth
    but not the measured phase up to whole turns: where the phase cannot be followed from voxel to voxel, the
    error spreads as a harmonic field, much of which background removal takes out.

    Args:
        phase: Wrapped [rad], shape (echo, x, y, z).
        magnitude: Not used.
        mask: The constant is chosen so that the result agrees with `phase` on average here, up to whole
            turns; the equation is solved on the whole grid.
        echo_times: [s]; not used beyond their number: each echo is solved alone.
        voxel_size: [mm].

    Returns:
        [rad], same shape, zero outside the mask.

    Raises:
        InputError: The shapes do not belong together, or the mask is empty.

    References:
        Schofield and Zhu 2003, doi:10.1364/OL.28.001194.
    """
    from scipy.fft import dctn, idctn

    check_echoes(phase, magnitude, mask, echo_times)
    wave = np.zeros(mask.shape, dtype=np.float32)
    for axis, (n, size) in enumerate(zip(mask.shape, voxel_size, strict=True)):
        view = [1, 1, 1]
        view[axis] = -1
        wave += np.square(np.pi * np.arange(n) / (n * size)).astype(np.float32).reshape(view)
    inverse = 1 / np.where(wave > 0, wave, np.inf)

    def filtered(volume: np.ndarray, factor: np.ndarray) -> np.ndarray:
        return np.asarray(idctn(dctn(volume, workers=-1) * factor, workers=-1))

    result = torch.zeros_like(phase)
    for number, echo in enumerate(phase):
        sine, cosine = np.sin(echo.numpy(force=True)), np.cos(echo.numpy(force=True))
        source = cosine * filtered(sine, wave) - sine * filtered(cosine, wave)
        found = torch.from_numpy(filtered(source, inverse)).to(phase.device)
        error = echo[mask] - found[mask]
        constant = torch.atan2(error.sin().mean(), error.cos().mean())
        result[number] = torch.where(mask, found + constant, 0.0)
    return result
