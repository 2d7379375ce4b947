"""Throughput of `chimap bids` from 1 to N subjects, and what it does when subjects and processes break.

    python benchmarks/cohort.py [--subjects 1 2 4 8] [--workers 1 2] [--voxel-size 2 2 2] [--plan default]
    python benchmarks/cohort.py --faults [--voxel-size 4 4 4] [--plan quick]

The first prints a row for every number of subjects and workers: seconds from the command to its end (Dask and libraries
included), subjects in an hour, seconds of processor time for a subject, and the most memory that one worker held, under
what `cohort.memory_for` reckons with.

The second simulates 20 subjects and breaks four of them in different ways. Two workers are killed while they work, then
the call itself; the same command is given again, and once more. It says what was finished when, and checks that
nothing was lost, that nothing finished was made again and that no half-written file is left.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import psutil

from chimap.cohort import memory_for

MIB = 2**20


def command(data: Path, output: Path, workers: int, plan: str) -> list[str]:
    return [sys.executable, "-m", "chimap.cli", "bids", str(data), str(output), "participant"] + [
        "--workers", str(workers), "--plan", plan,
    ]  # fmt: skip


def simulate(folder: Path, subjects: int, voxel_size: list[str]) -> None:
    arguments = ["simulate", "--subjects", str(subjects), "--voxel-size", *voxel_size, "--output", str(folder)]
    subprocess.run([sys.executable, "-m", "chimap.cli", *arguments], check=True, stdout=subprocess.DEVNULL)


def workers_of(call: subprocess.Popen[str]) -> list[psutil.Process]:
    """Processes of Dask's workers, which `multiprocessing` spawned."""
    found = []
    try:
        for child in psutil.Process(call.pid).children(recursive=True):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    except psutil.Error:
        pass
    return found


def watched(arguments: list[str]) -> tuple[float, float, float]:
    """Run a command: its seconds, processor seconds of its workers, and most memory of one of them [bytes]."""
    start, memory, seconds = time.perf_counter(), 0, {}
    call = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while call.poll() is None:
        for child in workers_of(call):
            try:
                memory = max(memory, child.memory_info().rss)
                times = child.cpu_times()
                seconds[child.pid] = times.user + times.system
            except psutil.Error:
                pass
        time.sleep(0.05)
    if call.returncode:
        sys.exit(call.stderr.read() if call.stderr else "failed")
    return time.perf_counter() - start, sum(seconds.values()), memory


def throughput(folder: Path, subjects: list[int], workers: list[int], voxel_size: list[str], plan: str) -> None:
    simulate(folder / "data", max(subjects), voxel_size)
    phase = sorted((folder / "data/sub-01/anat").glob("*part-phase*.nii.gz"))
    x, y, z = nib.nifti1.load(phase[0]).shape
    reckoned = memory_for(x * y * z, len(phase)) / MIB
    print(f"{x} x {y} x {z} voxels, {len(phase)} echoes, plan {plan}; reckoned with {reckoned:.0f} MiB a worker\n")
    print(
        "| workers | subjects | seconds | subjects an hour | processor seconds a subject | memory of a worker [MiB] |"
    )
    print("|---:|---:|---:|---:|---:|---:|")
    for count in workers:
        for number in subjects:
            labels = [f"{n:02d}" for n in range(1, number + 1)]
            output = folder / f"out-{count}-{number}"
            arguments = [*command(folder / "data", output, count, plan), "--participant-label", *labels]
            seconds, busy, memory = watched(arguments)
            row = f"{seconds:.0f} | {3600 * number / seconds:.0f} | {busy / number:.1f} | {memory / MIB:.0f}"
            print(f"| {count} | {number} | {row} |", flush=True)
            shutil.rmtree(output)


def faults(folder: Path, voxel_size: list[str], plan: str) -> None:
    data, output = folder / "data", folder / "out"
    simulate(data, 20, voxel_size)
    anat = {n: data / f"sub-{n:02d}" / "anat" for n in range(1, 21)}
    cut = anat[3] / "sub-03_echo-1_part-phase_MEGRE.nii.gz"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (anat[8] / "sub-08_echo-2_part-mag_MEGRE.nii.gz").unlink()
    (anat[12] / "sub-12_echo-1_part-phase_MEGRE.json").write_text('{"EchoTime": 0.0')
    for path in anat[17].glob("*.json"):
        fields = json.loads(path.read_text())
        path.write_text(json.dumps(fields | {"EchoTime": 1000 * fields["EchoTime"]}))
    arguments = command(data, output, 2, plan)

    def done() -> dict[str, int]:
        return {path.name[:6]: path.stat().st_mtime_ns for path in output.glob("sub-*/anat/sub-*_Chimap.json")}

    call = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    seen = {}
    for least in (2, 6):
        while len(done()) < least:
            time.sleep(0.02)
        for process in workers_of(call)[:1]:
            process.kill()
        print(f"a worker killed after {len(done())} subjects")
    while len(done()) < 10:
        time.sleep(0.02)
    call.kill()
    call.wait()
    seen = done()
    print(f"the call killed after {len(seen)} subjects")
    kept = {name: output / f"{name}/anat/{name}_Chimap.nii.gz" for name in seen}
    whole = all(nib.nifti1.load(path).get_fdata().any() for path in kept.values())
    print(f"maps that are called finished are whole: {whole}")
    for turn in ("second", "third"):
        result = subprocess.run(arguments, capture_output=True, text=True)
        print(f"\n{turn} call, exit status {result.returncode}: {result.stdout.strip().splitlines()[-1].split(':')[0]}")
    print(result.stderr.strip())
    after = done()
    print(f"\nfinished: {len(after)} of 16 sound subjects")
    print(f"made again though finished: {sum(after[name] != when for name, when in seen.items())}")
    print(f"hidden or temporary files left: {len(list(output.rglob('.*')))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--voxel-size", nargs=3, default=["2", "2", "2"])
    parser.add_argument("--plan", default="default")
    parser.add_argument("--faults", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.faults:
            faults(Path(folder), options.voxel_size, options.plan)
        else:
            throughput(Path(folder), options.subjects, options.workers, options.voxel_size, options.plan)


if __name__ == "__main__":
    main()
