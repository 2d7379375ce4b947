"""NDI, MEDI and MEDI+0 beside TKD and TV: errors on a simulated head; with --shape, seconds and peak memory on noise.

python benchmarks/nonlinear.py [--voxel-size 2] [--field-error 0.5]
python benchmarks/nonlinear.py --shape 256 256 176 [--method medi]
"""

import argparse
import math
import time

import torch

from chimap import from_local_field, methods, metrics
from chimap.benchmark.inputs import ENTRIES, Inputs
from chimap.benchmark.memory import peak_memory
from chimap.commands.console import keep_freed_memory
from chimap.simulation.acquisition import acquire
from chimap.simulation.head import built_in_head

NAMES = ("tkd", "tv", "ndi", "medi", "medi+0")
EXTENT = (160.0, 192.0, 160.0)  # mm


def on_a_head(size: float, field_error: float, seed: int) -> None:
    shape = tuple(round(length / size) for length in EXTENT)
    head = built_in_head(shape, (size,) * 3, seed=seed)
    scan, truth = acquire(head, field_error=field_error, seed=seed)
    where = scan.voxel_size, scan.b0_direction
    print(f"built-in head, seed {seed}, {shape} voxels of {size:g} mm; NRMSE [%] less the means, slope, seconds")
    for name, field in (
        ("true local field", truth.local_field),
        ("with field error", truth.local_field + truth.field_error),
    ):
        given = Inputs(
            field * truth.mask,
            truth.mask,
            *where,
            magnitude=scan.magnitude,
            echo_times=scan.echo_times,
            field_strength=scan.field_strength,
        )
        for method in NAMES:
            start = time.perf_counter()
            chi, _ = ENTRIES["inversion"].call(given, method)
            seconds = time.perf_counter() - start
            error = metrics.nrmse(chi, truth.chi, truth.mask, demean=True)
            print(f"{name}  {method:8s} {error:6.1f} {metrics.slope(chi, truth.chi, truth.mask):6.2f} {seconds:7.1f}")


def on_noise(shape: tuple[int, int, int], method: str) -> None:
    """A field and a magnitude of noise: as many steps as a head takes or more, and the memory is the same."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[20:-20, 20:-20, 20:-20] = True
    given = Inputs(
        0.01 * torch.randn(shape, generator=generator) * mask,
        mask,
        (1.0, 1.0, 1.0),
        (0.0, 0.0, 1.0),
        magnitude=1 + 0.1 * torch.rand((1, *shape), generator=generator),
        echo_times=(0.02,),
        field_strength=3.0,
    )
    peak = peak_memory(given, methods.find(method, "inversion"), torch.device("cpu"))
    inputs = sum(part.numel() * part.element_size() for part in given.tensors().values()) / 2**20
    steps: list[int] = []
    start, busy = time.perf_counter(), time.process_time()
    magnitude, rate = from_local_field.signal_of(given.magnitude, mask, given.echo_times, 3.0)
    from_local_field.invert(
        given.local_field,
        mask,
        given.voxel_size,
        given.b0_direction,
        magnitude=magnitude,
        radians_per_ppm=rate,
        method=method,
        on_step=lambda step, of: steps.append(step),
    )
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    print(f"{method}, grid {shape}: {math.prod(shape)} voxels, inputs of {inputs / 1024:.2f} GiB")
    print(f"{steps[-1]} steps in {seconds:.0f} s, {busy:.0f} s of processors, on {torch.get_num_threads()} threads")
    print(f"peak memory on top of the inputs: {peak / 1024:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxel-size", type=float, default=2.0)
    parser.add_argument("--field-error", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shape", nargs=3, type=int)
    parser.add_argument("--method", choices=("ndi", "medi"), default="medi")
    options = parser.parse_args()
    keep_freed_memory()
    with torch.no_grad():
        if options.shape:
            on_noise(tuple(options.shape), options.method)
        else:
            on_a_head(options.voxel_size, options.field_error, options.seed)


if __name__ == "__main__":
    main()
