"""What every command shares: how it talks to the person at the terminal, and what it does to memory first."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import CDLL
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

console = Console(highlight=False, markup=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, markup=False)


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks: fresh pages cost the convolutions and FFTs up to half of their time."""
    try:
        library = CDLL("libc.so.6")
        library.mallopt(-3, 2**31 - 4097)  # M_MMAP_THRESHOLD
        library.mallopt(-1, 2**31 - 4097)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # another C library; nothing is lost but speed


def give_back_memory() -> None:
    """Hand freed blocks back to the system: between the acquisitions of a cohort, which differ in size."""
    try:
        CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        pass


@contextmanager
def progress() -> Iterator[Any]:
    """Yields begin(name, of): a bar that moves on when the next stage begins; silent where nobody looks."""
    columns = (SpinnerColumn(), TextColumn("{task.description:<28}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("")

        def begin(name: str, of: int) -> None:
            started = int(bar.tasks[0].fields.get("started", 0))
            bar.update(task, description=name, total=of, completed=started, started=started + 1)

        yield begin


def tell(warnings: Sequence[str]) -> None:
    for sentence in warnings:  # in a log, a warning is one line
        errors.print(Text.assemble(("warning: ", "yellow"), sentence), soft_wrap=not errors.is_terminal)


def print_table(rows: Mapping[str, float]) -> None:
    table = Table(box=None, show_header=False)
    for name, value in rows.items():
        table.add_row(Text(name), "n/a" if math.isnan(value) else f"{value:.4g}")
    console.print(table)
