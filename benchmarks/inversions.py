"""Inversions of a local field that are no networks, on the built-in head: seconds, steps, peak memory, errors.

    python benchmarks/inversions.py [--shape 160 160 160] [--voxel-size 1 1 1] [--methods tkd tv …] [--field-error 0.5]

NRMSE [%], slope and XSIM, means removed, are in the true brain mask. The local field is the true one plus the noise of
five echoes at SNR 50 and a field error of the given share of its SD; methods whose data are the phase factor are given
magnitude and echo times. Steps are those that a method tells of. Memory is what it needs on top of its inputs, in a
process of its own. Seconds are those of the fastest of --rounds; beside them stands one pair of FFTs on the grid.
"""

import argparse
import time

import torch

from chimap import metrics
from chimap.benchmark.inputs import Inputs
from chimap.benchmark.memory import peak_memory
from chimap.commands.console import keep_freed_memory
from chimap.from_local_field import invert, signal_of
from chimap.linalg import irfft, rfft
from chimap.methods import METHODS, Method
from chimap.simulation.acquisition import acquire
from chimap.simulation.head import built_in_head

CLASSICAL = [
    method
    for method in METHODS
    if method.stage == "inversion"
    and method.weights is None
    and not method.zero_is_csf
    and ".zero_shot:" not in method.function
]


def inverted(inputs: Inputs, method: Method, rounds: int) -> tuple[torch.Tensor, float, int]:
    """chi, seconds and steps."""
    method.load()
    chi, seconds, steps, given = torch.empty(0), [], 0, {}
    if method.takes("radians_per_ppm") and inputs.field_strength is not None:
        signal = inputs.magnitude, inputs.mask, inputs.echo_times, inputs.field_strength
        given = dict(zip(("magnitude", "radians_per_ppm"), signal_of(*signal), strict=True))
    for _ in range(rounds):
        told: list[int] = []
        start = time.perf_counter()
        chi = invert(
            inputs.local_field,
            inputs.mask,
            inputs.voxel_size,
            inputs.b0_direction,
            method=method.name,
            **given,
            on_step=lambda step, _, told=told: told.append(step),
        )
        seconds.append(time.perf_counter() - start)
        steps = len(told)
    return chi, min(seconds), steps


def pair(volume: torch.Tensor) -> float:
    """Seconds of one FFT there and back, the median of seven."""
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        irfft(rfft(volume), volume.shape)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=3, type=int, default=(160, 160, 160))
    parser.add_argument("--voxel-size", nargs=3, type=float, default=(1.0, 1.0, 1.0))
    parser.add_argument("--methods", nargs="+", choices=[method.name for method in CLASSICAL])
    parser.add_argument("--field-error", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    keep_freed_memory()
    head = built_in_head(tuple(options.shape), tuple(options.voxel_size))
    scan, truth = acquire(head, field_error=options.field_error)
    noise = truth.field_noise * torch.randn(truth.chi.shape, generator=torch.Generator().manual_seed(1))
    field = (truth.local_field + truth.field_error + noise) * truth.mask
    signal = {"magnitude": scan.magnitude, "echo_times": scan.echo_times, "field_strength": scan.field_strength}
    inputs = Inputs(field, truth.mask, scan.voxel_size, scan.b0_direction, **signal)
    grid = "x".join(str(n) for n in options.shape)
    print(f"{grid} voxels, field error {100 * options.field_error:g} %, {torch.get_num_threads()} threads")
    print(f"one pair of real FFTs: {pair(field):.2f} s")
    print("| method | seconds | steps | peak memory [MiB] | NRMSE [%] | slope | XSIM |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for method in CLASSICAL:
        if options.methods is None or method.name in options.methods:
            chi, seconds, steps = inverted(inputs, method, options.rounds)
            memory = peak_memory(inputs, method, torch.device("cpu"))
            nrmse = metrics.nrmse(chi, truth.chi, truth.mask, demean=True)
            slope = metrics.slope(chi, truth.chi, truth.mask)
            compared = (torch.where(truth.mask, one - one[truth.mask].mean(), 0) for one in (chi, truth.chi))
            xsim = metrics.xsim(*compared, truth.mask)
            cost = f"{seconds:.1f} | {steps or ''} | {memory:.0f}"
            print(f"| `{method.name}` | {cost} | {nrmse:.1f} | {slope:.2f} | {xsim:.2f} |")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
