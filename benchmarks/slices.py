"""NRMSE of chi where a scan of 1 mm has thick slices, resampled: what interpolation alone would cost nothing.

    python benchmarks/slices.py [--labels PACKED] METHOD ...

METHOD is an inversion of the local field or of the phase, or the best.safetensors of a training of either. The case
"axial-real" of the benchmark is seen through slices of growing thickness along z; the truth is chi of the brain in the
same slices, the mask the true one. Prints NRMSE [%].
"""

import argparse
from pathlib import Path

import torch

from chimap import from_local_field, methods, metrics
from chimap.arrays import Volume
from chimap.benchmark.cases import SCALES, Simulator, chosen, people
from chimap.commands.console import keep_freed_memory
from chimap.physics.signal import through_slices
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
            share = through(mask.float(), thickness).clamp_min(0.1)
            chi = through(truth.chi * mask, thickness) / share * mask
            inside = mask
            with torch.no_grad():
                if method.stage == "inversion":
                    field = through(truth.local_field + truth.field_error, thickness) * mask
                    found = from_local_field.invert(field, mask, *where, method=method.name)
                else:
                    real, imaginary = (
                        torch.stack([through(echo, thickness) for echo in scan.magnitude * wave])
                        for wave in (scan.phase.cos(), scan.phase.sin())
                    )
                    signal = torch.atan2(imaginary, real), torch.hypot(real, imaginary), mask
                    found, inside = methods.call(method, {}, *signal, scan.echo_times, scan.field_strength, *where)
            row.append(metrics.nrmse(found, chi, inside, demean=True))
        print(f"| {method.label} | " + " | ".join(f"{value:.1f}" for value in row) + " |")


def through(volume: Volume, thickness: float) -> Volume:
    return volume if thickness == 1 else through_slices(volume, 2, thickness)


if __name__ == "__main__":
    main()
