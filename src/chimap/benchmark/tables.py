"""What the benchmark measured, as Markdown and as JSON."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chimap.arrays import Shape
from chimap.benchmark.cases import FIELD_OF_VIEW, Case
from chimap.benchmark.inputs import TRACKS
from chimap.benchmark.run import ROUNDS, Row, Stages, Study
from chimap.methods import Method

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Column:
    """One measure in a table.

    Attributes:
        key: In `Row.values`.
        heading: In the table.
        places: Decimals.
        meaning: For the list of columns.
    """

    key: str
    heading: str
    places: int
    meaning: str


COLUMNS: tuple[Column, ...] = (
    Column("NRMSE [%]", "NRMSE [%]", 0, "root mean square error over that of the truth; rewards weak maps"),
    Column("dNRMSE [%]", "dNRMSE [%]", 0, "the same after the best line is taken out: scale does not count"),
    Column("slope", "slope", 2, "of chi over the truth; below 1 where chi is underestimated"),
    Column("correlation", "corr.", 2, "Pearson's"),
    Column("XSIM", "XSIM", 2, "structural similarity in ppm; 1 is best"),
    Column("HFEN [%]", "HFEN [%]", 0, "error of edges and fine structure"),
    Column("dNRMSE, tissue [%]", "tissue [%]", 0, "dNRMSE of thalamus, white and grey matter, without their rims"),
    Column("dNRMSE, deep grey [%]", "deep grey [%]", 0, "dNRMSE of the deep grey nuclei"),
    Column("dNRMSE, blood [%]", "blood [%]", 0, "dNRMSE of veins"),
    Column("deviation from linear slope", "DLS", 2, "|1 - slope| of a line through the means of the deep grey nuclei"),
    Column(
        "calcification: deviation of the moment [%]",
        "calc. moment [%]",
        0,
        "deviation of a calcification's moment (sum of chi) from the true one",
    ),
    Column("calcification: streak", "calc. streak", 3, "what streaks around a calcification, over its mean chi"),
    Column("haemorrhage: deviation of the moment [%]", "haem. moment [%]", 0, "the same of haemorrhages"),
    Column("haemorrhage: streak", "haem. streak", 3, "the same of haemorrhages"),
    Column("lesions: RMSE [ppm]", "spots RMSE [ppm]", 3, "of the mean chi of the spots of the case linearity"),
    Column("lesions: slope", "spots slope", 2, "of their mean chi over the true one"),
)
OVERVIEW = COLUMNS[:10]


def markdown(
    study: Study,
    cases: Sequence[Case],
    methods: Sequence[Method],
    *,
    shape: Shape,
    command: str,
    machine: Mapping[str, Any],
    pictures: Sequence[str] = (),
) -> str:
    """The whole report.

    Args:
        study: What was measured.
        cases: In order.
        methods: In order.
        shape: Grid of the cases of 1 mm.
        command: That made it.
        machine: From `machine_record`.
        pictures: Files below figures/ that stand before the cases.
    """
    heads = list(dict.fromkeys(one.head for one in study.stages))
    names = [method.name for method in methods]
    lines = [
        "# Benchmark",
        "",
        f"Made by `{command}`: {len(methods)} methods on {len(cases)} cases of {_count(len(heads), 'head')} "
        f"({', '.join(heads)}).",
        "",
        _scale_sentence(shape),
        "",
        "Two tracks. **inversion**: the true local field with field error and noise goes in, with the true mask. "
        "**full chain**: wrapped phase goes in; chimap makes the mask and the local field, once for each case and "
        "the same for all inversions, and chi is compared where its mask and the true one meet. "
        "Every case is like axial but for what it says.",
        "",
    ]
    with_error = [case.name for case in cases if case.field_error > 0]
    clean = [case.name for case in cases if not case.field_error > 0 and not case.head_follows and not case.linearity]
    lines += _overview("Cases with field error, as on real scans: choose by this table", with_error, study, names)
    lines += _overview("Clean cases, without the series of orientations and the spots", clean, study, names)
    lines += _speed(study, machine)
    lines += ["## Columns", "", "Both maps minus their mean in the mask; voxels of the mask only.", ""]
    lines += [f"- **{column.heading}**: {column.meaning}." for column in COLUMNS]
    lines += ["- **seconds**: of the inversion alone; one run, but the median in the row that was timed.", ""]
    lines += [line for name in pictures for line in (f"![{name}](figures/{name}.png)", "")]
    for case in cases:
        lines += _case(case, study, names, shape)
    return "\n".join(lines)


def record(
    study: Study,
    cases: Sequence[Case],
    methods: Sequence[Method],
    *,
    shape: Shape,
    command: Sequence[str],
    machine: Mapping[str, Any],
) -> str:
    """Everything as JSON, every head for itself; what is not finite is null."""
    heads = list(dict.fromkeys(one.head for one in study.stages))
    found = {
        "command": list(command),
        "scale": "full" if _is_full(shape) else "not full",
        "grid of the cases of 1 mm": shape,
        "heads": heads,
        "machine": machine,
        "methods": {
            method.name: {"reference": method.reference, "parameters": method.parameters()} for method in methods
        },
        "cases": {case.name: _described(case, shape) for case in cases},
        "speed": {
            "case": study.timed,
            "rounds": ROUNDS,
            "methods": {
                one.method: {
                    "seconds": one.seconds,
                    "median seconds": one.median,
                    "peak memory [MiB]": one.memory,
                    "failure": one.failure,
                }
                for one in study.speed
            },
        },
        "field stages": [
            {"case": one.case, "head": one.head, "seconds": one.seconds, **one.values, "failure": one.failure}
            for one in study.stages
        ],
        "rows": [
            {
                "case": row.case,
                "head": row.head,
                "track": row.track,
                "method": row.method,
                "values": row.values,
                "seconds": row.seconds,
                "spots: true and found mean [ppm]": row.spots,
                "failure": row.failure,
            }
            for row in study.rows
        ],
    }
    return json.dumps(_plain(found), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def machine_record(device: str) -> dict[str, Any]:
    """Threads, processors and versions; the machine itself stays unnamed."""
    import os

    import torch

    from chimap.report.provenance import versions

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    return {"device": name, "threads": torch.get_num_threads(), "CPUs": os.cpu_count(), "versions": versions()}


def typical(rows: Iterable[Row], key: str) -> float:
    """Mean over the rows that have a measure, the median of a dNRMSE, which has no upper bound; NaN if none has it."""
    numbers = [row.values[key] for row in rows if math.isfinite(row.values.get(key, math.nan))]
    if not numbers:
        return math.nan
    return statistics.median(numbers) if key.startswith("dNRMSE") else statistics.fmean(numbers)


def _overview(title: str, cases: Sequence[str], study: Study, methods: Sequence[str]) -> list[str]:
    if not cases:
        return []
    lines = [
        f"## {title}",
        "",
        f"Means over {', '.join(cases)}; medians of what is a dNRMSE, which has no upper bound.",
        "",
    ]
    rows = []
    for track in TRACKS:
        for method in methods:
            own = [row for row in study.rows if (row.track, row.method) == (track, method) and row.case in cases]
            if own:
                failed = sum(row.failure is not None for row in own)
                rows.append((track, method, own, f"{failed} of {len(own)}" if failed else ""))
    shown = [column for column in OVERVIEW if any(math.isfinite(typical(own, column.key)) for _, _, own, _ in rows)]
    failures = any(failed for *_, failed in rows)
    head = ["track", "method", *(column.heading for column in shown), *(["failed"] if failures else [])]
    body = [
        [track, method, *(_number(typical(own, column.key), column.places) for column in shown)]
        + ([failed] if failures else [])
        for track, method, own, failed in rows
    ]
    return [*lines, *_table(head, body), ""]


def _speed(study: Study, machine: Mapping[str, Any]) -> list[str]:
    if not study.speed:
        return []
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    where = "" if machine["device"] == "CPU" else f" on {machine['device']}"
    lines = [
        "## Seconds and memory",
        "",
        f"Of the inversion of the case {study.timed}{where}, from field to chi, without reading files: median of "
        f"{ROUNDS} rounds, methods in turns, after a run that does not count. Memory: how far the peak lies above "
        "the inputs, in a process of its own. With other work on the machine everything is slower: compare ratios.",
        "",
        f"{_count(machine['threads'], 'thread')}, {_count(machine['CPUs'], 'CPU')}; {versions}.",
        "",
    ]
    body = []
    for one in study.speed:
        seconds = DASH if one.median is None else _number(one.median, 2)
        memory = DASH if one.memory is None else _number(one.memory, 0)
        body.append([one.method, seconds, memory, *([] if one.failure is None else [f"failed: {one.failure}"])])
    width = max(len(row) for row in body)
    body = [row + [""] * (width - len(row)) for row in body]
    head = ["method", "seconds", "peak memory [MiB]", "remark"][:width]
    return [*lines, *_table(head, body), ""]


def _case(case: Case, study: Study, methods: Sequence[str], shape: Shape) -> list[str]:
    rows = [row for row in study.rows if row.case == case.name]
    stages = [one for one in study.stages if one.case == case.name]
    grid, size = case.grid(shape)
    lines = [
        f"## {case.name}",
        "",
        f"{case.summary[0].upper()}{case.summary[1:]}. Grid {_times(grid)}, voxels of {_times(size)} mm. "
        + _fields(stages),
        "",
    ]
    lines += [line for one in stages if one.picture for line in (f"![{one.picture}](figures/{one.picture}.png)", "")]
    shown = [column for column in COLUMNS if any(math.isfinite(typical([row], column.key)) for row in rows)]
    body = []
    for track in TRACKS:
        for method in methods:
            own = [row for row in rows if (row.track, row.method) == (track, method)]
            if not own:
                continue
            seconds = [row.seconds for row in own if row.seconds is not None]
            numbers = [_number(typical(own, column.key), column.places) for column in shown]
            numbers.append(_number(sum(seconds) / len(seconds), 2) if seconds else DASH)
            reasons = [f"failed: {row.failure}" for row in own if row.failure is not None]
            body.append([track, method, *numbers, " ".join(dict.fromkeys(reasons))])
    head = ["track", "method", *(column.heading for column in shown), "seconds", "remark"]
    if not any(row[-1] for row in body):
        head, body = head[:-1], [row[:-1] for row in body]
    return [*lines, *_table(head, body), ""]


def _fields(stages: Sequence[Stages]) -> str:
    """What the field stages cost and kept; of several heads each for itself, as one bad field spoils every mean."""
    done = [one for one in stages if one.failure is None]
    if not done:
        return ""
    seconds = [sum(one.seconds.values()) for one in done]
    parts = [f"field stages {sum(seconds) / len(seconds):.1f} s"]
    names = {
        "true mask kept [%]": "of the true mask kept",
        "lesions kept [%]": "of the lesions' voxels kept",
        "local field, NRMSE [%]": "error of the local field",
    }
    for key, words in names.items():
        if all(key in one.values for one in done):
            parts.append(f"{' / '.join(f'{one.values[key]:.0f}' for one in done)} % {words}")
    return f"Full chain: {', '.join(parts)}."


def _scale_sentence(shape: Shape) -> str:
    size = [length / n for length, n in zip(FIELD_OF_VIEW, shape, strict=True)]
    if _is_full(shape):
        return f"Full scale: cases of 1 mm have a grid of {_times(shape)}."
    return (
        f"**Not full scale**: a grid of {_times(shape)} over the same field of view, so that voxels of 1 mm stand for "
        f"{_times(size)} mm. A first look only: the order of methods may differ at full scale."
    )


def _is_full(shape: Shape) -> bool:
    return all(n == length for n, length in zip(shape, FIELD_OF_VIEW, strict=True))


def _described(case: Case, shape: Shape) -> dict[str, Any]:
    grid, size = case.grid(shape)
    return {
        "summary": case.summary,
        "grid": grid,
        "voxel size [mm]": size,
        "B0 direction (voxel axes)": case.b0,
        "angle of B0 [degrees]": round(case.angle, 3),
        "head turns with the grid": case.head_follows,
        "lesions": [{"kind": one.kind, "chi [ppm]": one.chi, "radius [mm]": one.radius} for one in case.lesions],
        "echo times [s]": case.echo_times,
        "field strength [T]": case.field_strength,
        "SNR at the first echo": case.snr,
        "field error": case.field_error,
    }


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    words = {"track", "method", "remark", "failed"}
    rule = "|" + "|".join(" --- " if cell in words else " ---: " for cell in head) + "|"
    return [line(head), rule, *(line(row) for row in body)]


def _number(value: float, places: int) -> str:
    return f"{value:.{places}f}".replace("-", MINUS) if math.isfinite(value) else DASH


def _times(values: Sequence[int | float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _plain(value: Any) -> Any:
    """As JSON holds it: what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
