"""Bias and spread of R2* by several fits, where the truth is known, and the seconds that the package's takes.

    python benchmarks/relaxation.py [--labels FILE.npz …] [--shape 160 192 160]

On simulated heads, by true R2* [1/s]: the median error and half the distance of the 16th and 84th percentile [1/s] of

    chimap       the package's fit, of the power less the noise floor
    magnitude    least squares of the magnitude
    logarithm    a line through the logarithms, weighted by the squared magnitude
    ARLO         of equally spaced echoes, Pei et al. 2015, doi:10.1002/mrm.25137

Dephasing within a voxel is left out: it is no noise, and no fit of a single exponential tells it from R2*. The
seconds of the package's fit come after the table.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from chimap.benchmark.cases import people
from chimap.commands.console import keep_freed_memory
from chimap.fields.relaxation import r2star_map
from chimap.simulation.acquisition import ECHO_TIMES, fields_of, measure
from chimap.simulation.labels import read_packed

ACQUISITIONS = (
    ("3 T, SNR 50", 3.0, 50.0, ECHO_TIMES),
    ("3 T, SNR 10", 3.0, 10.0, ECHO_TIMES),
    ("7 T, SNR 50", 7.0, 50.0, (0.005, 0.011, 0.017, 0.023, 0.029)),
    ("3 T, SNR 50, uneven", 3.0, 50.0, (0.004, 0.009, 0.016, 0.025)),
    ("3 T, SNR 50, two echoes", 3.0, 50.0, (0.006, 0.022)),
)
BINS = ((0.0, 12.0), (12.0, 25.0), (25.0, 50.0), (50.0, 100.0), (100.0, 250.0))


def by_logarithm(magnitude: Tensor, times: Tensor) -> Tensor:
    """R2* [1/s] (voxel) of magnitude (echo, voxel)."""
    weight = magnitude.square()
    away = times - (weight * times).sum(dim=0) / weight.sum(dim=0)
    return -(weight * away * magnitude.clamp_min(1e-9).log()).sum(dim=0) / (weight * away.square()).sum(dim=0)


def by_magnitude(magnitude: Tensor, times: Tensor) -> Tensor:
    """Likewise by Gauss-Newton steps; the amplitude is solved for at each."""
    rate = by_logarithm(magnitude, times).clamp(0, 500)
    for _ in range(12):
        decay = (-rate * times).exp()
        amplitude = (magnitude * decay).sum(dim=0) / decay.square().sum(dim=0)
        along = decay * times
        along = along - decay * (along * decay).sum(dim=0) / decay.square().sum(dim=0)
        off = magnitude - amplitude * decay
        step = -(off * along).sum(dim=0) / (amplitude * along.square().sum(dim=0)).clamp_min(1e-12)
        rate = (rate + step.clamp(-100, 100)).clamp(0, 500)
    return rate


def by_arlo(magnitude: Tensor, times: Tensor) -> Tensor:
    """Likewise by ARLO."""
    third = float(times[1] - times[0]) / 3
    sums = third * (magnitude[:-2] + 4 * magnitude[1:-1] + magnitude[2:])
    falls = magnitude[:-2] - magnitude[2:]
    cross = (sums * falls).sum(dim=0)
    up, down = cross + third * falls.square().sum(dim=0), sums.square().sum(dim=0) + third * cross
    return up / down


def error(found: Tensor, truth: Tensor) -> str:
    """Median and spread [1/s]."""
    off = (found - truth)[:: max(len(truth) // 1_000_000, 1)]
    low, middle, high = off.quantile(off.new_tensor([0.16, 0.5, 0.84])).tolist()
    return f"{middle:+.1f} ± {(high - low) / 2:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", nargs="*", type=Path, default=[])
    parser.add_argument("--shape", nargs=3, type=int, default=(160, 192, 160))
    options = parser.parse_args()
    keep_freed_memory()
    columns = ("chimap", "magnitude", "logarithm", "ARLO")
    print("| head | acquisition | true R2* | voxels |", " | ".join(columns), "|")
    print("| --- | --- | ---: | ---: |", " | ".join(["---:"] * len(columns)), "|")
    notes = []
    for person in people([one for path in options.labels for one in read_packed(path)]):
        shape = (options.shape[0], options.shape[1], options.shape[2])
        head = person.make(shape, (160 / shape[0], 192 / shape[1], 160 / shape[2]), (0.0, 0.0, 0.0))
        field, _ = fields_of(head)
        for name, tesla, snr, echo_times in ACQUISITIONS:
            signal, _ = measure(
                head,
                field,
                echo_times=echo_times,
                field_strength=tesla,
                snr=snr,
                dephasing=False,
                generator=torch.Generator().manual_seed(person.seed),
            )
            magnitude, mask = signal.abs(), head.mask
            start = time.perf_counter()
            found = r2star_map(magnitude, mask, echo_times)[mask]
            seconds = time.perf_counter() - start
            truth = head.r2star[mask] * (tesla / 3)
            notes.append(f"{person.name}, {name}: {seconds:.1f} s")
            times = truth.new_tensor(echo_times)[:, None]
            gaps = times.diff(dim=0)
            others: list[Callable[[Tensor, Tensor], Tensor] | None] = [by_magnitude, by_logarithm, None]
            if len(gaps) > 1 and float(gaps.max()) < 1.01 * float(gaps.min()):
                others[2] = by_arlo
            for low, high in BINS:
                these = (truth >= low) & (truth < high)
                if int(these.sum()) < 100:
                    continue
                measured = magnitude[:, mask][:, these]
                cells = [error(found[these], truth[these])]
                cells += [error(fit(measured, times), truth[these]) if fit else "" for fit in others]
                row = (person.name, name, f"{low:g} to {high:g}", str(int(these.sum())), *cells)
                print("|", " | ".join(row), "|", flush=True)
    print()
    for note in notes:
        print(note)


if __name__ == "__main__":
    main()
