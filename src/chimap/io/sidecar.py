"""What the BIDS JSON file beside an image says: only the fields a scan needs, so no name gets further."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chimap.errors import InputError
from chimap.io import checks
from chimap.io.bids_names import metadata_files


@dataclass(frozen=True)
class Sidecar:
    """Fields of a BIDS sidecar, None or empty where it has none.

    Attributes:
        name: Of the JSON file, for messages.
        echo_times: EchoTime [s], several where the field is a list.
        echo_pair: EchoTime1 and EchoTime2 [s] of a phase difference.
        field_strength: MagneticFieldStrength [T].
        units: Units, as written.
        manufacturer: Manufacturer, as written.
        image_type: ImageType, upper case.
        series: SeriesNumber.
    """

    name: str
    echo_times: tuple[float, ...] = ()
    echo_pair: tuple[float, float] | None = None
    field_strength: float | None = None
    units: str | None = None
    manufacturer: str | None = None
    image_type: tuple[str, ...] = ()
    series: int | None = None

    @property
    def phase_difference(self) -> float | None:
        """Echo time [s] of a phase difference, where the sidecar describes one.

        Some scanners list the first two echo times of the protocol beside every image; it is a difference
        only where the image's own echo time is missing, the later one or the difference itself.
        """
        if self.echo_pair is None:
            return None
        early, late = sorted(self.echo_pair)
        own = self.echo_times
        if len(own) > 1 or (own and not any(checks.same_time(own[0], time) for time in (late, late - early))):
            return None
        return round(late - early, 9)


def sidecar_path(image: Path) -> Path:
    """The JSON file that belongs to an image: same name, other suffix."""
    name = image.name
    for suffix in (".nii.gz", ".nii", ".hdr", ".img"):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    return image.with_name(name + ".json")


def read_sidecar(image: Path, root: Path | None = None) -> Sidecar:
    """The sidecar of an image; an empty one where there is no JSON file.

    Args:
        image: Whose sidecar.
        root: Folder of the BIDS dataset that the image belongs to: JSON files above it that apply count too, the nearer
            ones more. None: only the file beside the image.

    Raises:
        InputError: A file is no JSON, a field cannot be what it should, or two files contradict each other of which
            neither is nearer.
    """
    beside = sidecar_path(image)
    if root is None:
        files = [beside] if beside.exists() else []
    else:
        files = metadata_files(image, root)
    if not files:
        return Sidecar(beside.name)
    said = _merged(image, files)
    fields: dict[str, Any] = {key: value for key, (_, value) in said.items()}
    where = {key: path for key, (path, _) in said.items()}
    source = where.get("EchoTime", files[-1])
    times = fields.get("EchoTime")
    numbers = times if isinstance(times, list) else [] if times is None else [times]
    echo_times = tuple(_number(source, "EchoTime", value, "seconds") for value in numbers)
    pair = [_number(where[key], key, fields[key], "seconds") for key in ("EchoTime1", "EchoTime2") if key in fields]
    checks.echo_times((*echo_times, *pair), str(source))
    strength = fields.get("MagneticFieldStrength")
    if strength is not None:
        strength = _number(where["MagneticFieldStrength"], "MagneticFieldStrength", strength, "tesla")
        checks.field_strength(strength, str(where["MagneticFieldStrength"]))
    image_type = fields.get("ImageType")
    series = fields.get("SeriesNumber")
    return Sidecar(
        name=str(source),
        echo_times=echo_times,
        echo_pair=(pair[0], pair[1]) if len(pair) == 2 and pair[0] != pair[1] else None,
        field_strength=strength,
        units=_text(where, "Units", fields),
        manufacturer=_text(where, "Manufacturer", fields),
        image_type=tuple(str(word).upper() for word in image_type) if isinstance(image_type, list) else (),
        series=series if isinstance(series, int) else None,
    )


_USED = (
    "EchoTime", "EchoTime1", "EchoTime2", "MagneticFieldStrength", "Units", "Manufacturer", "ImageType", "SeriesNumber",
)  # fmt: skip


def _merged(image: Path, files: Sequence[Path]) -> dict[str, tuple[Path, Any]]:
    """Fields that a scan needs and the file that gives each; where several do, the last one's word counts."""
    said: dict[str, tuple[Path, Any]] = {}
    for path in files:
        for key, value in _content(path).items():
            if key not in _USED or value is None:
                continue
            other, before = said.get(key, (None, value))
            if other is not None and _equally_near(path, other) and value != before:
                raise InputError(
                    f"{other} and {path.name} both apply to {image.name} and give different {key}: neither is nearer"
                )
            said[key] = path, value
    return said


def _equally_near(a: Path, b: Path) -> bool:
    return a.parent == b.parent and a.name.count("_") == b.name.count("_")


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}, needed an object with BIDS fields")
    return content


def _number(path: Path, key: str, value: Any, unit: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{path}: {key} is {json.dumps(value)}, needed a number in {unit}")
    return float(value)


def _text(where: Mapping[str, Path], key: str, fields: Mapping[str, Any]) -> str | None:
    value = fields.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InputError(f"{where[key]}: {key} is {json.dumps(value)}, needed text")
    return value.strip() or None
