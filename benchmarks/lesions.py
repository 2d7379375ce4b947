"""chi of lesions and of the tissue around them, by method, in the true mask.

    python benchmarks/lesions.py [--labels PACKED] [--cases NAME ...] METHOD ...

METHOD is an inversion of the local field, of the total field or of the phase, or the best.safetensors of a training of
one. Each starts from the true field of its stage with its error, or from the phase. Printed for each case: NRMSE [%],
NRMSE where there is no lesion (no |chi| above 0.4 ppm), and the mean chi [ppm] of the lesions, found and true.
"""

import argparse
from pathlib import Path

import torch

from chimap import from_local_field, methods, metrics
from chimap.arrays import Mask, Volume
from chimap.benchmark.cases import SCALES, Simulator, Subject, chosen, people
from chimap.commands.console import keep_freed_memory
from chimap.simulation.labels import read_packed

STRONG = 0.4
"""|chi| [ppm] beyond that of healthy tissue."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--cases", nargs="+", default=["haemorrhage-real", "calcification-real"])
    options = parser.parse_args()
    keep_freed_memory()
    simulate = Simulator(people([] if options.labels is None else read_packed(options.labels)[:1])[0], SCALES["full"])
    print("| case | method | NRMSE [%] | tissue [%] | lesions [ppm] | true [ppm] |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for case in chosen(options.cases):
        subject = simulate(case)
        true = subject.truth.chi
        for name in options.methods:
            method = methods.find(name, "inversion", "from phase", "from total field")
            with torch.no_grad():
                chi, mask = found(method, subject)
            lesions, tissue = mask & (true.abs() > STRONG), mask & (true.abs() <= STRONG)
            errors = [f"{metrics.nrmse(chi, true, where, demean=True):.1f}" for where in (mask, tissue)]
            means = [f"{float(volume[lesions].mean()):.2f}" for volume in (chi, true)]
            print("| " + " | ".join([case.name, method.label, *errors, *means]) + " |", flush=True)


def found(method: methods.Method, subject: Subject) -> tuple[Volume, Mask]:
    """chi [ppm] and where it is valid."""
    scan, truth, mask = subject.scan, subject.truth, subject.head.mask
    where = (scan.voxel_size, scan.b0_direction)
    if method.stage == "inversion":
        field = (truth.local_field + truth.field_error) * mask
        return from_local_field.invert(field, mask, *where, method=method.name), mask
    if method.stage == "from total field":
        field = (truth.total_field + truth.field_error) * mask
        return methods.call(method, {}, field, mask, *where)[0], mask
    signal = (scan.phase, scan.magnitude, mask, scan.echo_times, scan.field_strength)
    return methods.call(method, {}, *signal, *where)


if __name__ == "__main__":
    main()
