"""From images and what their headers say to a `Scan`: echoes in order, radians, sign, direction of B0.

No file format is known here. The user's words win over the files', and a disagreement becomes a warning.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from chimap.arrays import Mask, Triple
from chimap.errors import InputError
from chimap.io import checks, space
from chimap.io.alternation import alternating_axis, without_alternation
from chimap.io.scaling import Scale, scale_of, to_radians
from chimap.io.sidecar import Sidecar
from chimap.scan import Scan


@dataclass(frozen=True)
class Image:
    """One file of one or several volumes.

    Attributes:
        name: For messages.
        data: After the file's slope and intercept, shape (echo, x, y, z), float32.
        affine: Voxel index to scanner coordinates [mm].
        warnings: What about its geometry was assumed or contradicts itself, one sentence each.
        sidecar: What is known about it beside the values.
    """

    name: str
    data: np.ndarray
    affine: np.ndarray
    warnings: tuple[str, ...] = ()
    sidecar: Sidecar = Sidecar("")

    @property
    def short(self) -> str:
        """Name without folders, which may be called after a person: for what is kept in a record."""
        return Path(self.name).name


@dataclass(frozen=True)
class Told:
    """What the user says about an acquisition; None where the files shall say it.

    Attributes:
        echo_times: [s], in the order of the phase images.
        field_strength: [T].
        b0_direction: In voxel axes, of any length.
        phase_range: Stored values that are one turn.
        phase_sign: +1 where phase grows with the field, -1 where it falls.
    """

    echo_times: Sequence[float] | None = None
    field_strength: float | None = None
    b0_direction: Triple | None = None
    phase_range: tuple[float, float] | None = None
    phase_sign: int | None = None


def assemble(
    phase: Sequence[Image],
    magnitude: Sequence[Image],
    told: Told,
    *,
    mask: Mask | None = None,
    stated: Scale | None = None,
    files: Sequence[str] = (),
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> Scan:
    """Make a checked scan.

    Args:
        phase: One image with all echoes, or one image for each echo in any order.
        magnitude: Likewise, matched to the phase by its own echo times where they are known; or none.
        told: The user's words.
        mask: On the phase's grid.
        stated: How stored values become radians, where a header says it.
        files: Input files, kept for checksums.
        notes: Of what was done before, one sentence each.
        warnings: Likewise.

    Raises:
        InputError: Something is missing, contradicts itself or cannot be used.
    """
    notes, warnings = list(notes), list(warnings)
    first = phase[0]
    for image in (*phase[1:], *magnitude):
        checks.same_grid(image.name, image.data.shape[1:], image.affine, first.name, first.data.shape[1:], first.affine)
    stored = _stack(phase, "phase")
    warnings += dict.fromkeys(sentence for image in phase for sentence in image.warnings)

    difference = _is_difference(phase)
    given = _echo_times(phase, magnitude, told, notes, warnings)
    order = sorted(range(len(given)), key=lambda echo: given[echo])
    times = tuple(given[echo] for echo in order)
    if any(checks.same_time(a, b) for a, b in zip(times, times[1:], strict=False)):
        listed = ", ".join(f"{time:g}" for time in times)
        raise InputError(f"{_names(phase)}: two echoes have the same echo time ({listed} s); {checks.SEVERAL}")
    if order != sorted(order):
        notes.append("The echoes were put in the order of their echo times.")
    if difference and told.echo_times is None:
        notes.append(
            f"{first.short} is a phase difference of two echoes: its echo time is the difference, {times[0]:g} s."
        )

    strength = _field_strength(phase, magnitude, told, notes, warnings)
    scale = scale_of(stored, _names(phase), phase_range=told.phase_range, units=_units(phase), stated=stated)
    (warnings if scale.guessed else notes).append(scale.said)
    sign = _sign(phase, told, notes, warnings)
    radians = to_radians(stored, scale)
    if sign < 0:
        radians = -radians
    direction = _b0_direction(first, told, notes, warnings)
    radians = _ordered(radians, order)
    beside = _magnitude(magnitude, phase, order, given, told, difference, notes, warnings)
    if not _maker(phase) or _is_ge(_maker(phase)):
        radians = _without_alternation(radians, beside, warnings)

    scan = Scan(
        phase=torch.from_numpy(radians),
        magnitude=beside,
        echo_times=times,
        field_strength=strength,
        voxel_size=space.voxel_size(first.affine),
        b0_direction=direction,
        affine=first.affine,
        mask=mask,
        phase_difference=difference,
        notes=tuple(notes),
        warnings=tuple(warnings),
        files=tuple(files),
    )
    problems = scan.problems()
    if problems:
        raise InputError(f"{_names([*phase, *magnitude])}: {'; '.join(problems)}")
    return scan


def _stack(images: Sequence[Image], what: str) -> np.ndarray:
    """All echoes, (echo, x, y, z), in the order given."""
    if len(images) == 1:
        return images[0].data
    for image in images:
        if len(image.data) != 1:
            raise InputError(
                f"{image.name} holds {len(image.data)} volumes and is one of {len(images)} {what} files, "
                f"needed one 4D file or a 3D file for each echo; {checks.SEVERAL}"
            )
    return np.concatenate([image.data for image in images])


def _ordered(volumes: np.ndarray, order: list[int]) -> np.ndarray:
    return volumes if order == sorted(order) else volumes[order]


def _names(images: Sequence[Image]) -> str:
    return ", ".join(image.name for image in images)


def _is_difference(phase: Sequence[Image]) -> bool:
    return len(phase) == 1 and len(phase[0].data) == 1 and phase[0].sidecar.phase_difference is not None


def _times_in_files(images: Sequence[Image], *, strict: bool = True) -> tuple[float, ...] | None:
    """Echo times that the images' sidecars give, in the order of the images; None where one is missing.

    `strict` refuses a number of times that does not fit the volumes, which else counts as none.
    """
    if not images:
        return None
    if len(images) == 1:
        sidecar, volumes = images[0].sidecar, len(images[0].data)
        if volumes == 1 and sidecar.phase_difference is not None:
            return (sidecar.phase_difference,)
        if not sidecar.echo_times:
            return None
        if len(sidecar.echo_times) != volumes and not strict:
            return None
        if len(sidecar.echo_times) != volumes:
            raise InputError(
                f"{sidecar.name} gives {len(sidecar.echo_times)} echo times, {images[0].name} holds {volumes} volumes: "
                "give --echo-times in seconds, one for each echo" + _maybe_several(volumes, len(sidecar.echo_times))
            )
        return sidecar.echo_times
    for image in images:
        if len(image.sidecar.echo_times) > 1 and strict:
            raise InputError(f"{image.sidecar.name} gives several echo times for one volume, needed one")
    times = [time for image in images for time in image.sidecar.echo_times]
    return tuple(times) if len(times) == len(images) else None


def _maybe_several(volumes: int, echoes: int) -> str:
    """Ends a sentence about volumes that are no echoes, where they may be several for each echo."""
    return f"; {checks.SEVERAL}" if volumes > echoes and volumes % echoes == 0 else ""


def _echo_times(
    phase: Sequence[Image], magnitude: Sequence[Image], told: Told, notes: list[str], warnings: list[str]
) -> tuple[float, ...]:
    """Echo times [s] in the order of the phase images."""
    echoes = sum(len(image.data) for image in phase)
    if told.echo_times is not None:
        times = tuple(float(time) for time in told.echo_times)
        listed = ", ".join(f"{time:g}" for time in times)
        if len(times) != echoes:
            raise InputError(
                f"--echo-times gives {len(times)} ({listed}), {_names(phase)} holds {echoes} echoes"
                + _maybe_several(echoes, len(times))
            )
        checks.echo_times(times, "--echo-times")
        notes.append(f"Echo times are the user's: {listed} s.")
        # a sidecar that does not fit, say one time for several volumes, must not stop a user who gives them
        said = [time for image in phase for time in image.sidecar.echo_times]
        alike = len(said) == echoes and all(map(checks.same_time, said, times))
        if echoes == 1 and phase[0].sidecar.phase_difference is not None:
            said = [phase[0].sidecar.phase_difference]
            alike = checks.same_time(said[0], times[0])
        if said and not alike:
            given = ", ".join(f"{time:g}" for time in said)
            warnings.append(f"--echo-times gives {listed} s and the files {given} s: the former was used.")
        return times
    times = _times_in_files(phase)
    if times is not None:
        return times
    times = _times_in_files(magnitude)
    if times is not None and len(times) == echoes:
        notes.append("Echo times were taken from the magnitude's sidecars, as the phase's have none.")
        return times
    lacking = _names([image for image in phase if not image.sidecar.echo_times])
    raise InputError(f"{lacking}: no EchoTime in a JSON sidecar; give --echo-times in seconds, one for each echo")


def _field_strength(
    phase: Sequence[Image], magnitude: Sequence[Image], told: Told, notes: list[str], warnings: list[str]
) -> float:
    found = [
        (image.sidecar.field_strength, image.sidecar.name)
        for image in (*phase, *magnitude)
        if image.sidecar.field_strength is not None
    ]
    for strength, name in found:
        if abs(strength / found[0][0] - 1) > 0.01 and told.field_strength is None:
            raise InputError(
                f"{name} says {strength:g} T and {found[0][1]} {found[0][0]:g} T: give --field-strength in tesla"
            )
    if told.field_strength is not None:
        checks.field_strength(told.field_strength, "--field-strength")
        notes.append(f"Field strength is the user's: {told.field_strength:g} T.")
        for strength, name in found[:1]:
            if abs(strength / told.field_strength - 1) > 0.01:
                warnings.append(
                    f"--field-strength is {told.field_strength:g} T and {Path(name).name} says "
                    f"{strength:g} T: the former was used."
                )
        return float(told.field_strength)
    if not found:
        raise InputError(
            f"{_names(phase)}: no MagneticFieldStrength in a JSON sidecar; give --field-strength in tesla, such as 3"
        )
    return found[0][0]


def _units(phase: Sequence[Image]) -> str | None:
    """Units that all sidecars agree on."""
    units = {image.sidecar.units for image in phase}
    if len(units) > 1:
        raise InputError(f"{_names(phase)}: the sidecars' Units differ ({', '.join(sorted(map(str, units)))})")
    return units.pop()


def _sign(phase: Sequence[Image], told: Told, notes: list[str], warnings: list[str]) -> int:
    """+1 where stored phase grows with the field, -1 where it falls."""
    if told.phase_sign is not None:
        if told.phase_sign not in (-1, 1):
            raise InputError(f"--phase-sign is {told.phase_sign}, needed 1 or -1")
        notes.append(f"Phase sign {told.phase_sign:+d} was applied, as the user said.")
        return told.phase_sign
    maker = _maker(phase)
    if _is_ge(maker):
        notes.append(f"Phase sign -1 was applied: the manufacturer is {maker}.")
        warnings.append(
            f"Assumed: phase by {maker} falls where the field is stronger, so it was negated; "
            "if chi comes out inverted, give --phase-sign 1."
        )
        return -1
    why = f"the manufacturer is {maker}" if maker else "nothing says that phase falls where the field is stronger"
    notes.append(f"Phase sign +1 was applied: {why}.")
    return 1


def _maker(images: Sequence[Image]) -> str:
    """Manufacturer as the sidecars name it; empty where none does."""
    return ", ".join(sorted({image.sidecar.manufacturer for image in images if image.sidecar.manufacturer}))


def _is_ge(maker: str) -> bool:
    return maker.upper() == "GE" or maker.upper().startswith(("GE ", "GEMS", "GENERAL ELECTRIC"))


def _without_alternation(radians: np.ndarray, magnitude: torch.Tensor | None, warnings: list[str]) -> np.ndarray:
    """Phase with every second slice turned back, where the first echo shows that it is half a turn off."""
    axis = alternating_axis(radians[0], None if magnitude is None else magnitude[0].numpy())
    if axis is None:
        return radians
    warnings.append(
        f"Every second slice along {'xyz'[axis]} is half a turn off in phase, as GE stores 3D scans: this was undone."
    )
    return without_alternation(radians, axis)


def _b0_direction(image: Image, told: Told, notes: list[str], warnings: list[str]) -> Triple:
    from_affine = space.b0_from_affine(image.affine)
    if told.b0_direction is None:
        notes.append(f"B0 lies along {_listed(from_affine)} in voxel axes, from the affine of {image.short}.")
        return from_affine
    x, y, z = space.b0_from_user(told.b0_direction)
    notes.append(f"B0 lies along {_listed((x, y, z))} in voxel axes, as the user said.")
    # the sign of B0 makes no difference
    cosine = abs(x * from_affine[0] + y * from_affine[1] + z * from_affine[2])
    angle = math.degrees(math.acos(min(cosine, 1)))
    if angle > 5:
        warnings.append(
            f"--b0-dir {_listed(told.b0_direction)} lies {angle:.0f} degrees from the affine's direction "
            f"{_listed(from_affine)}: the former was used."
        )
    return x, y, z


def _listed(direction: Sequence[float]) -> str:
    return "(" + ", ".join(f"{component:.3g}" for component in direction) + ")"


def _magnitude(
    images: Sequence[Image],
    phase: Sequence[Image],
    order: list[int],
    times: Sequence[float],
    told: Told,
    difference: bool,
    notes: list[str],
    warnings: list[str],
) -> torch.Tensor | None:
    """Magnitude in the order of the phase's echo times.

    Args:
        images: As given.
        phase: As given.
        order: Positions of the phase's echoes, by echo time.
        times: Echo times [s] in the order of the phase as given.
        told: The user's words.
        difference: Whether the phase is a difference of two echoes.
        notes: Grows.
        warnings: Grows.
    """
    if not images:
        return None
    volumes = _stack(images, "magnitude")
    if difference:
        if len(volumes) > 2:
            raise InputError(f"{_names(images)} holds {len(volumes)} echoes, a phase difference has one or two")
        if len(volumes) == 2:
            notes.append("Magnitude is the root mean square of the two echoes of the phase difference.")
        return torch.from_numpy(np.sqrt(np.mean(np.square(volumes), axis=0, keepdims=True)))
    if len(volumes) != len(order):
        raise InputError(
            f"{_names(images)} holds {len(volumes)} echoes of magnitude, the phase has {len(order)}: they must be equal"
            + _maybe_several(len(volumes), len(order))
        )
    of_phase = _times_in_files(phase, strict=False) or tuple(times)
    own = _times_in_files(images, strict=False)
    if own is not None:
        by_time = sorted(range(len(own)), key=lambda echo: own[echo])
        wanted = sorted(range(len(of_phase)), key=lambda echo: of_phase[echo])
        if all(checks.same_time(own[a], of_phase[b]) for a, b in zip(by_time, wanted, strict=True)):
            beside = dict(zip(wanted, by_time, strict=True))
            return torch.from_numpy(_ordered(volumes, [beside[echo] for echo in order]))
        listed = [", ".join(f"{time:g}" for time in sorted(some)) for some in (own, of_phase)]
        message = f"{_names(images)}: echo times are {listed[0]} s, those of the phase {listed[1]} s"
        if told.echo_times is None:
            raise InputError(message)
        warnings.append(f"{message}; magnitude was matched to phase in the order given.")
    return torch.from_numpy(_ordered(volumes, order))
