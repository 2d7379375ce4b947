"""What a folder of DICOM files holds: `chimap dicom`."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chimap.io import dicom
from chimap.io.dicom_choice import Row


def survey(folder: Path) -> None:
    """Print a table of the series in a folder, and what `chimap run` would do with each."""
    rows = dicom.survey(folder)
    table = Table("series", "description", "kind", "echo times [ms]", "voxels", "size [mm]", "use", box=None)
    for row in rows:
        table.add_row(*_cells(row), style=None if row.usable else "dim")
    Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False).print(table)


def _cells(row: Row) -> list[str]:
    times = [f"{1000 * time:.4g}" for time in row.echo_times]
    size = " x ".join(f"{length:.4g}" for length in row.spacing)
    return [
        "" if row.series is None else str(row.series),
        row.description,
        row.kind,
        ", ".join(times if len(times) < 7 else [*times[:3], "…", times[-1]]),
        " x ".join(map(str, row.shape)) if row.kind else "",
        size if row.kind else "",
        row.use,
    ]
