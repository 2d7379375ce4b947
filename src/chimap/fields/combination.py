"""One field of all echoes, and how far it can be trusted."""

import torch
from torch import Tensor

from chimap.arrays import Echoes, Mask, Volume
from chimap.fields.echoes import check_echoes
from chimap.linalg import bounding_box
from chimap.physics.phase import TURN
from chimap.physics.units import radians_per_ppm

OUTLIER = 5.0
"""From this multiple of the median misfit on, the echoes of a voxel disagree by more than noise."""
CONTRADICTION = 25.0, 0.25
"""From this multiple of the median misfit on, and this share of the signal (1/2 rad), no field explains a voxel."""
FLAT = 0.2
"""Least curvature of the misfit that a step of the nonlinear fit relies on, as a share of that of a perfect echo."""


def weighted_field(
    unwrapped: Echoes,
    magnitude: Echoes | None,
    mask: Mask,
    echo_times: tuple[float, ...],
    field_strength: float,
) -> tuple[Volume, Volume]:
    r"""Field by a weighted line: minimise sum_e w_e (phase_e - 2 pi gamma_bar B0 TE_e field)^2 in every voxel.

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
    levelled, weight = _levelled(unwrapped, magnitude, mask, echo_times)
    return _line(levelled, weight, mask, [radians_per_ppm(time, field_strength) for time in echo_times])


def nonlinear_field(
    unwrapped: Echoes,
    magnitude: Echoes | None,
    mask: Mask,
    echo_times: tuple[float, ...],
    field_strength: float,
    *,
    steps: int = 8,
) -> tuple[Volume, Volume]:
    r"""Field by the complex signal: minimise sum_e m_e^2 |exp(i phase_e) - exp(2 pi i gamma_bar B0 TE_e field)|^2.

    A phase that is a whole turn off costs nothing here, so a wrong turn of a noisy echo, which spoils a line, does no
    harm; noise counts as it is in the complex image. Gauss-Newton steps from the weighted line, or from that of the
    first two echoes where it fits better. Voxels whose echoes disagree have their noise raised by their misfit.

    Args:
        unwrapped: [rad], shape (echo, x, y, z); the start needs it unwrapped, the fit does not.
        magnitude: m, same shape, any unit; None weighs all echoes and voxels alike.
        mask: Where the phase is valid.
        echo_times: [s].
        field_strength: [T].
        steps: Of the fit.

    Returns:
        Total field [ppm], zero outside the mask, and its noise as that of `weighted_field`, but larger where the echoes
        disagree by more than their noise, by the root of the misfit over its median, and infinite where they disagree
        by so much (`CONTRADICTION`) that they say nothing of the field: artefacts of pulsation, damaged echoes.

    References:
        Liu et al. 2013, doi:10.1002/mrm.24272.
    """
    levelled, squares = _levelled(unwrapped, magnitude, mask, echo_times)
    scales = [radians_per_ppm(time, field_strength) for time in echo_times]
    start, noise = _line(levelled, squares, mask, scales)
    if len(echo_times) == 1:
        return start, noise  # one echo is fitted exactly
    scale = unwrapped.new_tensor(scales)[:, None]
    phase, weight = levelled[:, mask], squares[:, mask]
    early = (weight * scale * phase)[:2].sum(dim=0) / (weight * scale**2)[:2].sum(dim=0).clamp_min(1e-30)
    field = start[mask]
    field = torch.where(_misfit(early, phase, weight, scale) < _misfit(field, phase, weight, scale), early, field)
    for _ in range(steps):
        off = phase - scale * field
        slope = (weight * scale * off.sin()).sum(dim=0)
        bend = (weight * scale**2 * off.cos().clamp_min(FLAT)).sum(dim=0)
        field = field + slope / bend.clamp_min(1e-30)
    whole = torch.zeros_like(start)
    whole[mask] = field
    misfit = _misfit(field, phase, weight, scale)
    typical = misfit.median()
    raised = noise.clone()
    if float(typical) > 0:
        raised[mask] = noise[mask] * torch.where(misfit > OUTLIER * typical, misfit / typical, 1.0).sqrt()
    times, share = CONTRADICTION
    lost = torch.zeros_like(mask)
    lost[mask] = (misfit > times * typical) & (misfit > share * weight.sum(dim=0))
    return whole, raised.masked_fill(lost, torch.inf)


def from_around(field: Volume, unknown: Mask, mask: Mask) -> Volume:
    """The field with its unknown voxels replaced by the mean of their neighbours, from the rim of each spot inwards.

    An inversion takes a field as it finds it, and one voxel of nonsense throws streaks through centimetres.

    Args:
        field: [ppm], shape (x, y, z).
        unknown: Which voxels to replace; what touches no known voxel of the mask, through others or directly, stays.
        mask: Where the field is valid otherwise.
    """
    if not unknown.any():
        return field
    box = bounding_box(unknown, [1, 1, 1])
    values, known = field[box].clone(), (mask & ~unknown)[box]
    left = (mask & unknown)[box]
    while left.any():
        sums, counts = torch.zeros_like(values), torch.zeros_like(values)
        for axis in range(3):
            n = values.shape[axis]
            for to, source in ((0, 1), (1, 0)):
                of = known.narrow(axis, source, n - 1)
                sums.narrow(axis, to, n - 1).add_(values.narrow(axis, source, n - 1) * of)
                counts.narrow(axis, to, n - 1).add_(of)
        reached = left & (counts > 0)
        if not reached.any():
            break
        values = torch.where(reached, sums / counts.clamp_min(1), values)
        known, left = known | reached, left & ~reached
    result = field.clone()
    result[box] = values
    return result


def _misfit(field: Tensor, phase: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Sum of squares of the complex difference, (voxel)."""
    return (weight * (2 - 2 * (phase - scale * field).cos())).sum(dim=0)


def _line(levelled: Echoes, weight: Echoes, mask: Mask, scale: list[float]) -> tuple[Volume, Volume]:
    """Field and noise as `weighted_field` has them, of echoes that lie on one line; scale in [rad/ppm]."""
    moment = torch.zeros_like(levelled[0])
    total = torch.zeros_like(levelled[0])
    for echo, weights, factor in zip(levelled, weight, scale, strict=True):
        moment += weights * echo * factor
        total += weights * factor**2
    plain = levelled.sum(dim=0) / sum(scale)
    measured = total > 0  # elsewhere the plain mean is as good as anything, and the infinite noise says so
    field = torch.where(measured, moment / total.clamp_min(1e-30), plain)
    noise = torch.where(mask & measured, total.clamp_min(1e-30).rsqrt(), torch.inf)
    return torch.where(mask, field, 0.0), noise


def _levelled(
    unwrapped: Echoes, magnitude: Echoes | None, mask: Mask, echo_times: tuple[float, ...]
) -> tuple[Echoes, Echoes]:
    """Echoes with the turns of each as a whole that `_common_turns` finds, and their weights.

    Raises:
        InputError: The shapes do not belong together.
    """
    check_echoes(unwrapped, magnitude, mask, echo_times, "unwrapped phase")
    weight = torch.ones_like(unwrapped) if magnitude is None else magnitude.square()
    medians = [float(echo[mask].median()) for echo in unwrapped]
    turns = _common_turns(medians, [float(echo[mask].mean()) for echo in weight], echo_times)
    return unwrapped + TURN * unwrapped.new_tensor(turns).reshape(-1, 1, 1, 1), weight


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
