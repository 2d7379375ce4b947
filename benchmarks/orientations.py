"""NRMSE of chi over the direction of B0, networks taking the scan as it is.

    python benchmarks/orientations.py [--labels PACKED] METHOD ...

METHOD is an inversion of the local field or of the phase, or the best.safetensors of a training of either. The grid is
turned with the head, to 0, 30, 60 and 90 degrees from B0, so only what the method knows of the direction changes. The
field is without error, the mask the true one, and no scan is turned into a frame that the network knows. Prints NRMSE
[%] by angle, and its SD and range over the angles as shares of its mean.
"""

import argparse
from pathlib import Path

import torch

from chimap import from_local_field, methods, metrics
from chimap.benchmark.cases import SCALES, Simulator, Subject, chosen, people
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
    found = [methods.find(name, "inversion", "from phase") for name in options.methods]
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
    scan, truth, mask = subject.scan, subject.truth, subject.head.mask
    settings = {method.name: {"turn": False}} if method.takes("turn") else {}
    with torch.no_grad():
        if method.stage == "inversion":
            where = (mask, scan.voxel_size, scan.b0_direction)
            chi = from_local_field.invert(truth.local_field * mask, *where, method=method.name, settings=settings)
        else:
            signal = (scan.phase, scan.magnitude, mask, scan.echo_times, scan.field_strength)
            chi, mask = methods.call(method, settings, *signal, scan.voxel_size, scan.b0_direction)
    return metrics.nrmse(chi, truth.chi, mask, demean=True)


if __name__ == "__main__":
    main()
