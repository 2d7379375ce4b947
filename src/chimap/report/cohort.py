"""The page of a cohort: who needs a second look, and how every region's values are spread. One HTML file."""

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chimap import __version__
from chimap.group import FEWEST, OUTLIER, Member, Table, limits, number
from chimap.io.output import whole_file
from chimap.plan import WHOLE_MASK
from chimap.report.strips import SCATTER_HEIGHT, WIDTH, Drawing, Point, Scatter, scatter, shown, strip
from chimap.report.template import script, script_hash, template

_LONGEST = 30  # letters of a label in a drawing
_NAMED = 5  # acquisitions named where something differs


@dataclass(frozen=True)
class Measure:
    """A column of the table as people read it.

    Attributes:
        column: Of the table.
        name: What it is.
        unit: As shown.
        factor: From the table's unit to that.
        digits: After the point; of volumes, which range from microlitres to litres, those of the smallest.
    """

    column: str
    name: str
    unit: str
    factor: float
    digits: int


CHI = Measure("chi_mean", "Susceptibility", "ppm", 1.0, 4)
MEASURES = (CHI, Measure("r2star_mean", "R2*", "1/s", 1.0, 1), Measure("volume_mm3", "Volume", "mL", 1e-3, 2))

Region = tuple[str, str]
"""Segmentation and name."""
Rows = Mapping[str, Mapping[Region, Mapping[str, str]]]
"""{acquisition: {region: its row}}."""


@dataclass(frozen=True)
class Spread:
    """The values of a region, as the template takes them.

    Attributes:
        title: What was measured.
        words: Median, limits and number of values.
        drawing: Of the values.
        unnamed: Outliers without a label in the drawing.
    """

    title: str
    words: str
    drawing: Drawing
    unnamed: int


def write_cohort_page(
    path: Path, table: Table, *, failed: Mapping[str, str] | None = None, ages: Mapping[str, float] | None = None
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: The HTML file, beside the reports of the acquisitions, to which it links where they are there.
        table: From `group.collect`.
        failed: {acquisition: why} where the last attempt failed or nothing was tried; those without values among them.
        ages: {participant_id: years}.

    Raises:
        InputError: The place cannot be written to.
    """
    failed = dict(failed or {})
    rows: Rows = {
        name: {(row["segmentation"], row["region"]): row for row in member.rows}
        for name, member in table.members.items()
    }
    regions, settings = _regions(rows), _settings(table.members)
    sorting = script("sorting.js")
    people = {name.split("_")[0] for name in rows}
    sessions = {(row["participant_id"], row["session_id"]) for row in table.rows if row["session_id"] != "n/a"}
    text = template("cohort.html.j2").render(
        title="Region values of a cohort",
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        script=sorting,
        script_hash=script_hash(sorting),
        counts=[
            _count(len(people), "person", "people"),
            *([_count(len(sessions), "session")] if sessions else []),
            _count(len(rows), "acquisition"),
        ],
        people_without=sorted({name.split("_")[0] for name in failed.keys() - rows.keys()} - people),
        warnings=table.warnings,
        pages={page.stem for page in path.parent.glob("sub-*.html")},
        outliers=_outliers(rows),
        judged=len(rows) >= FEWEST,
        doubts=_doubts(table.members, failed),
        differ=[setting for setting in settings if len(setting[1]) > 1],
        alike=[setting for setting in settings if len(setting[1]) == 1],
        methods=_methods(table.members),
        zero_is_mean=any(_zero(member.about).endswith(WHOLE_MASK) for member in table.members.values()),
        spreads=[(region, list(_spreads(region, rows))) for region in regions],
        ages=[(region, found) for region in regions if (found := _against_age(region, rows, ages or {})) is not None],
        regions=regions,
        values=[(name, _participant(own), [_cell(own.get(one)) for one in regions]) for name, own in rows.items()],
        ages_known=ages or {},
        several=len({segmentation for segmentation, _ in regions} - {"n/a"}) > 1,
        outlier=OUTLIER,
        fewest=FEWEST,
        width=WIDTH,
        scatter_height=SCATTER_HEIGHT,
    )
    with whole_file(path) as target:
        target.write_text(text, encoding="utf-8")


def _regions(rows: Rows) -> list[Region]:
    """Of all acquisitions, the whole mask first, the others in the order of their segmentations."""
    found = dict.fromkeys(region for own in rows.values() for region in own)
    return sorted(found, key=lambda region: region[0] != "n/a")


def _outliers(rows: Rows) -> list[dict[str, Any]]:
    """The farthest out first."""
    medians = {
        (region, measure): statistics.median(point.value for point in points)
        for region in _regions(rows)
        for measure in MEASURES
        if (points := _points(region, measure, rows))
    }
    found = [
        {
            "name": name,
            "region": region,
            "measure": measure,
            "value": measure.factor * number(row[measure.column]),
            "text": _text(measure.factor * number(row[measure.column]), measure, medians[region, measure]),
            "median": medians[region, measure],
            "median_text": _text(medians[region, measure], measure, medians[region, measure]),
            "z": number(row[f"{measure.column}_z"]),
            "z_text": shown(number(row[f"{measure.column}_z"]), 1),
        }
        for name, own in rows.items()
        for region, row in own.items()
        for measure in MEASURES
        if measure.column in row["outlier"].split(",")
    ]
    return sorted(found, key=lambda one: -abs(one["z"]))


def _doubts(members: Mapping[str, Member], failed: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Acquisition, what is the matter in two words, and the sentence."""
    found = [(name, "no values", why) for name, why in failed.items() if name not in members]
    found += [(name, "failed, older values", why) for name, why in failed.items() if name in members]
    for name, member in members.items():
        warnings = member.about.get("Warnings")
        found += [(name, "warning", str(text)) for text in (warnings if isinstance(warnings, list) else [])]
    return found


def _settings(members: Mapping[str, Member]) -> list[tuple[str, list[tuple[str, int, str]]]]:
    """How the maps were made: a setting, and its values with how many have each and, where values differ, who."""
    each = {name: dict(_about(member.about)) for name, member in members.items()}
    found = []
    for key in dict.fromkeys(key for about in each.values() for key in about):
        owners: dict[str, list[str]] = {}
        for name, about in each.items():
            owners.setdefault(about.get(key, "not given"), []).append(name)
        ranked = sorted(owners.items(), key=lambda one: -len(one[1]))
        values = []
        for rank, (value, names) in enumerate(ranked):
            some = ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")
            values.append((value, len(names), some if rank else ""))
        found.append((key, values))
    return found


def _about(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What of an acquisition should be alike in all, in words."""
    if "EstimationAlgorithm" in about:
        yield "Method", str(about["EstimationAlgorithm"])
    if "Reference" in about:
        yield "Zero of the susceptibility", _zero(about)
    if "MagneticFieldStrength" in about:
        yield "Field strength", f"{about['MagneticFieldStrength']} T"
    if "EchoTime" in about:
        times = about["EchoTime"] if isinstance(about["EchoTime"], list) else [about["EchoTime"]]
        known = all(isinstance(time, int | float) for time in times)
        yield "Echo times", f"{', '.join(f'{1000 * t:.4g}' for t in times)} ms" if known else str(times)
    settings = about.get("Settings")
    yield from _flat(settings if isinstance(settings, dict) else {})


def _zero(about: Mapping[str, Any]) -> str:
    """Where chi is zero, without the numbers of this one acquisition that `Reference.sentence` ends with."""
    return re.split(r" \(\d+ voxels?, ", str(about.get("Reference", "")))[0]


def _flat(settings: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, "" if key in ("Plan", "Given", "settings") else f"{within}{key}.")
        elif value is not None:
            text = ("yes" if value else "no") if isinstance(value, bool) else str(value)
            yield f"{within}{key}".replace("_", " "), text


def _methods(members: Mapping[str, Member]) -> tuple[str, str] | None:
    """The paragraph for a paper of one acquisition whose settings most others share, and that acquisition's name."""
    ways = {name: repr(member.about.get("Settings")) for name, member in members.items()}
    common = Counter(ways.values()).most_common(1)[0][0]
    for name, member in members.items():
        if ways[name] == common and member.about.get("Methods"):
            return str(member.about["Methods"]), name
    return None


def _spreads(region: Region, rows: Rows) -> Iterator[Spread]:
    """One for each measure that anybody has."""
    for measure in MEASURES:
        points = _points(region, measure, rows)
        if not points:
            continue
        values = [point.value for point in points]
        median, usual = statistics.median(values), limits(values)
        digits = _digits(measure, median)
        words = f"median {shown(median, digits)}"
        if usual is not None:
            words += f", limits {shown(usual[0], digits)} to {shown(usual[1], digits)}"
        words += f", n\u00a0=\u00a0{len(points)}"
        drawing = strip(points, median, digits)
        unnamed = sum(1 for mark in drawing.marks if not mark.label)
        yield Spread(f"{measure.name} [{measure.unit}]", words, drawing, unnamed)


def _against_age(region: Region, rows: Rows, ages: Mapping[str, float]) -> Scatter | None:
    """chi above age; None where fewer than two people have both, or all have the same chi, as where it is zero."""
    of = {name: _participant(own) for name, own in rows.items()}
    points = [point for point in _points(region, CHI, rows) if of[point.name] in ages]
    if len({of[point.name] for point in points}) < 2 or len({point.value for point in points}) < 2:
        return None
    return scatter([ages[of[point.name]] for point in points], points, CHI.digits)


def _points(region: Region, measure: Measure, rows: Rows) -> list[Point]:
    found = []
    for name, own in rows.items():
        row = own.get(region, {})
        value = measure.factor * number(row.get(measure.column))
        if math.isfinite(value):
            odd = measure.column in row["outlier"].split(",")
            label = name.replace("_", " ")
            label = label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"
            found.append(Point(value, label, name, odd))
    return found


def _participant(own: Mapping[Region, Mapping[str, str]]) -> str:
    return next(iter(own.values()))["participant_id"]


def _cell(row: Mapping[str, str] | None) -> tuple[str, str, str, bool]:
    """Mean of chi to sort by, as shown, its SD, and whether it is an outlier."""
    if row is None or not math.isfinite(value := number(row.get("chi_mean"))):
        return "", "n/a", "", False
    sd = number(row.get("chi_sd"))
    spread = shown(sd, CHI.digits) if math.isfinite(sd) else ""
    return repr(value), shown(value, CHI.digits), spread, "chi_mean" in row["outlier"].split(",")


def _text(value: float, measure: Measure, median: float) -> str:
    return f"{shown(value, _digits(measure, median))} {measure.unit}"


def _digits(measure: Measure, median: float) -> int:
    """After the point, for values about as large as their median."""
    if measure is CHI or abs(median) < 10:
        return measure.digits
    return min(measure.digits, 1 if abs(median) < 100 else 0)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or f'{one}s'}"
