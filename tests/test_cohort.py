"""Jobs on real Dask clusters: workers that die, jobs that raise, and a Slurm that is a shell script."""

import os
import signal
import stat
import sys
import threading
import time
from pathlib import Path

import pytest
from distributed import LocalCluster

from chimap import cohort
from chimap.errors import InputError

GIB = 2**30


def job(task):
    """Leaves a file that says it began, does as it is told, and leaves another, which says that it is done."""
    folder, name, what = task
    if (folder / f"{name}.ended").exists():
        return name
    attempts = len(list(folder.glob(f"{name}.began.*")))
    (folder / f"{name}.began.{attempts}").write_text(str(os.getpid()))
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "raise":
        raise OSError("the disk is away")
    if what == "raise once" and attempts == 0:
        raise OSError("the disk was away for a moment")
    if what == "wait" and attempts == 0:
        (folder / "waiting").touch()
        time.sleep(60)
    with (folder / f"{name}.ended").open("a") as stream:
        stream.write("x")
    return name


def tasks(folder, **what):
    names = {f"sub-{n:02d}": "" for n in range(6)} | {name.replace("_", " "): told for name, told in what.items()}
    return {name: (folder, name, told.replace("_", " ")) for name, told in names.items()}


def attempts(folder, name):
    return len(list(folder.glob(f"{name}.began.*")))


def kill_who_waits(folder):
    while not (folder / "waiting").exists():
        time.sleep(0.05)
    os.kill(int((folder / "waits.began.0").read_text()), signal.SIGKILL)


def test_a_worker_killed_in_the_middle_loses_nothing_and_does_nothing_twice(tmp_path):
    found = {}
    threading.Thread(target=kill_who_waits, args=(tmp_path,), daemon=True).start()
    with cohort.local(cohort.Workers(2, 1, GIB), deaths=1) as client:
        jobs = tasks(tmp_path, waits="wait", dies="die", raises="raise", slips="raise once")
        for name, result in cohort.each(client, job, jobs, retries=1):
            assert name not in found
            found[name] = result
    assert found.keys() == jobs.keys()
    for name, result in found.items():
        if name in ("dies", "raises"):
            continue
        assert result == name and (tmp_path / f"{name}.ended").read_text() == "x"
    assert isinstance(found["dies"], cohort.WorkerLost) and "died 2 times" in str(found["dies"])
    assert isinstance(found["raises"], OSError) and "the disk is away" in str(found["raises"])
    expected = {"waits": 2, "dies": 2, "raises": 2, "slips": 2}
    assert {name: attempts(tmp_path, name) for name in jobs} == dict.fromkeys(jobs, 1) | expected


def test_a_job_beyond_its_memory_is_given_up_and_the_others_are_not(tmp_path):
    jobs = {"large": (tmp_path, 1200)} | {f"small {n}": (tmp_path, 0) for n in range(4)}
    with cohort.local(cohort.Workers(1, 1, GIB), deaths=0) as client:
        found = dict(cohort.each(client, fill, jobs))
    assert [found[f"small {n}"] for n in range(4)] == [0] * 4
    assert isinstance(found["large"], cohort.WorkerLost) and "--memory" in str(found["large"])


def fill(task):
    _, mebibytes = task
    content = b"x" * (mebibytes * 2**20)
    if content:
        time.sleep(30)
    return len(content)


def test_a_cluster_that_runs_already(tmp_path):
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        with cohort.running(cluster.scheduler_address) as client:
            assert dict(cohort.each(client, job, tasks(tmp_path))).keys() == tasks(tmp_path).keys()
        with cohort.running(cluster.scheduler_address) as client:
            # a second call is another one, whatever the scheduler remembers
            (tmp_path / "sub-00.ended").unlink()
            assert dict(cohort.each(client, job, {"sub-00": (tmp_path, "sub-00", "")})) == {"sub-00": "sub-00"}
    assert attempts(tmp_path, "sub-00") == 2
    with pytest.raises(InputError, match="no Dask scheduler answers at nonsense://"):
        with cohort.running("nonsense://127.0.0.1:1"):
            pass


def test_without_dask(tmp_path):
    found = dict(cohort.in_this_process(job, tasks(tmp_path, raises="raise")))
    assert isinstance(found.pop("raises"), OSError)
    assert found == {name: name for name in found} and len(found) == 6


@pytest.mark.parametrize(
    ("jobs", "need", "told", "expected"),
    [
        (100, 2 * GIB, {}, (7, 1, 16.2 / 7)),  # 8 cores, and memory for eight of 2 GiB but for what the system needs
        (100, 3 * GIB, {}, (5, 1, 16.2 / 5)),
        (100, 30 * GIB, {}, (1, 8, 16.2)),
        (3, 2 * GIB, {}, (3, 2, 16.2 / 3)),
        (100, 2 * GIB, {"threads": 4}, (2, 4, 8.1)),
        (100, 2 * GIB, {"memory": 8 * GIB}, (2, 4, 8.0)),
        (100, 2 * GIB, {"count": 20}, (20, 1, 16.2 / 20)),
    ],
)
def test_workers_fit_the_machine(monkeypatch, jobs, need, told, expected):
    import dask.system
    import distributed.system
    import psutil

    monkeypatch.setattr(dask.system, "CPU_COUNT", 8)
    monkeypatch.setattr(distributed.system, "MEMORY_LIMIT", 18 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 20 * GIB}))
    workers = cohort.workers_for(jobs, need + (need // 8 if jobs == 100 and need == 2 * GIB else 0), **told)
    assert (workers.count, workers.threads) == expected[:2]
    assert workers.memory / GIB == pytest.approx(expected[2])


def test_slurm_jobs_are_workers(tmp_path, monkeypatch):
    """A Slurm of two scripts: sbatch runs the job in the background, scancel ends it."""
    pytest.importorskip("dask_jobqueue")
    programs = tmp_path / "bin"
    programs.mkdir()
    script, log = tmp_path / "script", tmp_path / "log"
    sbatch = f'cp "$1" {script}; setsid bash {script} > {log} 2>&1 & echo "Submitted batch job $!"'
    for name, text in (("sbatch", sbatch), ("scancel", 'kill -- "-$1" || true')):
        path = programs / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    workers = cohort.Workers(1, 3, GIB)
    with cohort.slurm(workers, deaths=1, directives=["--partition=long"], walltime="01:30:00") as client:
        assert dict(cohort.each(client, job, tasks(tmp_path))).keys() == tasks(tmp_path).keys()
    text = script.read_text()
    for line in ("--partition=long", "-t 01:30:00", "--cpus-per-task=3", "--mem=1G", "OMP_NUM_THREADS=3"):
        assert line in text
