"""Does the measurement fit what its header says? What was looked at, with the numbers that speak for or against it.

Nothing is refused here, as a scan can be unusual. Limits were set on simulated acquisitions with one thing wrong;
benchmarks/evidence.py prints how often such errors are found in others, and how often there is an alarm without one.
"""

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from chimap.arrays import Echoes, Mask, Triple, Volume
from chimap.errors import InputError
from chimap.fields.background import vsharp
from chimap.fields.cone import b0_from_field
from chimap.fields.mask import erode
from chimap.linalg import block_mean, bounding_box
from chimap.physics.dipole import DipoleModel
from chimap.scan import Finding

JUMP = 0.8
"""Of the range of values: neighbours that differ by more lie on two sides of a wrap, or are noise."""
LEVEL = 0.3
"""Of the brightest slice: darker ones hold too little to be compared."""
COARSE = 2.0
"""Voxels [mm] on which a field is looked at, and slices of air."""
LEAST = 400.0
"""Volume of a mask [mL] from which on the whole of a brain can be judged by its field."""
AIR = 10.0
"""Distance [mm] from the head beyond which a voxel counts as air."""
DEEP = 8.0
"""Depth [mm] below which chi is looked at: nearer to the rim it is less sure."""


def of_scan(phase: Echoes, magnitude: Echoes | None, voxel_size: Triple) -> list[Finding]:
    """What phase and magnitude alone tell: scaling, exchange, missing slices, ghosts.

    Args:
        phase: [rad], (echo, x, y, z).
        magnitude: Same shape.
        voxel_size: [mm].
    """
    findings = [phase_scale(phase)]
    if magnitude is not None:
        findings += [exchanged(phase, magnitude), missing_slices(magnitude), ghosts(magnitude[0], voxel_size)]
    return [one for one in findings if one is not None]


def of_field(local_field: Volume, mask: Mask, voxel_size: Triple, b0: Triple) -> list[Finding]:
    """What a coarse local field tells: its strength, and the direction of B0.

    Args:
        local_field: [ppm], from `coarse_local_field`, like the next two.
        mask: Where it is valid.
        voxel_size: [mm].
        b0: What the header says, a unit vector in voxel axes.
    """
    return [field_strength(local_field, mask), b0_direction(local_field, mask, voxel_size, b0)]


def coarse_local_field(
    total_field: Volume, mask: Mask, voxel_size: Triple, b0: Triple
) -> tuple[Tensor, Tensor, Triple] | None:
    """A quick local field that does not depend on B0: on voxels of about `COARSE`, by V-SHARP.

    Args:
        total_field: [ppm], (x, y, z).
        mask: Where it is known.
        voxel_size: [mm].
        b0: Unit vector, for the dipole model only, which V-SHARP does not apply.

    Returns:
        Local field [ppm], its mask and its voxel size [mm]; None where the mask is no whole brain.
    """
    if float(mask.sum()) * math.prod(voxel_size) < 1000 * LEAST:
        return None
    box = bounding_box(mask)
    inside = mask[box].to(total_field)
    x, y, z = (max(round(COARSE / length), 1) for length in voxel_size)
    size = (voxel_size[0] * x, voxel_size[1] * y, voxel_size[2] * z)
    share = block_mean(inside, (x, y, z))
    coarse = block_mean(total_field[box] * inside, (x, y, z)) / share.clamp_min(1e-6)
    kept = share > 0.5
    i, j, k = coarse.shape
    try:
        local, valid = vsharp(coarse * kept, None, kept, DipoleModel((i, j, k), size, b0, padding=0))
    except InputError:  # a mask of thin pieces, into which no sphere fits
        return None
    return local, valid, size


def phase_scale(phase: Echoes, *, limit: float = 0.0005) -> Finding:
    """Whether phase wraps at other values than -pi and pi: a wrong scaling.

    Args:
        phase: [rad], (echo, x, y, z).
        limit: Share of neighbours that jump by nearly the whole range, if that range is not 2 pi.
    """
    turn = 2 * math.pi
    last = phase[-1]
    span = float(last.max() - last.min())
    share = _jumps(last, span)
    fits = 0.97 < span / turn < 1.03
    doubtful = not fits and share > limit
    text = f"The last echo's phase spans {span:.2f} rad; {100 * share:.2g} % of all neighbours differ by nearly as much"
    if doubtful:
        text += f", so it wraps, but not at {turn:.2f} rad: it is probably scaled wrongly (--phase-range)"
    return Finding("phase scale", text + ".", doubtful)


def exchanged(phase: Echoes, magnitude: Echoes, *, limit: float = 1.0) -> Finding:
    """Whether magnitude and phase have changed places: only phase jumps by its whole range from voxel to voxel.

    Args:
        phase: (echo, x, y, z).
        magnitude: Same shape.
        limit: Jumps of the magnitude over those of the phase.
    """
    of_magnitude, of_phase = (_jumps(one[-1], float(one[-1].max() - one[-1].min())) for one in (magnitude, phase))
    doubtful = of_magnitude > max(limit * of_phase, 1e-3)
    text = (
        f"Of all neighbours, {100 * of_phase:.2g} % differ by nearly the whole range in phase and "
        f"{100 * of_magnitude:.2g} % in magnitude"
    )
    if doubtful:
        text += ", where wraps belong into the phase: the two have probably changed places"
    return Finding("magnitude and phase", text + ".", doubtful)


def missing_slices(magnitude: Echoes, *, dark: float = 0.8, step: float = 1.2) -> Finding | None:
    """Whether slices along any axis are darker than their neighbours, copies of one, or missing between two.

    Args:
        magnitude: (echo, x, y, z).
        dark: Share of the neighbours' brightness below which a slice lacks something.
        step: A slice is missing where neighbours differ this many times as much as those beside them.
    """
    volume = magnitude.square().sum(dim=0).sqrt()
    darkest, widest = (1.0, ""), (0.0, "")
    for axis, name in enumerate("xyz"):
        planes = volume.movedim(axis, 0).flatten(1)
        level = planes.mean(dim=1)
        bright = level > LEVEL * level.max()
        if int(bright.sum()) < 8:
            continue
        difference = (planes[1:] - planes[:-1]).abs().mean(dim=1)
        same = (difference <= 1e-6 * level.max()) & bright[1:] & bright[:-1]
        if bool(same.any()):
            where = int(same.nonzero()[0]) + 1
            text = f"Slice {name} = {where} is the same as the one before it: data are missing there."
            return Finding("slices", text, doubtful=True)
        around = torch.minimum(level[:-2], level[2:])
        share = torch.where(around > LEVEL * level.max(), level[1:-1] / around.clamp_min(1e-12), 1.0)
        darkest = min(darkest, (float(share.min()), f"{name} = {int(share.argmin()) + 1}"))
        relative = difference / (level[1:] + level[:-1]).clamp_min(1e-12)
        beside = torch.stack([relative[:-4], relative[1:-3], relative[3:-1], relative[4:]]).amax(dim=0)
        known = bright[1:-4] & bright[2:-3] & bright[3:-2] & bright[4:-1]
        jump = torch.where(known, relative[2:-2] / beside.clamp_min(1e-12), 0.0)
        widest = max(widest, (float(jump.max()), f"{name} = {int(jump.argmax()) + 2}"))
    if not widest[1]:
        return None
    text = f"The darkest slice has {100 * darkest[0]:.0f} % of its neighbours' brightness ({darkest[1] or 'none'})"
    text += f"; from slice to slice the image changes at most {widest[0]:.2f} times as much as beside it ({widest[1]})"
    doubtful = darkest[0] < dark or widest[0] > step
    if doubtful:
        text += ": slices are probably missing or damaged there"
    return Finding("slices", text + ".", doubtful)


def ghosts(magnitude: Volume, voxel_size: Triple, *, limit: float = 1.35) -> Finding | None:
    """Whether air beside the head is brighter along x than along y or vice versa, as ghosts of a moving head make it.

    They appear along the direction of the slow phase encoding, which lies within the slices. Air is compared at the
    same distance from the head, as some combinations of coils darken what is far from it.

    Args:
        magnitude: Of one echo, (x, y, z), slices along z.
        voxel_size: [mm].
        limit: Of the ratio between air in the head's shadow along one axis only and along the other one only.

    Returns:
        None where there is no air to compare, or its noise was set to zero.
    """
    steps = [max(round(COARSE / size), 1) for size in voxel_size]  # voxels left out, not averaged: noise stays
    volume = magnitude[:: steps[0], :: steps[1], :: steps[2]]
    bright = float(volume.flatten()[:: max(volume.numel() // 500_000, 1)].quantile(0.98))
    head = (volume > 0.15 * bright).numpy(force=True)
    head = np.asarray(ndimage.binary_closing(ndimage.binary_opening(head), iterations=3), dtype=bool)
    spacing = [size * step for size, step in zip(voxel_size, steps, strict=True)]
    distance = torch.from_numpy(np.asarray(ndimage.distance_transform_edt(np.logical_not(head), sampling=spacing)))
    distance = distance.to(volume)
    along_x, along_y = ((distance <= AIR).any(dim=axis, keepdim=True).expand_as(distance) for axis in (0, 1))
    total, count = 0.0, 0
    for nearest in torch.arange(AIR, 60.0, 5.0).tolist():
        ring = (distance > nearest) & (distance <= nearest + 5)
        one, other = volume[ring & along_x & ~along_y], volume[ring & along_y & ~along_x]
        number = min(len(one), len(other))
        if number >= 200 and min(float(one.median()), float(other.median())) > 0:
            total += number * math.log(float(one.median() / other.median()))
            count += number
    if not count:
        return None
    ratio = math.exp(abs(total) / count)
    axis, across = ("x", "y") if total > 0 else ("y", "x")
    doubtful = ratio > limit
    text = f"Air beside the head along {axis} is {ratio:.2f} times as bright as along {across} at the same distance"
    if doubtful:
        text += f": there are ghosts along {axis}, as from motion or flow"
    return Finding("ghosts", text + ".", doubtful)


def field_strength(local_field: Volume, mask: Mask, *, limits: tuple[float, float] = (0.003, 0.1)) -> Finding:
    """Whether a local field is as strong as a brain's: echo times, B0 and phase together decide its scale.

    Args:
        local_field: [ppm], coarse.
        mask: Where it is valid.
        limits: Of its SD [ppm].
    """
    spread = float(local_field[mask].std())
    low, high = limits
    doubtful = not low < spread < high
    text = f"The local field on voxels of about {COARSE:g} mm has an SD of {spread:.2g} ppm"
    if doubtful:
        text += f", a brain's has {low:g} to {high:g}: check echo times (in seconds), field strength and phase range"
    return Finding("strength of the field", text + ".", doubtful)


def b0_direction(
    local_field: Volume, mask: Mask, voxel_size: Triple, b0: Triple, *, angle: float = 12.0, evidence: float = 0.1
) -> Finding:
    """Whether the field fits its direction of B0.

    Args:
        local_field: [ppm], found without knowledge of B0.
        mask: Where it is valid.
        voxel_size: [mm].
        b0: What the header says, in voxel axes.
        angle: To the most likely direction from which on the stated one is doubtful [degrees].
        evidence: And difference of the mean log likelihood, see `cone.b0_from_field`.
    """
    found, worse = b0_from_field(local_field, mask, voxel_size, b0)
    cosine = abs(sum(a * b for a, b in zip(found, b0, strict=True))) / math.hypot(*b0)
    apart = math.degrees(math.acos(min(cosine, 1.0)))
    doubtful = apart > angle and worse > evidence
    listed = ", ".join(f"{value:.2f}" for value in found)
    text = (
        f"The field fits B0 along ({listed}) in voxel axes best, {apart:.0f} degrees from the stated direction "
        f"(log likelihood {worse:.3f} better)"
    )
    if doubtful:
        text += ": the image's orientation is probably wrong; give the direction with --b0-dir"
    return Finding("direction of B0", text + ".", doubtful)


def phase_sign(chi: Volume, mask: Mask, voxel_size: Triple, *, limit: float = -0.04) -> Finding | None:
    """Whether a brain's most extreme values of chi are positive, as those of veins and iron are.

    Args:
        chi: [ppm], coarse, by a method that is odd in the field.
        mask: Where it is valid.
        voxel_size: [mm].
        limit: Of the asymmetry of the 0.3rd and the 99.7th percentile about the median, from -1 to 1.
    """
    deep = erode(mask, DEEP, voxel_size)
    values = chi[deep]
    if len(values) < 2000:
        return None
    low, middle, high = (float(values.quantile(share)) for share in (0.003, 0.5, 0.997))
    asymmetry = (low + high - 2 * middle) / max(high - low, 1e-12)
    doubtful = asymmetry < limit
    text = (
        f"The extreme values of chi are {low - middle:+.2f} and {high - middle:+.2f} ppm about the median, "
        f"deeper than {DEEP:g} mm"
    )
    if doubtful:
        text += (
            ": in brains the positive ones are stronger (veins, iron), so the sign of the phase is probably wrong "
            "(--phase-sign)"
        )
    return Finding("sign of the phase", text + ".", doubtful)


def _jumps(volume: Tensor, span: float) -> float:
    """Share of face neighbours that differ by more than `JUMP` of a span."""
    if span <= 0:
        return 0.0
    count, total = 0, 0
    for axis in range(3):
        difference = volume.diff(dim=axis).abs_()
        count += int((difference > JUMP * span).sum())
        total += difference.numel()
    return count / max(total, 1)
