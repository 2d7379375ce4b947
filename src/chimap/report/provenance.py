"""The record of a run: what went in, what was done, with which versions. Enough to do it again."""

import hashlib
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from chimap import __version__
from chimap.io.output import whole_file
from chimap.plan import Plan
from chimap.report.methods import methods_used
from chimap.scan import Maps, Scan


def provenance(
    scan: Scan, maps: Maps, plan: Plan, *, command: Sequence[str], seed: int | None = None
) -> dict[str, Any]:
    """Everything that led from the input to the maps.

    Absolute paths are cut to their last part wherever they appear, as they may hold names of people; no host
    or user is recorded.

    Args:
        scan: The input.
        maps: What was made of it.
        plan: How.
        command: The command line, in words.
        seed: Of the generator, where something was random.

    Returns:
        Values that JSON can hold.
    """
    return {
        "command": [_without_folder(word) for word in command],
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "inputs": [_checksum(Path(file)) for file in scan.files],
        "acquisition": {
            "echo_times_s": list(scan.echo_times),
            "field_strength_T": scan.field_strength,
            "voxel_size_mm": list(scan.voxel_size),
            "b0_direction_in_voxel_axes": list(scan.b0_direction),
            "shape": list(scan.shape),
            "affine_mm": [[float(value) for value in row] for row in scan.affine],
            "magnitude": scan.magnitude is not None,
        },
        "mask": "the user's" if scan.mask is not None else f"chimap's method {plan.mask}",
        "mask_noise_limit": plan.noise_limit_for(own_mask=scan.mask is None),
        "mask_erosion_mm": plan.erosion,
        "two_pass": plan.two_pass,
        "chi_reference": None if maps.reference is None else asdict(maps.reference),
        "regions": None if maps.segmentation is None else maps.segmentation.scheme,
        "choice_of_regularisation": plan.choose_regularisation,
        "methods": {
            row.method.stage: {
                "name": row.method.label,
                "reference": row.method.reference,
                "parameters": {name: _plain(value) for name, value in row.parameters.items()},
                "changed_from_default": {name: _plain(value) for name, value in row.changed.items()},
            }
            for row in methods_used(scan, plan)
        },
        "voxels": {"brain_mask": int(maps.brain_mask.sum()), "mask": int(maps.mask.sum())},
        "notes": [without_folders(note, scan) for note in (*scan.notes, *maps.notes)],
        "warnings": [without_folders(warning, scan) for warning in (*scan.warnings, *maps.warnings)],
        "checks": {
            finding.name: {"doubtful": finding.doubtful, "found": finding.sentence} for finding in maps.findings
        },
        "seconds": {stage: round(float(seconds), 3) for stage, seconds in maps.seconds.items()},
        "seed": seed,
        "versions": versions(),
    }


def write_provenance(
    path: Path,
    scan: Scan,
    maps: Maps,
    plan: Plan,
    *,
    command: Sequence[str],
    seed: int | None = None,
    outputs: Sequence[Path] = (),
) -> None:
    """Write `provenance` as JSON with sorted keys and one line for a row of numbers, whole or not at all.

    Args:
        path: The file.
        scan: As `provenance` has it, like the others.
        maps: Likewise.
        plan: Likewise.
        command: Likewise.
        seed: Likewise.
        outputs: Files beside it or below that belong to the run, so that `results_of` knows them again.
    """
    record = provenance(scan, maps, plan, command=command, seed=seed)
    record["outputs"] = [{**_checksum(file), "name": file.relative_to(path.parent).as_posix()} for file in outputs]
    text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    text = re.sub(r"\[\n[-+.\deE,\s]+\]", lambda row: "[" + " ".join(row[0][1:-1].split()) + "]", text)
    with whole_file(path) as target:
        target.write_text(text + "\n", encoding="utf-8")


def results_of(folder: Path) -> list[str]:
    """Files in a folder that an earlier run wrote there and nobody has changed since, named from the folder on."""
    try:
        rows = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["outputs"]
        listed = [(str(row["name"]), row["sha256"]) for row in rows]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    within = [row for row in listed if not Path(row[0]).is_absolute() and ".." not in Path(row[0]).parts]
    return [name for name, digest in within if digest and _checksum(folder / name)["sha256"] == digest]


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on, and the kind of machine; the machine itself stays unnamed."""
    found = {"chimap": __version__, "python": platform.python_version()}
    found |= {package: metadata.version(package) for package in ("torch", "numpy", "scipy", "nibabel")}
    return found | {"system": platform.system(), "machine": platform.machine()}


def without_folders(sentence: str, scan: Scan) -> str:
    """A note with the paths of the input files cut to their names."""
    for file in sorted(scan.files, key=len, reverse=True):
        sentence = sentence.replace(str(file), Path(file).name)
    return sentence


def _without_folder(word: str) -> str:
    option, equals, value = word.partition("=")
    if equals and option.startswith("-"):
        return f"{option}={_without_folder(value)}"
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(word).is_absolute():
            return kind(word).name
    return word


def _checksum(file: Path) -> dict[str, str | None]:
    """SHA-256 of a file; None where it cannot be read any more, which must not cost the user the maps."""
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        digest = None
    return {"name": file.name, "sha256": digest}


def _plain(value: Any) -> Any:
    """As JSON holds it: tuples become lists, and what has no counterpart (infinity too) its text."""
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
