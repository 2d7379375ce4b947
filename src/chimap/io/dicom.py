"""A folder of DICOM files to a `Scan`.

dcm2niix turns pixels into volumes, one series and echo at a time. Which files those are, and the echo times,
field strength and scale that go on from here, come from the headers as pydicom reads them, and each volume is
compared with them.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from chimap.arrays import Triple
from chimap.errors import InputError
from chimap.io import checks
from chimap.io.acquisition import Image, Told, assemble
from chimap.io.dicom_headers import Stack, check_conversion, check_stack, read_frames, stacks_of
from chimap.io.nifti import read_image, read_mask
from chimap.io.scaling import TURN, Scale
from chimap.io.sidecar import Sidecar, read_sidecar
from chimap.scan import Scan


def read_scan(
    folder: Path,
    *,
    mask: Path | None = None,
    echo_times: Sequence[float] | None = None,
    field_strength: float | None = None,
    b0_direction: Triple | None = None,
    phase_range: tuple[float, float] | None = None,
    phase_sign: int | None = None,
) -> Scan:
    """Read the one gradient-echo acquisition with phase images that lies in a folder or below it.

    Args:
        folder: Other files and other series in it do not disturb.
        mask: NIfTI on the grid that dcm2niix gives these files.
        echo_times: [s], ascending, instead of the headers'.
        field_strength: [T], instead of the headers'.
        b0_direction: In voxel axes of the converted image.
        phase_range: Values after RescaleSlope and RescaleIntercept that are one turn.
        phase_sign: +1 where phase grows with the field, -1 where it falls.

    Raises:
        InputError: No phase or more than one candidate, slices missing, or a conversion that contradicts the
            headers.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; needed one with DICOM files")
    frames, others = read_frames(folder)
    if not frames:
        what = f"none of its {others} files is a DICOM image of MR" if others else "it is empty"
        raise InputError(f"{folder}: no DICOM images were found, {what}")
    stacks = stacks_of(frames)
    phase = _phase(stacks, folder)
    pair, warnings = _echo_pair(phase, stacks)
    if echo_times is not None and pair is not None and not _says_difference(echo_times, pair):
        pair, warnings = None, []
    magnitude = _magnitude(phase, pair, stacks)
    notes = [
        f"Phase was read from DICOM series {_numbers(phase)}, "
        + (f"magnitude from series {_numbers(magnitude)}." if magnitude else "without magnitude.")
    ]
    if others:
        notes.append(f"Left out were {others} files in the folder that are no DICOM images of MR.")
    if not magnitude:
        warnings.append("No magnitude was found that belongs to the phase; the mask is made without one.")
    with tempfile.TemporaryDirectory() as temporary:
        phases = _convert(phase, Path(temporary) / "phase", notes)
        magnitudes = _convert(magnitude, Path(temporary) / "magnitude", notes) if magnitude else []
    if len(phases) == 1 and (echo_times is None or pair is not None):
        pair = _agreed_pair(pair, phases[0], phase[0])
        if pair is not None and phases[0].sidecar.echo_pair is not None:
            warnings = [sentence for sentence in warnings if "phase difference" not in sentence]
    # what goes on is what the headers say, not what the converter says
    phases = [replace(image, sidecar=_sidecar(stack, pair)) for image, stack in zip(phases, phase, strict=True)]
    magnitudes = [replace(image, sidecar=_sidecar(stack)) for image, stack in zip(magnitudes, magnitude, strict=True)]
    first, inside = phases[0], None
    if mask is not None:
        inside, of_mask = read_mask(mask, first.affine, first.data.shape[1:], first.name)
        notes += of_mask
    files = sorted({str(frame.path) for stack in (*phase, *magnitude) for frame in stack.frames})
    return assemble(
        phases,
        magnitudes,
        Told(echo_times, field_strength, b0_direction, phase_range, phase_sign),
        mask=inside,
        stated=None if phase_range is not None else _stated_scale(phase),
        files=[*files, *([str(mask)] if mask is not None else [])],
        notes=notes,
        warnings=warnings,
    )


def _phase(stacks: Sequence[Stack], folder: Path) -> list[Stack]:
    """Phase volumes of the acquisition, by echo time: one series, or one series for each echo."""
    found = [stack for stack in stacks if stack.first.kind == "phase"]
    if not found:
        complex_parts = any(stack.first.kind in ("real", "imaginary") for stack in stacks)
        hint = "; needed phase, not real and imaginary parts" if complex_parts else ""
        raise InputError(f"{folder}: no phase images were found, but {_listed(stacks)}{hint}")
    found.sort(key=lambda stack: stack.first.echo_time)
    times = [stack.first.echo_time for stack in found]
    one_series = len({stack.first.uid for stack in found}) == 1
    repeated = any(checks.same_time(a, b) for a, b in zip(times, times[1:], strict=False))
    alike = all(stack.first.protocol == found[0].first.protocol and _same_place(stack, found[0]) for stack in found)
    if not one_series and (repeated or not alike):
        raise InputError(
            f"{folder}: more than one acquisition with phase images was found ({_listed(found)}); "
            "put one of them with its magnitude into a folder of its own" + (f"; {checks.CHANNELS}" if alike else "")
        )
    for stack in found:
        check_stack(stack)
    return found


def _magnitude(phase: Sequence[Stack], pair: tuple[float, float] | None, stacks: Sequence[Stack]) -> list[Stack]:
    """Magnitude of each phase volume, of both echoes for a phase difference; empty where one is missing."""
    times = [stack.first.echo_time for stack in phase] if pair is None else sorted(pair)
    chosen = []
    for echo, time in enumerate(times):
        own = phase[min(echo, len(phase) - 1)]
        found = [stack for stack in _magnitudes_on(own, stacks) if checks.same_time(stack.first.echo_time, time)]
        if not found:
            return []
        # scanners store the magnitude right before or after its phase
        chosen.append(min(found, key=lambda stack: abs(stack.first.series - own.first.series)))
    for stack in chosen:
        check_stack(stack)
    return chosen


def _magnitudes_on(phase: Stack, stacks: Sequence[Stack]) -> list[Stack]:
    """Magnitude volumes on the grid of a phase volume, those of its protocol where there are any."""
    found = [stack for stack in stacks if stack.first.kind == "magnitude" and _same_place(stack, phase)]
    same = [stack for stack in found if stack.first.protocol == phase.first.protocol]
    return same or found


def _echo_pair(phase: Sequence[Stack], stacks: Sequence[Stack]) -> tuple[tuple[float, float] | None, list[str]]:
    """Echo times of a phase difference: one phase, headed as the later of exactly two echoes of magnitude."""
    if len(phase) != 1:
        return None, []
    own = phase[0].first
    found = _magnitudes_on(phase[0], stacks)
    nearest = min((abs(stack.first.series - own.series) for stack in found), default=0)
    times = sorted({stack.first.echo_time for stack in found if abs(stack.first.series - own.series) == nearest})
    if len(times) != 2 or not checks.same_time(times[1], own.echo_time):
        return None, []
    if own.sequence.startswith("*fm"):  # Siemens' field mapping stores nothing but the difference
        return (times[0], times[1]), []
    return (times[0], times[1]), [
        f"Assumed: {phase[0].name} is a phase difference, as it is the only phase image beside two echoes of "
        "magnitude; where it is the phase of the later echo, give --echo-times."
    ]


def _says_difference(echo_times: Sequence[float], pair: tuple[float, float]) -> bool:
    return len(echo_times) == 1 and not checks.same_time(echo_times[0], pair[1])


def _agreed_pair(pair: tuple[float, float] | None, image: Image, stack: Stack) -> tuple[float, float] | None:
    """The echo pair from the magnitude's headers, or from the phase's private one (by dcm2niix), or both."""
    if image.sidecar.phase_difference is None or image.sidecar.echo_pair is None:
        return pair
    early, late = sorted(image.sidecar.echo_pair)
    if pair is not None and not (checks.same_time(early, pair[0]) and checks.same_time(late, pair[1])):
        raise InputError(
            f"{stack.name}: the phase's private header gives the echo times {early:g} and {late:g} s, "
            f"the magnitude's headers {pair[0]:g} and {pair[1]:g} s"
        )
    return early, late


def _stated_scale(phase: Sequence[Stack]) -> Scale | None:
    """How rescaled values become radians, where the headers say it."""
    first = phase[0].first
    scales = {(stack.first.slope, stack.first.intercept) for stack in phase}
    if len(scales) > 1:
        listed = ", ".join(f"{slope:g} and {intercept:g}" for slope, intercept in sorted(scales))
        raise InputError(f"{phase[0].name}: RescaleSlope and RescaleIntercept differ between echoes ({listed})")
    if first.rescale_type.lower() in ("mrad", "milliradian", "milliradians", "milliradials"):
        return Scale(0.0, 1000 * TURN, "Phase was taken in milliradians, as RescaleType in the headers says.")
    if first.rescale_type.lower() in ("rad", "radian", "radians"):
        return Scale(0.0, TURN, "Phase was taken in radians, as RescaleType in the headers says.")
    if first.manufacturer.upper().startswith("SIEMENS") and scales == {(2.0, -4096.0)}:
        said = "Phase was scaled by pi / 4096, as RescaleSlope 2 and RescaleIntercept -4096 in the headers say."
        return Scale(0.0, 8192.0, said)
    return None


def _sidecar(stack: Stack, pair: tuple[float, float] | None = None) -> Sidecar:
    first = stack.first
    if first.field_strength is not None:
        checks.field_strength(first.field_strength, stack.name)
    checks.echo_times((first.echo_time,), stack.name)
    return Sidecar(
        name=stack.name,
        echo_times=(first.echo_time,),
        echo_pair=pair,
        field_strength=first.field_strength,
        manufacturer=first.manufacturer or None,
    )


def _convert(stacks: Sequence[Stack], folder: Path, notes: list[str]) -> list[Image]:
    """Volumes of stacks by dcm2niix, each compared with its headers."""
    groups: dict[frozenset[Path], list[int]] = {}  # a multi-frame file may hold several stacks
    for index, stack in enumerate(stacks):
        groups.setdefault(frozenset(frame.path for frame in stack.frames), []).append(index)
    images: dict[int, Image] = {}
    for group, (paths, members) in enumerate(groups.items()):
        made = _dcm2niix(sorted(paths), folder / str(group), stacks[members[0]].name)
        for index in members:
            stack = stacks[index]
            fitting = made if len(members) == len(made) == 1 else [path for path in made if _belongs(path, stack)]
            if len(fitting) != 1:
                raise InputError(f"{stack.name}: dcm2niix made {len(fitting)} images of it, needed one")
            image = replace(read_image(fitting[0], stack.name), sidecar=read_sidecar(fitting[0]))
            notes += check_conversion(stack, image)
            images[index] = image
    return [images[index] for index in range(len(stacks))]


def _belongs(path: Path, stack: Stack) -> bool:
    sidecar = read_sidecar(path)
    is_phase = "PHASE" in sidecar.image_type or "P" in sidecar.image_type
    return (
        is_phase == (stack.first.kind == "phase")
        and not {"REAL", "IMAGINARY"} & set(sidecar.image_type)
        and len(sidecar.echo_times) == 1
        and checks.same_time(sidecar.echo_times[0], stack.first.echo_time)
    )


def _dcm2niix(paths: Sequence[Path], folder: Path, name: str) -> list[Path]:
    """Convert files, and no others that lie beside them."""
    import dcm2niix

    source, target = folder / "in", folder / "out"
    source.mkdir(parents=True)
    target.mkdir()
    for index, path in enumerate(paths):
        link = source / f"{index:06d}.dcm"
        try:
            os.symlink(path.absolute(), link)
        except OSError:  # systems that reserve links for administrators
            shutil.copyfile(path, link)
    # no defaults file, JSON without names, no compression, RescaleSlope as it stands (also Philips'), no crop
    options = ["-g", "i", "-b", "y", "-ba", "y", "-z", "n", "-p", "n", "-x", "i", "-f", "volume_%s_%e"]
    command = [dcm2niix.bin, *options, "-o", str(target), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise InputError(f"{name}: dcm2niix cannot be started: {error.strerror}") from None
    made = sorted(target.glob("*.nii"))
    if done.returncode != 0 or not made:
        lines = (done.stderr + done.stdout).strip().splitlines()
        said = next((line for line in lines if "rror" in line), lines[-1] if lines else "no message")
        raise InputError(f"{name}: dcm2niix could not convert it: {said.replace(str(source), 'the series')}")
    return made


def _same_place(a: Stack, b: Stack) -> bool:
    if (a.first.rows, a.first.columns, len(a.frames)) != (b.first.rows, b.first.columns, len(b.frames)):
        return False
    return bool(np.allclose(a.corners(), b.corners(), atol=0.01 * float(np.linalg.norm(b.first.along_row))))


def _numbers(stacks: Sequence[Stack]) -> str:
    return ", ".join(str(number) for number in sorted({stack.first.series for stack in stacks}))


def _listed(stacks: Sequence[Stack]) -> str:
    """What was found, for a user who has to choose."""
    series: dict[tuple[int, str, str], int] = {}
    for stack in stacks:
        key = (stack.first.series, stack.first.description, stack.first.kind)
        series[key] = series.get(key, 0) + 1
    parts = [
        f"series {number} {description!r} ({kind}, {echoes} echo{'es' if echoes > 1 else ''})"
        for (number, description, kind), echoes in series.items()
    ]
    return ", ".join(parts)
