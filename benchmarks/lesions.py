"""chi of lesions and of the tissue around them, by method, in the true mask.

    python benchmarks/lesions.py [--labels PACKED] [--cases NAME ...] [--set METHOD.NAME=VALUE ...] METHOD ...

METHOD is an inversion of the local field, of the total field or of the phase, or the best.safetensors of a training of
one. Each starts from the true field of its stage with its error, or from the phase. Printed for each case: NRMSE [%],
NRMSE where there is no lesion (no |chi| above 0.4 ppm), the mean chi [ppm] of the lesions, found and true, and the
volume [mm^3] of what looks like one and is none; some of it is the rim of lesions.
"""

import argparse
import math
from pathlib import Path

import torch

from chimap import methods, metrics
from chimap.benchmark.cases import SCALES, Simulator, chosen, people
from chimap.benchmark.inputs import ENTRIES, of_scan
from chimap.commands.console import keep_freed_memory
from chimap.simulation.labels import read_packed

STRONG = 0.4
"""|chi| [ppm] beyond that of healthy tissue."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--cases", nargs="+", default=["haemorrhage-real", "calcification-real"])
    parser.add_argument("--set", nargs="+", default=[])
    options = parser.parse_args()
    settings = methods.settings_from_text(options.set)
    keep_freed_memory()
    simulate = Simulator(people([] if options.labels is None else read_packed(options.labels)[:1])[0], SCALES["full"])
    print("| case | method | NRMSE [%] | tissue [%] | lesions [ppm] | true [ppm] | invented [mm³] |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for case in chosen(options.cases):
        subject = simulate(case)
        truth, mask = subject.truth, subject.head.mask
        true, error = truth.chi, truth.field_error
        given = of_scan(subject.scan, truth.local_field + error, mask, truth.total_field + error, mask)
        for name in options.methods:
            method = methods.find(name, "inversion", "from phase", "from total field")
            with torch.no_grad():
                chi, valid = ENTRIES[method.stage].call(given, method.name, settings)
            lesions, tissue = valid & (true.abs() > STRONG), valid & (true.abs() <= STRONG)
            errors = [f"{metrics.nrmse(chi, true, where, demean=True):.1f}" for where in (valid, tissue)]
            means = [f"{float(volume[lesions].mean()):.2f}" for volume in (chi, true)]
            invented = f"{int((tissue & (chi.abs() > STRONG)).sum()) * math.prod(given.voxel_size):.0f}"
            print("| " + " | ".join([case.name, method.label, *errors, *means, invented]) + " |", flush=True)


if __name__ == "__main__":
    main()
