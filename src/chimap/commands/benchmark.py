"""Methods on heads with known truth: `chimap benchmark`."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table
from rich.text import Text

from chimap.benchmark import cases as table_of_cases
from chimap.benchmark import figures, inputs, tables
from chimap.benchmark.run import Study, run
from chimap.commands.console import console, keep_freed_memory, progress
from chimap.errors import InputError
from chimap.io.nifti import read_labels
from chimap.io.output import whole_directory
from chimap.simulation.labels import LabelMap, from_freesurfer, read_packed


def benchmark(
    *,
    methods: list[str] | None,
    cases: list[str] | None,
    labels: Sequence[Path],
    shape: Sequence[int] | None,
    scale: str,
    device: str,
    output: Path,
    command: Sequence[str],
) -> None:
    """Run methods on cases and write tables and pictures into the folder `output`.

    Args:
        methods: Names; all if None.
        cases: Names, patterns such as "*-real", or beginnings of names; all if None.
        labels: Label maps of people whom no training has seen, packed (.npz) or as NIfTI; the built-in head if empty.
        shape: Grid of the cases of 1 mm, over the same field of view; that of `scale` if None.
        scale: Of `cases.SCALES`.
        device: Of the methods, as torch names it.
        output: Keeps its other files if it exists.
        command: The command line, in words.

    Raises:
        InputError: An unknown method or case, a grid or a label map that cannot be used.
    """
    keep_freed_memory()
    chosen_methods, chosen_cases = inputs.chosen(methods), table_of_cases.chosen(cases)
    grid = table_of_cases.SCALES[scale] if shape is None else (shape[0], shape[1], shape[2])
    table_of_cases.check_shape(grid)
    on = _device(device)
    words = [Path(word).name if "/" in word else word for word in command]
    with whole_directory(output) as folder, progress() as begin:
        persons = table_of_cases.people([one for path in labels for one in _label_maps(path)])
        pictures = folder / "figures"
        pictures.mkdir()
        study = run(chosen_cases, chosen_methods, persons, shape=grid, pictures=pictures, device=on, begin=begin)
        names = _charts(study, chosen_cases, [method.name for method in chosen_methods], pictures)
        machine = tables.machine_record(str(on))
        text = tables.markdown(
            study,
            chosen_cases,
            chosen_methods,
            shape=grid,
            command=" ".join(words),
            machine=machine,
            pictures=names,
        )
        (folder / "benchmark.md").write_text(text, encoding="utf-8")
        text = tables.record(study, chosen_cases, chosen_methods, shape=grid, command=words, machine=machine)
        (folder / "benchmark.json").write_text(text, encoding="utf-8")
    _print(study, [method.name for method in chosen_methods])
    console.print(f"Tables: {output / 'benchmark.md'}, benchmark.json\nPictures: {output / 'figures'}")


def _label_maps(path: Path) -> list[LabelMap]:
    if path.suffix == ".npz":
        return read_packed(path)
    numbers, voxel_size = read_labels(path)
    return [from_freesurfer(numbers, voxel_size, name=re.sub(r"\.nii(\.gz)?$", "", path.name))]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as problem:
        raise InputError(f"--device {name} cannot be used: {str(problem).splitlines()[0]}") from None
    return device


def _charts(study: Study, cases: Sequence[table_of_cases.Case], methods: Sequence[str], folder: Path) -> list[str]:
    """Draw what goes over several cases; the names of the pictures."""
    drawn: dict[str, bytes] = {}
    single = [case.name for case in cases if not case.head_follows]
    for key, name in (("NRMSE [%]", "bars-nrmse"), ("XSIM", "bars-xsim")):
        points = [
            (case, track, method, tables.typical(rows, key)) for (case, track, method), rows in _grouped(study).items()
        ]
        if single:
            drawn[name] = figures.bars(points, single, methods, key)
    angles = {case.name: case.angle for case in cases if case.head_follows}
    turns = [
        (track, method, angles[case], tables.typical(rows, "NRMSE [%]"))
        for (case, track, method), rows in _grouped(study).items()
        if case in angles
    ]
    if len(angles) > 1:
        across = "angle between B0 and the grid's z [degrees]"
        drawn["orientation"] = figures.curves(turns, methods, across=across, up="NRMSE [%]")
    spots = [
        (row.track, row.method, *spot) for row in study.rows if row.head == study.rows[0].head for spot in row.spots
    ]
    if spots:
        drawn["spots"] = figures.curves(
            spots, methods, across="true chi of a spot [ppm]", up="found [ppm]", identity=True
        )
    for name, content in drawn.items():
        (folder / f"{name}.png").write_bytes(content)
    return list(drawn)


def _grouped(study: Study) -> dict[tuple[str, inputs.Track, str], list]:
    """Rows of all heads for each case, track and method."""
    groups: dict[tuple[str, inputs.Track, str], list] = {}
    for row in study.rows:
        groups.setdefault((row.case, row.track, row.method), []).append(row)
    return groups


def _print(study: Study, methods: Sequence[str]) -> None:
    """Over all cases, for a first look."""
    table = Table(box=None, header_style="bold")
    table.add_column("track")
    table.add_column("method")
    shown = tables.COLUMNS[:5]
    for column in shown:
        table.add_column(column.heading, justify="right")
    table.add_column("failed", justify="right")
    for track in inputs.TRACKS:
        for method in methods:
            rows = [row for row in study.rows if (row.track, row.method) == (track, method)]
            if not rows:
                continue
            means = [(tables.typical(rows, column.key), column.places) for column in shown]
            numbers = [f"{value:.{places}f}" if math.isfinite(value) else "-" for value, places in means]
            failed = sum(row.failure is not None for row in rows)
            table.add_row(track, Text(method), *numbers, f"{failed} of {len(rows)}" if failed else "")
    console.print("Means over all cases, medians of dNRMSE:")
    console.print(table)
