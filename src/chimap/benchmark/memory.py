"""Peak memory of one method, in a process of its own: `python -m chimap.benchmark.memory FOLDER METHOD THREADS`."""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from chimap.benchmark.inputs import ENTRIES, Inputs, chosen, read_inputs, write_inputs
from chimap.methods import Method

MIB = 2**20


def peak_memory(inputs: Inputs, method: Method, device: torch.device) -> float:
    """Most memory that a method needs on top of its inputs [MiB].

    On a CPU: how much the resident memory of a fresh process rises. Libraries that the method's first call loads count.
    On CUDA: what its allocator hands out.

    Raises:
        RuntimeError: The process ended with an error; the last line of what it said.
    """
    if device.type == "cuda":
        return _peak_on_cuda(inputs.to(device), method)
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), inputs)
        command = [sys.executable, "-m", "chimap.benchmark.memory", folder, method.name, str(torch.get_num_threads())]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        said = result.stderr.strip().splitlines() or [f"it ended with status {result.returncode}"]
        raise RuntimeError(said[-1])
    return float(result.stdout)


def _peak_on_cuda(inputs: Inputs, method: Method) -> float:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ENTRIES[method.stage].call(inputs, method.name)
    return (torch.cuda.max_memory_allocated() - before) / MIB


def _main(folder: str, name: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    inputs = read_inputs(Path(folder))
    (method,) = chosen([name])
    method.load()
    for tensor in inputs.tensors().values():
        tensor.sum()  # the file is mapped: now its pages are in memory
    before = _peak_so_far(reset=True)
    with torch.no_grad():
        ENTRIES[method.stage].call(inputs, name)
    print((_peak_so_far() - before) / MIB)


def _peak_so_far(*, reset: bool = False) -> int:
    """Largest resident memory of this process [bytes]; `reset` makes it begin again from what it is now."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage's ru_maxrss will not do on Linux: a process inherits it from the one that started it
        if reset:
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:
                pass  # not allowed here: the peak since the start, that of the imports, is what counts from
        rows = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(rows["VmHWM"].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, in bytes


if __name__ == "__main__":
    _main(*sys.argv[1:])
