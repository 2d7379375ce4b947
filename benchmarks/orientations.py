"""NRMSE of chi over the direction of B0, networks taking the scan as it is.

    python benchmarks/orientations.py [--labels PACKED] METHOD ...

METHOD gives chi of the local field, the total field or the phase, or is the best.safetensors of such a training. The
grid is turned with the head, to 0, 30, 60 and 90 degrees from B0, so only what the method knows of the direction
changes. The field is without error, the mask the true one, and no scan is turned into a frame that the network knows.
Prints NRMSE [%] by angle, and its SD and range over the angles as shares of its mean.
"""

import argparse
from pathlib import Path

import torch

from chimap import methods, metrics
from chimap.benchmark.cases import SCALES, Simulator, Subject, chosen, people
from chimap.benchmark.inputs import ENTRIES, of_scan
from chimap.commands.console import keep_freed_memory
from chimap.simulation.labels import read_packed

ANGLES = (0, 30, 60, 90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--labels", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    simulate = Simulator(people([] if options.labels is None else read_packed(options.labels)[:1])[0], SCALES["full"])
    found = [methods.find(name, *methods.TO_CHI) for name in options.methods]
    errors: list[list[float]] = [[] for _ in found]
    for angle in ANGLES:
        subject = simulate(chosen([f"orientation-{angle:02d}"])[0])
        for method, row in zip(found, errors, strict=True):
            row.append(error(method, subject))
    print("| method | " + " | ".join(f"{angle}°" for angle in ANGLES) + " | SD / mean [%] | range / mean [%] |")
    print("| --- |" + " ---: |" * (len(ANGLES) + 2))
    for method, row in zip(found, errors, strict=True):
        values = torch.tensor(row)
        shares = [
            float(100 * spread / values.mean()) for spread in (values.std(correction=0), values.max() - values.min())
        ]
        print(f"| {method.label} | " + " | ".join(f"{value:.1f}" for value in (*row, *shares)) + " |")


def error(method: methods.Method, subject: Subject) -> float:
    truth, mask = subject.truth, subject.head.mask
    settings = {method.name: {"turn": False}} if method.takes("turn") else {}
    given = of_scan(subject.scan, truth.local_field, mask, truth.total_field, mask)
    with torch.no_grad():
        chi, valid = ENTRIES[method.stage].call(given, method.name, settings)
    return metrics.nrmse(chi, truth.chi, valid, demean=True)


if __name__ == "__main__":
    main()
