"""Many acquisitions at once, on Dask: on this machine, on a cluster that runs, or on Slurm.

A task is a function of one job that leaves its result in files and does nothing where they are there: what a worker has
ended is asked for again if it dies before it said so. What goes wrong with one is a value and stops none of the others.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from chimap.errors import InputError

GIB = 2**30
J = TypeVar("J")
R = TypeVar("R")

# Memory of a worker [bytes]: libraries, and the most that a voxel takes on the way; see benchmarks/cohort.py.
_LIBRARIES = 0.6 * GIB
_PER_VOXEL = 200.0
_PER_VOXEL_AND_ECHO = 30.0


class WorkerLost(Exception):
    """A job could not be ended because what ran it went away, again and again; says so in a sentence."""


@dataclass(frozen=True)
class Workers:
    """How work is spread over one machine.

    Attributes:
        count: Processes, each with one acquisition at a time.
        threads: Of each.
        memory: Limit of each [bytes]; a process beyond it is ended and its acquisition begun again.
    """

    count: int
    threads: int
    memory: int


def memory_for(voxels: int, echoes: int) -> int:
    """Memory [bytes] that the default plan takes for a grid, libraries included."""
    return int(_LIBRARIES + voxels * (_PER_VOXEL + _PER_VOXEL_AND_ECHO * echoes))


def workers_for(
    jobs: int, need: int, *, count: int | None = None, threads: int | None = None, memory: int | None = None
) -> Workers:
    """Workers that fit this machine.

    Args:
        jobs: So many are never exceeded.
        need: Memory of one [bytes].
        count: The user's word, else as many as there are cores and as free memory has room for.
        threads: The user's word, else the cores shared out.
        memory: The user's word on one worker's limit [bytes], else free memory shared out.
    """
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT
    from psutil import virtual_memory

    free = 0.9 * min(MEMORY_LIMIT, virtual_memory().available)
    if count is None:
        count = max(1, min(CPU_COUNT // (threads or 1), int(free // (memory or need))))
    count = min(count, max(jobs, 1))
    return Workers(count, threads or max(1, CPU_COUNT // count), int(memory or free / count))


@contextmanager
def local(workers: Workers, *, deaths: int) -> Iterator[Any]:
    """A Dask client of workers on this machine, gone with the block.

    Args:
        workers: How many, and how large.
        deaths: A job whose worker dies more often than this is given up.
    """
    from distributed import Client, LocalCluster

    with _configured(deaths):
        cluster = LocalCluster(
            n_workers=workers.count,
            threads_per_worker=1,
            memory_limit=workers.memory,
            dashboard_address=None,  # pyright: ignore[reportArgumentType]
            silence_logs=logging.CRITICAL,
            env=_environment(workers.threads),
        )
        with cluster, Client(cluster) as client:
            yield client


@contextmanager
def running(address: str) -> Iterator[Any]:
    """A client of a scheduler that runs elsewhere, such as tcp://10.0.0.1:8786, with chimap on all its workers.

    Raises:
        InputError: Nothing answers there.
    """
    from distributed import Client

    try:
        client = Client(address, timeout="20s", set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"no Dask scheduler answers at {address}: {str(error) or type(error).__name__}") from None
    with client:
        yield client


@contextmanager
def slurm(
    workers: Workers, *, deaths: int, directives: Sequence[str] = (), walltime: str | None = None
) -> Iterator[Any]:
    """A client of workers that are Slurm jobs, one worker each; they end with the block.

    What is not given here (queue, account, interface) comes from dask-jobqueue's own configuration.

    Args:
        workers: How many jobs, and the cores and memory of each.
        deaths: A job whose worker dies more often than this is given up.
        directives: Options of sbatch, such as "--partition=long".
        walltime: Of each, such as "04:00:00".

    Raises:
        InputError: dask-jobqueue is not installed, or Slurm is not there.
    """
    try:
        from dask_jobqueue.slurm import SLURMCluster
    except ImportError:
        raise InputError("--slurm needs dask-jobqueue: pip install 'chimap[slurm]'") from None
    from distributed import Client

    with _configured(deaths):
        cluster = SLURMCluster(
            cores=1,
            processes=1,
            job_cpu=workers.threads,
            memory=f"{workers.memory / GIB:.2f} GiB",
            job_extra_directives=list(directives),
            job_script_prologue=[f"export {name}={value}" for name, value in _environment(workers.threads).items()],
            scheduler_options={"dashboard": False, "dashboard_address": None},
            walltime=walltime,
        )
        with cluster:
            cluster.adapt(minimum=0, maximum=workers.count)
            with Client(cluster) as client:
                yield client


def _environment(threads: int) -> dict[str, str]:
    """Variables of a worker, which are read when its libraries are loaded."""
    # a worker's memory is that of its one job: nothing of it can be spilt, and a pause would not make it less
    found = {f"DASK_DISTRIBUTED__WORKER__MEMORY__{what}": "False" for what in ("TARGET", "SPILL", "PAUSE")}
    return found | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))


@contextmanager
def _configured(deaths: int) -> Iterator[None]:
    from dask.config import set as set_config

    settings = {
        "distributed.scheduler.allowed-failures": deaths,
        # a worker takes no job before it has ended the one it has, so its death costs no other job an attempt; Dask
        # keeps to that where there are more than two jobs for each worker and it hears of all at once
        "distributed.scheduler.worker-saturation": 1.0,
        **{f"distributed.worker.memory.{what}": False for what in ("target", "spill", "pause")},
    }
    with set_config(settings):
        yield


def each(
    client: Any, function: Callable[[J], R], jobs: Mapping[str, J], *, retries: int = 1
) -> Iterator[tuple[str, R | Exception]]:
    """Run a function on every job; yields (name, what it returned or what was raised) as they end, each job once.

    A job whose worker dies is begun again elsewhere. One that raises is begun again `retries` times.

    Args:
        client: Of `local`, `running` or `slurm`.
        function: Importable on the workers; finds out itself whether a job is done.
        jobs: {name: job}.
        retries: After an exception.
    """
    from distributed import as_completed

    # names of this call only: a scheduler that runs elsewhere may know those of another
    call = f"{os.getpid():x}-{time.time_ns():x}"
    names = {f"chimap-{call}-{name}": name for name in jobs}
    futures = client.map(function, list(jobs.values()), key=list(names), retries=retries, pure=False)
    try:
        for future in as_completed(futures, loop=client.loop):
            yield names[future.key], _ended(future)
            future.release()
    finally:
        client.cancel([future for future in futures if not future.done()], force=True)


def _ended(future: Any) -> Any:
    """What a job returned or raised; where the worker that had the result died since, waits for another's."""
    from concurrent.futures import CancelledError

    from distributed.scheduler import KilledWorker

    try:
        return future.result()
    except CancelledError:
        return WorkerLost("the connection to the scheduler was lost before it was done")
    except KilledWorker as problem:
        return WorkerLost(
            f"its worker died {problem.allowed_failures + 1} times, for want of memory or stopped from outside: "
            "see --memory"
        )
    except Exception as problem:
        return problem


def in_this_process(function: Callable[[J], R], jobs: Mapping[str, J]) -> Iterator[tuple[str, R | Exception]]:
    """As `each`, one after the other and without Dask."""
    for name, job in jobs.items():
        try:
            yield name, function(job)
        except Exception as problem:
            yield name, problem
