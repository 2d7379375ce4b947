"""NRMSE of chi where a scan of 1 mm has thick slices, resampled to 1 mm.

    python benchmarks/slices.py [--labels PACKED] METHOD ...

METHOD is an inversion of the local field or of the phase, or the best.safetensors of a training of either. The case
"axial-real" of the benchmark is seen through slices of growing thickness along z; the truth is chi of the brain in the
same slices, the mask the true one. Prints NRMSE [%].
"""

import argparse
from pathlib import Path

import torch

from chimap import from_local_field, methods, metrics
from chimap.benchmark.cases import SCALES, Simulator, chosen, people
from chimap.commands.console import keep_freed_memory
from chimap.physics.signal import mean_in_slices, signal_through_slices, through_slices
from chimap.simulation.labels import read_packed

THICKNESS = (1.0, 1.5, 2.0, 3.0)
"""[mm]."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--labels", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    simulate = Simulator(people([] if options.labels is None else read_packed(options.labels)[:1])[0], SCALES["full"])
    subject = simulate(chosen(["axial-real"])[0])
    scan, truth, mask = subject.scan, subject.truth, subject.head.mask
    where = scan.voxel_size, scan.b0_direction
    print("| method | " + " | ".join(f"{thickness:g} mm" for thickness in THICKNESS) + " |")
    print("| --- |" + " ---: |" * len(THICKNESS))
    for name in options.methods:
        method = methods.find(name, "inversion", "from phase")
        row = []
        for thickness in THICKNESS:
            sharp, cut = thickness == 1, (2, thickness)
            chi = truth.chi if sharp else mean_in_slices(truth.chi, mask, *cut)
            inside = mask
            with torch.no_grad():
                if method.stage == "inversion":
                    field = truth.local_field + truth.field_error
                    field = field if sharp else through_slices(field, *cut)
                    found = from_local_field.invert(field * mask, mask, *where, method=method.name)
                else:
                    echoes = list(zip(scan.phase, scan.magnitude, strict=True))
                    seen = echoes if sharp else [signal_through_slices(*echo, *cut) for echo in echoes]
                    phase, magnitude = (torch.stack(part) for part in zip(*seen, strict=True))
                    signal = (phase, magnitude, mask, scan.echo_times, scan.field_strength)
                    found, inside = methods.call(method, {}, *signal, *where)
            row.append(metrics.nrmse(found, chi, inside, demean=True))
        print(f"| {method.label} | " + " | ".join(f"{value:.1f}" for value in row) + " |")


if __name__ == "__main__":
    main()
