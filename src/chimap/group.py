"""Region values of a whole cohort in one table, read from derivatives alone."""

import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chimap.errors import InputError
from chimap.io.bids_names import joined, parse

OUTLIER = 3.5
"""A robust z beyond this is called an outlier (Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers)."""

FEWEST = 5
"""Values below which nothing is called unusual."""
_JUDGED = ("chi_mean", "r2star_mean", "volume_mm3")

COLUMNS = {
    "participant_id": {"Description": "As in the dataset"},
    "session_id": {"Description": "As in the dataset; n/a where it has no sessions"},
    "acquisition": {"Description": "What else tells acquisitions apart, such as acq-hires_run-2; n/a if nothing"},
}
ADDED = {
    f"{column}_z": {
        "Description": f"Robust z of {column} among all acquisitions of this region: 0.6745 (x - median) / MAD; "
        f"n/a for fewer than {FEWEST} values"
    }
    for column in _JUDGED
} | {
    "outlier": {
        "Description": f"Which of these are beyond {OUTLIER:g} either way, by commas; n/a if none",
    }
}


@dataclass(frozen=True)
class Member:
    """An acquisition of a cohort.

    Attributes:
        rows: {column: text} for each region, n/a where there is nothing.
        about: What the JSON of its map says, less the record of files.
    """

    rows: list[dict[str, str]]
    about: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Region values of a cohort.

    Attributes:
        members: {name of an acquisition: its values}.
        columns: {column: what it is}, in order.
        warnings: What a reader should know, one sentence each.
    """

    members: dict[str, Member]
    columns: dict[str, dict[str, str]]
    warnings: tuple[str, ...]

    @property
    def rows(self) -> list[dict[str, str]]:
        """Those of all acquisitions."""
        return [row for member in self.members.values() for row in member.rows]


def collect(output: Path, wanted: Sequence[str] | None = None) -> Table:
    """Put the region values of all acquisitions of a folder of derivatives together.

    Args:
        output: Folder that `chimap bids … participant` wrote.
        wanted: Labels of subjects, without "sub-"; all if None.

    Raises:
        InputError: There are none, or a table cannot be read.
    """
    members: dict[str, Member] = {}
    columns: dict[str, dict[str, str]] = dict(COLUMNS)
    ways, warnings = {}, []
    files = sorted([*output.glob("sub-*/anat/*_regions.tsv"), *output.glob("sub-*/ses-*/anat/*_regions.tsv")])
    for path in files:
        name = parse(path.name)
        if name is None or (wanted is not None and name.labels.get("sub") not in wanted):
            continue
        acquisition = joined(name.entities)
        about = _json(path.with_name(f"{acquisition}_Chimap.json"))
        if about is None:  # cut off between two files: the next `participant` makes it again
            warnings.append(f"{acquisition} has region values and no finished map: it was left out")
            continue
        ways.setdefault(json.dumps(about.get("Settings"), sort_keys=True), []).append(acquisition)
        described = _json(path.with_suffix(".json")) or {}
        columns |= {column: text for column, text in described.items() if column != "Inputs"}
        labels = name.labels
        who = {
            "participant_id": f"sub-{labels['sub']}",
            "session_id": f"ses-{labels['ses']}" if "ses" in labels else "n/a",
            "acquisition": joined(name.without("sub", "ses")) or "n/a",
        }
        kept = {key: value for key, value in about.items() if key not in ("Inputs", "Sources", "Provenance")}
        members[acquisition] = Member([who | row for row in _read(path)], kept)
    if not members:
        raise InputError(f"{output} holds no region values: run `chimap bids … participant` first")
    if len(ways) > 1:
        odd = min(ways.values(), key=len)
        warnings.append(
            f"maps of {len(ways)} plans or versions stand in one table, {', '.join(odd[:5])}"
            f"{' …' if len(odd) > 5 else ''} unlike the others: their values may differ for that alone"
        )
    table = Table(members, columns | ADDED, tuple(warnings))
    _judge(table.rows)
    return table


def failures(output: Path) -> dict[str, str]:
    """{acquisition: why} of those that failed when `chimap bids … participant` last came to them, by its logs."""
    found: dict[str, str] = {}
    for path in sorted((output / "logs").glob("*.tsv")):  # names begin with the time
        try:
            with path.open(encoding="utf-8", newline="") as stream:
                rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
        except (OSError, ValueError, csv.Error):
            continue
        for row in rows:
            name = row.get("acquisition") or ""
            found.pop(name, None)
            if row.get("status") == "failed":
                found[name] = row.get("sentence") or "no reason given"
    return found


def ages(dataset: Path) -> dict[str, float]:
    """{participant_id: age} where the dataset's participants.tsv has a number; empty where it has none at all."""
    try:
        with (dataset / "participants.tsv").open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, ValueError, csv.Error):
        return {}
    found: dict[str, float] = {}
    for row in rows:
        try:
            age = float(row.get("age") or "n/a")
        except ValueError:  # n/a, or 89+ where people are very old
            continue
        if math.isfinite(age):
            found[row.get("participant_id") or ""] = age
    return found


def robust_z(values: Sequence[float]) -> list[float]:
    """0.6745 (x - median) / MAD of each value; NaN where a value is, or where too few are left or half are equal."""
    middle, unit = _scale(values)
    return [(value - middle) / unit for value in values]


def limits(values: Sequence[float]) -> tuple[float, float] | None:
    """Between which values are no outliers; None where `robust_z` is NaN."""
    middle, unit = _scale(values)
    return (middle - OUTLIER * unit, middle + OUTLIER * unit) if math.isfinite(unit) else None


def _scale(values: Sequence[float]) -> tuple[float, float]:
    """Median, and MAD / 0.6745; NaN where that is no measure of spread."""
    known = [value for value in values if math.isfinite(value)]
    if len(known) < FEWEST:
        return math.nan, math.nan
    middle = statistics.median(known)
    spread = statistics.median(abs(value - middle) for value in known)
    return middle, spread / 0.6745 if spread > 0 else math.nan


def _judge(rows: Sequence[dict[str, str]]) -> None:
    """Add robust z and outliers to rows, each region of a segmentation by itself."""
    regions: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        regions.setdefault((row["segmentation"], row["region"]), []).append(row)
    for group in regions.values():
        beyond: list[list[str]] = [[] for _ in group]
        for column in _JUDGED:
            for row, z, names in zip(group, robust_z([number(row.get(column)) for row in group]), beyond, strict=True):
                row[f"{column}_z"] = f"{z:.3g}" if math.isfinite(z) else "n/a"
                if abs(z) > OUTLIER:
                    names.append(column)
        for row, names in zip(group, beyond, strict=True):
            row["outlier"] = ",".join(names) or "n/a"


def number(text: str | None) -> float:
    """A cell as a number; NaN for n/a."""
    return math.nan if text in (None, "n/a") else float(text)


def _read(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
        for row in rows:
            for column in (*_JUDGED,):
                number(row.get(column))
        if not rows or any(not {"segmentation", "region"} <= row.keys() or None in row.values() for row in rows):
            raise ValueError("a column or a cell is missing")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a table of region values: {error}") from None
    return rows


def _json(path: Path) -> Mapping[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
