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
from chimap.io.dicom_choice import Row, choose, table
from chimap.io.dicom_headers import (
    Rest,
    Stack,
    check_conversion,
    files_below,
    pixels_of,
    read_frames,
    read_header,
    stacks_of,
)
from chimap.io.nifti import read_image, read_mask
from chimap.io.scaling import TURN, Scale
from chimap.io.sidecar import Sidecar, read_sidecar
from chimap.scan import Scan

ANGLE = Scale(0.0, TURN, "Phase is the angle of the real and imaginary parts.")


def read_scan(
    folder: Path | str,
    *,
    series: Sequence[int] = (),
    mask: Path | str | None = None,
    echo_times: Sequence[float] | None = None,
    field_strength: float | None = None,
    b0_direction: Triple | None = None,
    phase_range: tuple[float, float] | None = None,
    phase_sign: int | None = None,
) -> Scan:
    """Read one gradient-echo acquisition that lies in a folder or below it.

    Its phase comes as phase images, or as real and imaginary parts.

    Args:
        folder: Other files and other series in it do not disturb.
        series: Numbers that hold the acquisition, where the folder has more than one.
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
    folder = Path(folder)
    stacks, rest = _stacks(folder)
    if not stacks:
        others = sum(some.files for some in rest)
        what = f"none of its {others} files is a DICOM image of MR" if others else "it is empty"
        raise InputError(f"{folder}: no DICOM images were found, {what}")
    chosen = choose(stacks, folder, series=series, echo_times=echo_times)
    phase, magnitude, pair, warnings = chosen.phase, chosen.magnitude, chosen.pair, list(chosen.warnings)
    beside = f"magnitude from series {_numbers(magnitude)}." if magnitude else "without magnitude."
    if chosen.imaginary:
        where = _numbers([*phase, *chosen.imaginary])
        notes = [f"Phase and magnitude were computed from real and imaginary parts in DICOM series {where}."]
    else:
        notes = [f"Phase was read from DICOM series {_numbers(phase)}, {beside}"]
    if rest:
        others = sum(some.files for some in rest)
        notes.append(f"Left out were {others} files in the folder that are no DICOM images of MR.")
    if not magnitude and not chosen.imaginary:
        warnings.append("No magnitude was found that belongs to the phase; the mask is made without one.")
    with tempfile.TemporaryDirectory() as temporary:
        phases = _convert(phase, Path(temporary) / "phase", notes)
        magnitudes = _precise(_convert(magnitude, Path(temporary) / "magnitude", notes), magnitude, notes)
        if chosen.imaginary:
            imaginary = _convert(chosen.imaginary, Path(temporary) / "imaginary", notes)
            parts = _precise([*phases, *imaginary], [*phase, *chosen.imaginary], notes)
            phases, magnitudes = _polar(parts[: len(phase)], parts[len(phase) :], phase)
            magnitude = phase
    if len(phases) == 1 and (echo_times is None or pair is not None):
        pair = _agreed_pair(pair, phases[0], phase[0])
        if pair is not None and phases[0].sidecar.echo_pair is not None:
            warnings = [sentence for sentence in warnings if "phase difference" not in sentence]
    # what goes on is what the headers say, not what the converter says
    phases = [replace(image, sidecar=_sidecar(stack, pair)) for image, stack in zip(phases, phase, strict=True)]
    magnitudes = [replace(image, sidecar=_sidecar(stack)) for image, stack in zip(magnitudes, magnitude, strict=True)]
    first, inside = phases[0], None
    if mask is not None:
        inside, of_mask = read_mask(Path(mask), first.affine, first.data.shape[1:], first.name)
        notes += of_mask
    files = sorted({str(frame.path) for stack in chosen.stacks for frame in stack.frames})
    return assemble(
        phases,
        magnitudes,
        Told(echo_times, field_strength, b0_direction, phase_range, phase_sign),
        mask=inside,
        stated=ANGLE if chosen.imaginary else None if phase_range is not None else _stated_scale(phase),
        files=[*files, *([str(mask)] if mask is not None else [])],
        notes=notes,
        warnings=warnings,
    )


def survey(folder: Path) -> list[Row]:
    """What a folder holds, series by series, and what `read_scan` would do with it.

    Raises:
        InputError: It is no folder, or empty.
    """
    stacks, rest = _stacks(folder)
    if not stacks and not rest:
        raise InputError(f"{folder} is empty; needed a folder with DICOM files")
    return table(stacks, rest)


def _stacks(folder: Path) -> tuple[list[Stack], list[Rest]]:
    if folder.is_file():
        raise InputError(f"{folder} is a file; needed the folder with the DICOM files, unpacked if it is an archive")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; needed one with DICOM files")
    frames, rest = read_frames(files_below(folder))
    return stacks_of(frames), rest


def _precise(images: Sequence[Image], stacks: Sequence[Stack], notes: list[str]) -> list[Image]:
    """Values that compare across images. Philips scales each image for the console, and says how."""
    slopes = [stack.first.philips_slope for stack in stacks]
    if not slopes or None in slopes:
        return list(images)
    factors = [1 / (stack.first.slope * slope) for stack, slope in zip(stacks, slopes, strict=True) if slope]
    notes.append(f"Philips' scale slopes were applied to DICOM series {_numbers(stacks)}.")
    return [replace(image, data=image.data * np.float32(factor)) for image, factor in zip(images, factors, strict=True)]


def _polar(
    real: Sequence[Image], imaginary: Sequence[Image], stacks: Sequence[Stack]
) -> tuple[list[Image], list[Image]]:
    """Phase [rad] and magnitude."""
    phases, magnitudes = [], []
    for x, y, stack in zip(real, imaginary, stacks, strict=True):
        checks.same_grid(y.name, y.data.shape[1:], y.affine, x.name, x.data.shape[1:], x.affine)
        for part in (x, y):
            if part.data.min() >= 0:
                raise InputError(
                    f"{part.name}: no value is below 0, and no RescaleIntercept says which stored value stands for 0"
                )
        name = stack.name.replace("(real,", "(real and imaginary,")
        phases.append(replace(x, name=name, data=np.arctan2(y.data, x.data)))
        magnitudes.append(replace(x, name=name, data=np.hypot(x.data, y.data)))
    return phases, magnitudes


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
    """Each stack as a volume that agrees with its headers."""
    images = []
    for index, stack in enumerate(stacks):
        in_files = sum(count for _, count in {(frame.path, frame.frames) for frame in stack.frames})
        image = _unpacked(stack) if in_files > len(stack.frames) else _dcm2niix(stack, folder / str(index))
        notes += check_conversion(stack, image)
        images.append(image)
    return images


def _unpacked(stack: Stack) -> Image:
    """A volume out of a multi-frame file that holds others, too, which a converter may not tell apart."""
    first, last = stack.frames[0], stack.frames[-1]
    slices = np.empty((len(stack.frames), first.rows, first.columns), np.float32)
    for path in {frame.path for frame in stack.frames}:
        own = [place for place, frame in enumerate(stack.frames) if frame.path == path]
        try:
            slices[own] = pixels_of(path, [stack.frames[place] for place in own])
        except Exception as error:  # every decoder has its own
            raise InputError(f"{stack.name}: its pixels cannot be read: {error}") from None
    affine = np.eye(4)
    # rows from the bottom upwards, as dcm2niix has them
    affine[:3, :3] = np.column_stack(
        [first.along_row, -first.along_column, (last.position - first.position) / (len(slices) - 1)]
    )
    affine[:3, 3] = first.position + (first.rows - 1) * first.along_column
    affine[:2] *= -1  # left and posterior to right and anterior
    data = (slices * first.slope + first.intercept)[:, ::-1].transpose(2, 1, 0)
    return Image(stack.name, np.ascontiguousarray(data, dtype=np.float32)[None], affine)


def _dcm2niix(stack: Stack, folder: Path) -> Image:
    """Convert the files of a stack, and no others that lie beside them."""
    import dcm2niix

    source, target = folder / "in", folder / "out"
    source.mkdir(parents=True)
    target.mkdir()
    for index, path in enumerate(sorted({frame.path for frame in stack.frames})):
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
        raise InputError(f"{stack.name}: dcm2niix cannot be started: {error.strerror}") from None
    made = sorted(target.glob("*.nii"))
    if done.returncode != 0 or not made:
        lines = (done.stderr + done.stdout).strip().splitlines()
        said = next((line for line in lines if "rror" in line), lines[-1] if lines else "no message")
        stored = read_header(stack.first.path, ["Rows"]).file_meta.get("TransferSyntaxUID")
        how = f" from {stored.name}" if stored is not None and (stored.is_compressed or stored.is_deflated) else ""
        raise InputError(f"{stack.name}: dcm2niix could not convert it{how}: {said.replace(str(source), 'the series')}")
    if len(made) != 1:
        raise InputError(f"{stack.name}: dcm2niix made {len(made)} images of it, needed one")
    return replace(read_image(made[0], stack.name), sidecar=read_sidecar(made[0]))


def _numbers(stacks: Sequence[Stack]) -> str:
    return ", ".join(str(number) for number in sorted({stack.first.series for stack in stacks}))
