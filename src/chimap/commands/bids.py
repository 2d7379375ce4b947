"""A whole BIDS dataset: `chimap bids`. Subjects to derivatives, and derivatives to one table."""

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from chimap import cohort, methods
from chimap.commands.console import console, errors, give_back_memory, keep_freed_memory, tell
from chimap.derivatives import Job, maps_state, regions_state
from chimap.errors import InputError
from chimap.io.bids_names import write_description, write_json
from chimap.io.bids_reading import Acquisition, acquisitions, check_dataset
from chimap.io.output import whole_directory, whole_file
from chimap.plan import Plan

NAME = "Susceptibility maps by chimap"
"""Of the dataset of derivatives."""


@dataclass(frozen=True)
class Outcome:
    """What became of an acquisition.

    Attributes:
        name: Of the acquisition.
        status: "skipped" where nothing was to be done.
        sentence: Why it failed.
        seconds: That it took.
        warnings: What a reader of its maps should doubt.
    """

    name: str
    status: Literal["made", "skipped", "failed"]
    sentence: str = ""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Where:
    """Where the work is done.

    Attributes:
        workers: Processes or jobs; None: as many as fit, 0: this process alone.
        threads: Of each; None: shared out.
        memory: Limit of each [GiB]; None: shared out.
        retries: After an exception or a worker's death.
        scheduler: Address of a Dask scheduler that runs.
        slurm: Whether workers are Slurm jobs.
        directives: Options of sbatch.
        walltime: Of a Slurm job.
    """

    workers: int | None = None
    threads: int | None = None
    memory: float | None = None
    retries: int = 2
    scheduler: str | None = None
    slurm: bool = False
    directives: tuple[str, ...] = ()
    walltime: str | None = None

    def check(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            InputError: Names the option.
        """
        for option, value, least in (
            ("--workers", self.workers, 0),
            ("--threads", self.threads, 1),
            ("--memory", self.memory, 0.1),
            ("--retries", self.retries, 0),
        ):
            if value is not None and value < least:
                raise InputError(f"{option} is {value:g}, needed at least {least:g}")


def participant(
    *,
    dataset: Path,
    output: Path,
    subjects: Sequence[str] | None,
    sessions: Sequence[str] | None,
    validate: bool,
    plan: Plan,
    told: Mapping[str, Any],
    masks: Path | None,
    segmentations: Path | None,
    overwrite: bool,
    where: Where,
    command: Sequence[str],
) -> int:
    """Every acquisition to its derivatives; what cannot be used stops none of the others.

    Returns:
        Exit status: 0, or 1 where an acquisition failed, 130 after an interrupt.

    Raises:
        InputError: The dataset, the output folder or a label is not usable at all.
    """
    start = time.perf_counter()
    where.check()
    if validate:
        check_dataset(dataset)
    methods.find(plan.background, *methods.TO_LOCAL_FIELD)
    methods.find(plan.inversion, *methods.TO_CHI)
    for option, folder in (("--masks", masks), ("--segmentations", segmentations)):
        if folder is not None and not folder.is_dir():
            raise InputError(f"{option} {folder} is no folder, needed derivatives as BIDS lays them out")
    dataset, output = dataset.absolute(), output.absolute()
    found = acquisitions(dataset, subjects, sessions)
    _prepare(dataset, output)
    jobs = {
        one.name: Job(
            one,
            output,
            plan,
            told,
            None if masks is None else masks.absolute(),
            None if segmentations is None else segmentations.absolute(),
            call=secrets.token_hex(8),
            overwrite=overwrite,
            command=tuple(command),
        )
        for one in found
        if one.problem is None
    }
    outcomes = [Outcome(one.name, "failed", str(one.problem)) for one in found if one.problem is not None]
    to_do: dict[str, Job] = {}
    for name, job in jobs.items():
        try:
            up_to_date = maps_state(job) == "done" and regions_state(job) == "done"
        except (InputError, OSError) as problem:
            outcomes.append(Outcome(name, "failed", _sentence(problem, dataset)))
            continue
        if up_to_date:
            outcomes.append(Outcome(name, "skipped"))
        else:
            to_do[name] = job
    people = len({one.labels["sub"] for one in found})
    console.print(f"{_count(people, 'subject')}, {_count(len(found), 'acquisition')}: {len(to_do)} to do")
    interrupted = False
    _clear_away(jobs.values())  # beside what is done, too: another worker may have finished it after one that died
    if to_do:
        for outcome in outcomes:
            _tell(outcome)
        try:
            for outcome in _all(to_do, where, dataset):
                outcomes.append(outcome)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            _clear_away(to_do.values())
    _write_log(output, outcomes)
    _summary(outcomes, output, time.perf_counter() - start)
    if interrupted:
        errors.print("chimap: interrupted; what is finished stays, and the same command goes on from there")
        return 130
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def group(*, dataset: Path, output: Path, subjects: Sequence[str] | None) -> int:
    """Region values of all derivatives to group_regions.tsv, its data dictionary and a page to look at.

    Raises:
        InputError: There are no derivatives, or nothing can be written.
    """
    from chimap.group import ages, collect, failures
    from chimap.report.cohort import write_cohort_page

    wanted = None if subjects is None else [label.removeprefix("sub-") for label in subjects]
    table = collect(output, wanted)
    text = ["\t".join(table.columns)]
    text += ["\t".join(row.get(column, "n/a") for column in table.columns) for row in table.rows]
    with whole_file(output / "group_regions.tsv") as target:
        target.write_text("\n".join(text) + "\n", encoding="utf-8")
    with whole_file(output / "group_regions.json") as target:
        write_json(target, table.columns)
    tell(table.warnings)
    failed = failures(output)
    if wanted is not None:
        failed = {name: why for name, why in failed.items() if name.split("_")[0].removeprefix("sub-") in wanted}
    if dataset.is_dir():
        found = {one.name: one.problem for one in acquisitions(dataset, subjects)}
        lacking = [name for name in found if name not in table.members]
        failed = {name: why for name, why in failed.items() if name in found}  # what was taken away is forgotten
        for name in lacking:
            failed[name] = _short(found[name] or failed.get(name, "not mapped yet, or not to the end"), dataset)
        if lacking:
            lack = "has" if len(lacking) == 1 else "have"
            tell([f"{_count(len(lacking), 'acquisition')} of the dataset {lack} no values: {', '.join(lacking)}"])
    write_cohort_page(output / "group.html", table, failed=failed, ages=ages(dataset))
    odd = [(name, row) for name, one in table.members.items() for row in one.rows if row["outlier"] != "n/a"]
    console.print(f"{_count(len(table.members), 'acquisition')}, {_count(len(table.rows), 'row')}")
    for name, row in odd[:20]:
        console.print(f"outlier: {name}, {row['region']}: {row['outlier']}")
    if len(odd) > 20:
        console.print(f"… and {len(odd) - 20} more rows: see the column outlier")
    console.print(f"Table: {output / 'group_regions.tsv'}\nPage: {output / 'group.html'}")
    return 0


def work(job: Job, threads: int | None = None) -> Outcome:
    """One job, on whichever machine; what is wrong with its input is told, anything else is raised."""
    import torch

    from chimap.participant import make

    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    start = time.perf_counter()
    try:
        warnings = make(job)
    except InputError as problem:
        return Outcome(job.name, "failed", _sentence(problem, job.acquisition.root), time.perf_counter() - start)
    finally:
        give_back_memory()
    return Outcome(job.name, "made", seconds=time.perf_counter() - start, warnings=warnings)


def _all(jobs: Mapping[str, Job], where: Where, dataset: Path) -> Iterator[Outcome]:
    """Do the jobs and tell of each as it ends."""
    with _ways(jobs, where) as ended, _progress(len(jobs)) as advance:
        for name, result in ended(jobs):
            if isinstance(result, Exception):
                result = Outcome(name, "failed", _sentence(result, dataset))
            _tell(result)
            advance(result)
            yield result


@contextmanager
def _ways(jobs: Mapping[str, Job], where: Where) -> Iterator[Callable[[Mapping[str, Job]], Iterator[tuple[str, Any]]]]:
    """What runs the jobs and yields them as they end."""
    if where.workers == 0:
        yield partial(cohort.in_this_process, partial(work, threads=where.threads))
        return
    if where.scheduler is not None:
        with cohort.running(where.scheduler) as client:
            threads = where.threads
            console.print(f"On the cluster at {where.scheduler}, {_count(len(client.nthreads()), 'worker')} at present")
            yield partial(cohort.each, client, partial(work, threads=threads), retries=where.retries)
        return
    need = max((_need(job.acquisition) for job in jobs.values()), default=0)
    memory = None if where.memory is None else int(where.memory * cohort.GIB)
    if where.slurm:
        workers = cohort.Workers(where.workers or min(len(jobs), 100), where.threads or 1, memory or int(1.25 * need))
        console.print(f"On Slurm, up to {_size(workers)}")
        way = cohort.slurm(workers, deaths=where.retries, directives=where.directives, walltime=where.walltime)
    else:
        workers = cohort.workers_for(len(jobs), need, count=where.workers, threads=where.threads, memory=memory)
        console.print(f"On this machine, {_size(workers)}")
        if workers.memory < need:
            tell(
                [
                    f"a worker has {workers.memory / cohort.GIB:.1f} GiB and the largest acquisition takes about "
                    f"{need / cohort.GIB:.1f} GiB"
                ]
            )
        way = cohort.local(workers, deaths=where.retries)
    with way as client:
        yield partial(cohort.each, client, partial(work, threads=workers.threads), retries=where.retries)


def _need(acquisition: Acquisition) -> int:
    """Memory that an acquisition takes, by its header; that of the libraries where it has none."""
    from nibabel.loadsave import load

    try:
        x, y, z, *more = load(acquisition.phase[0]).shape  # pyright: ignore[reportAttributeAccessIssue]
    except Exception:  # whatever is wrong with it, its own worker says so
        return cohort.memory_for(0, 1)
    return cohort.memory_for(x * y * z, max(len(acquisition.phase), *more, 1))


def _size(workers: cohort.Workers) -> str:
    return (
        f"{_count(workers.count, 'worker')} of {_count(workers.threads, 'thread')} and "
        f"{workers.memory / cohort.GIB:.1f} GiB"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _prepare(dataset: Path, output: Path) -> None:
    """The output folder as a dataset of derivatives; refuse one that is another's."""
    if output == dataset:
        raise InputError(f"{output} is the dataset itself, needed another folder, such as derivatives/chimap in it")
    about = output / "dataset_description.json"
    if about.exists():
        try:
            content = json.loads(about.read_text(encoding="utf-8"))
            own = content["Name"] == NAME and content["GeneratedBy"][0]["Name"] == "chimap"
        except (OSError, ValueError, LookupError, TypeError):
            own = False
        if not own:
            raise InputError(f"{about} is not of chimap's derivatives, needed a folder of their own")
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {output} cannot be made: {error.strerror}") from None
    links = {"raw": Path(os.path.relpath(dataset, output)).as_posix()}
    with whole_directory(output) as folder:
        write_description(folder, NAME, derivative=True, links=links)


def _clear_away(jobs: Iterable[Job]) -> None:
    """Take away what a process left that was killed while it wrote: hidden files and folders of `io.output`."""
    for job in jobs:
        left = [*job.folder.glob(f".*-{job.name}_*"), *job.output.glob(f".*-{job.report.name}")]
        for path in (*left, *job.folder.parent.glob(f".{job.folder.name}-*")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _sentence(problem: Exception, dataset: Path) -> str:
    text = _short(str(problem), dataset)
    if isinstance(problem, InputError | cohort.WorkerLost):
        return text or type(problem).__name__
    return f"{type(problem).__name__}: {text}" if text else type(problem).__name__


def _short(text: str, dataset: Path) -> str:
    """On one line, with files named from the dataset on."""
    return " ".join(text.split()).replace(f"{dataset}/", "")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Outcome], None]]:
    """Yields what is to be called with every outcome: a bar where somebody looks."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    failed = 0
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("acquisitions", total=total)

        def advance(outcome: Outcome) -> None:
            nonlocal failed
            failed += outcome.status == "failed"
            bar.update(task, advance=1, description=f"acquisitions, {failed} failed" if failed else "acquisitions")

        yield advance


def _tell(outcome: Outcome) -> None:
    if outcome.status == "failed":
        errors.print(f"{outcome.name} failed: {outcome.sentence}", soft_wrap=True)
    elif outcome.status == "made":
        doubts = f", {_count(len(outcome.warnings), 'warning')}" if outcome.warnings else ""
        errors.print(f"{outcome.name} done in {outcome.seconds:.0f} s{doubts}", soft_wrap=True)


def _summary(outcomes: Sequence[Outcome], output: Path, seconds: float) -> None:
    by_status = {status: [o for o in outcomes if o.status == status] for status in ("made", "skipped", "failed")}
    console.print(
        f"{len(by_status['made'])} made, {len(by_status['skipped'])} done before, {len(by_status['failed'])} failed, "
        f"in {seconds:.0f} s: {output}"
    )
    if by_status["failed"]:
        errors.print("Failed:")
        for outcome in sorted(by_status["failed"], key=lambda row: row.name):
            errors.print(f"  {outcome.name}: {outcome.sentence}", soft_wrap=True)


def _write_log(output: Path, outcomes: Sequence[Outcome]) -> None:
    """One table for each call, so that calls side by side do not write over each other."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    lines = ["acquisition\tstatus\tseconds\tsentence"]
    for row in sorted(outcomes, key=lambda outcome: outcome.name):
        said = row.sentence or " ".join(row.warnings) or "n/a"
        lines.append(f"{row.name}\t{row.status}\t{row.seconds:.1f}\t{said}")
    with whole_file(output / "logs" / f"{stamp}-{os.getpid()}.tsv") as target:
        target.write_text("\n".join(lines) + "\n", encoding="utf-8")
