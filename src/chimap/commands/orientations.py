"""Local fields of one head in several orientations to one chi: `chimap cosmos`."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chimap import from_local_field, methods
from chimap.commands.console import console, keep_freed_memory, print_table, progress, tell
from chimap.commands.reconstruction import in_ppm
from chimap.errors import InputError
from chimap.inversion.orientations import conditioning
from chimap.inversion.positions import Position, in_first_frame, overlap, register, rigid, turned_b0
from chimap.io import checks, nifti, space
from chimap.io.output import whole_file
from chimap.physics.dipole import DipoleModel
from chimap.report.provenance import versions


def cosmos(
    *,
    local_field: Sequence[Path],
    mask: Sequence[Path],
    magnitude: Sequence[Path],
    transforms: Sequence[Path],
    registered: bool,
    b0_direction: Sequence[float] | None,
    units: str | None,
    field_strength: float | None,
    echo_time: float | None,
    reference: str,
    settings: Mapping[str, Mapping[str, Any]],
    output: Path,
    command: Sequence[str],
) -> None:
    """Local fields of several scans to one chi on the grid of the first, with what was done beside it as JSON.

    Args:
        local_field: A file for each scan.
        mask: Likewise.
        magnitude: Likewise, or none; weighs the data.
        transforms: A text file for each scan with the 4 x 4 matrix from its scanner coordinates [mm] to a space in
            which the head lies still, or none.
        registered: Find those from the magnitudes.
        b0_direction: Three numbers for each scan, in its voxel axes; from the affines if None.
        units: Of the fields: ppm, hz or rad.
        field_strength: [T], for Hz and rad.
        echo_time: [s], for rad.
        reference: "mask" or "none".
        settings: {"cosmos": {parameter: value}}.
        output: NIfTI.
        command: The command line, in words.

    Raises:
        InputError: Files that do not go together, or orientations that are as good as one.
    """
    keep_freed_memory()
    if not output.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"--output is {output}, needed a file name that ends in .nii.gz or .nii")
    scans = len(local_field)
    _check_numbers(scans, len(mask), len(magnitude), len(transforms), registered, b0_direction)
    found = methods.find("cosmos", "from orientations")
    positions, notes = [], []
    for index in range(scans):
        b0 = None if b0_direction is None else b0_direction[3 * index : 3 * index + 3]
        given = local_field[index], mask[index], magnitude[index] if magnitude else None
        position, said = _read(*given, b0, transforms[index] if transforms else None)
        field = in_ppm(position.local_field, position.mask, units, field_strength, echo_time, name=str(given[0]))
        positions.append(replace(position, local_field=field))
        notes += said
    with progress() as begin:
        if registered:
            for index in range(1, scans):
                begin(f"registering scan {index + 1} to the first", scans + 1)
                motion = register(positions[index], positions[0])
                positions[index] = replace(positions[index], to_common=motion)
            how = "registration of the magnitudes: rigid, by mutual information"
        elif transforms:
            how = "given by the user"
            notes += _turned_around(positions, transforms)
        else:
            how = "none: the files' coordinates were taken for the head's"
            notes.append(
                "Without --transforms or --register, the same scanner coordinates were taken for the same place in "
                "the head in every scan."
            )
        try:
            condition = conditioning([turned_b0(position, positions[0]) for position in positions])
        except InputError as problem:
            hint = "" if registered or transforms else "; give --transforms, --register, or --b0-dir for every scan"
            raise InputError(f"{problem}{hint}") from None
        begin("resampling to the first scan", scans + 1)
        moved = in_first_frame(positions)
        begin("inversion: cosmos", scans + 1)
        chi, misfits = _inverted(moved, settings)
    if condition.doubt is not None:
        notes.append(f"{condition.doubt[0].upper()}{condition.doubt[1:]}.")
    tell(notes)
    inside = torch.stack([position.mask for position in moved]).any(dim=0)
    if reference == "mask":
        chi = torch.where(inside, chi - chi[inside].mean(), chi)
    first = positions[0]
    back = np.linalg.inv(first.to_common)
    record = {
        "command": [Path(part).name if "/" in part else part for part in command],
        "method": found.label,
        "reference": found.reference,
        "parameters": {**found.parameters(), **settings.get(found.name, {})},
        "units": "ppm",
        "chi is relative to": "its mean in the masks" if reference == "mask" else "zero sum over the whole grid",
        "frame": f"that of {local_field[0].name}",
        "voxel size [mm]": space.voxel_size(first.affine),
        "head positions": how,
        "scans": [
            {
                "local field": path.name,
                "B0 direction (voxel axes of the first scan)": one.b0_direction,
                "scanner coordinates to those of the first scan [mm]": (back @ position.to_common).tolist(),
                "Dice coefficient of its mask and the first": round(overlap(position, first), 4),
                "share of its field that chi leaves unexplained": round(misfit, 4),
            }
            for path, position, one, misfit in zip(local_field, positions, moved, misfits, strict=True)
        ],
        "angles between the directions of B0 [degrees]": [round(angle, 2) for angle in condition.angles],
        "conditioning": {
            "mean of D^2 over the scans, smallest": condition.smallest,
            "mean of D^2 over the scans, percentile 1": condition.percentile,
            "condition number": condition.condition_number,
            "noise of chi over that of one field": condition.noise_gain,
        },
        "notes": notes,
        "versions": versions(),
    }
    with whole_file(output) as target:
        nifti.write_volume(target, chi, first.affine, description=f"chi [ppm], {found.label}")
    with whole_file(output.with_name(output.name.split(".nii")[0] + ".json")) as target:
        target.write_text(json.dumps(record, indent=2, default=str) + "\n")
    listed = ", ".join(f"{angle:.1f}" for angle in condition.angles)
    console.print(f"Angles between the directions of B0: {listed} degrees")
    print_table({"condition number": condition.condition_number, "noise gain": condition.noise_gain})
    console.print(f"Map: {output}")


def _check_numbers(
    scans: int, masks: int, magnitudes: int, transforms: int, registered: bool, b0: Sequence[float] | None
) -> None:
    if scans < 2:
        raise InputError("there is one local field: COSMOS needs those of two scans, better three, of one head turned")
    for option, count in (("--mask", masks), ("--magnitude", magnitudes), ("--transforms", transforms)):
        if count != scans and (count or option == "--mask"):
            raise InputError(f"{option} names {count} files for {scans} local fields: needed one for each, in order")
    if b0 is not None and len(b0) != 3 * scans:
        raise InputError(f"--b0-dir has {len(b0)} numbers for {scans} scans: needed three for each")
    if registered and transforms:
        raise InputError("--register finds what --transforms says: give one of them")
    if registered and not magnitudes:
        raise InputError("--register needs the --magnitude of every scan")


def _read(
    local_field: Path, mask: Path, magnitude: Path | None, b0: Sequence[float] | None, transform: Path | None
) -> tuple[Position, tuple[str, ...]]:
    field, affine = nifti.read_volume(local_field)
    inside, notes = nifti.read_mask(mask, affine, field.shape, str(local_field))
    weight = None
    if magnitude is not None:
        weight, other = nifti.read_volume(magnitude)
        checks.same_grid(str(magnitude), weight.shape, other, str(local_field), field.shape, affine)
        if not weight[inside].any():
            raise InputError(f"{magnitude} is zero everywhere in {mask}: do the two belong together?")
    direction = space.b0_from_affine(affine) if b0 is None else space.b0_from_user(b0)
    motion = np.eye(4) if transform is None else _read_transform(transform)
    return Position(field, inside, affine, direction, motion, weight), notes


def _read_transform(path: Path) -> np.ndarray:
    try:
        numbers = np.array([[float(word) for word in line.split()] for line in path.read_text().splitlines() if line])
    except (OSError, ValueError):
        raise InputError(f"{path} cannot be read as a text file of four lines with four numbers each") from None
    return rigid(numbers, str(path))


def _turned_around(positions: Sequence[Position], names: Sequence[Path]) -> list[str]:
    """A sentence for each transform whose inverse would lay the masks on each other better."""
    first, found = positions[0], []
    for position, name in zip(positions[1:], names[1:], strict=True):
        motion = np.linalg.inv(first.to_common) @ position.to_common
        inverse = replace(position, to_common=first.to_common @ np.linalg.inv(motion))
        as_given, turned = overlap(position, first), overlap(inverse, first)
        if turned > as_given + 0.01:
            found.append(
                f"The masks overlap better with the inverse of {name.name} (Dice {turned:.3f}, not {as_given:.3f}): it "
                "has to lead from the scanner coordinates of its scan to the common space, not back."
            )
    return found


def _inverted(moved: Sequence[Position], settings: Mapping[str, Mapping[str, Any]]) -> tuple[torch.Tensor, list[float]]:
    """chi [ppm], and the share of each field in its mask that chi does not explain."""
    size = space.voxel_size(moved[0].affine)
    masks = torch.stack([position.mask for position in moved])
    fields = torch.stack([position.local_field for position in moved])
    x, y, z = masks.shape[1:]
    padding = from_local_field.missing_margin(masks.any(dim=0), size)
    dipoles = [DipoleModel((x, y, z), size, position.b0_direction, padding=padding) for position in moved]
    weights = [p.magnitude / p.magnitude[p.mask].mean() for p in moved if p.magnitude is not None]
    weight = torch.stack(weights) if weights else None
    chi = methods.call(methods.find("cosmos", "from orientations"), settings, fields, masks, dipoles, weight)
    misfits = []
    for dipole, field, mask in zip(dipoles, fields, masks, strict=True):
        rest = (dipole(chi) - field)[mask].norm() / field[mask].norm()
        misfits.append(float(rest) if math.isfinite(rest) else 0.0)
    return chi, misfits
