"""Background removal by itself: every method on the true total field in the true mask.

    python benchmarks/background.py [--labels HELD_OUT.npz ...] [--cases axial …] [--methods vsharp pdf …] [--noise]

The columns are those of error_budget.py, where the inversion is TV, and the seconds of the background removal on this
machine. With --noise the total field is the measured one, unwrapped by the truth.
"""

import argparse
import time
from pathlib import Path

import torch
from error_budget import COLUMNS, Fields, cells, field_unwrapped_by_truth, measured

from chimap.benchmark.cases import CASES, Simulator, in_order_of_heads, people
from chimap.commands.console import keep_freed_memory
from chimap.methods import call, find, names
from chimap.physics.dipole import DipoleModel
from chimap.simulation.acquisition import acquire
from chimap.simulation.labels import read_packed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", nargs="*", type=Path, default=[])
    parser.add_argument("--cases", nargs="*", default=["axial", "anisotropic", "7t"])
    parser.add_argument("--methods", nargs="*", default=names("background"))
    parser.add_argument("--shape", nargs=3, type=int, default=(160, 192, 160))
    parser.add_argument("--noise", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    persons = people([one for path in options.labels for one in read_packed(path)])
    cases = in_order_of_heads([case for case in CASES if case.name in options.cases])
    sums: dict[tuple[str, str], dict[str, float]] = {}
    with torch.no_grad():
        for person in persons:
            simulate = Simulator(person, tuple(options.shape))
            for case in cases:
                subject = simulate(case)
                scan, truth = subject.scan, subject.truth
                field, noise = truth.total_field * truth.mask, None
                if options.noise:
                    times = {"echo_times": case.echo_times, "field_strength": case.field_strength, "snr": case.snr}
                    plain, _ = acquire(subject.head, **times, phase_offset=False, seed=person.seed)
                    field, noise = field_unwrapped_by_truth(plain, truth)
                dipole = DipoleModel(scan.shape, scan.voxel_size, scan.b0_direction, padding=0)
                for name in options.methods:
                    start = time.perf_counter()
                    local, valid = call(find(name, "background"), {}, field, noise, truth.mask, dipole)
                    seconds = time.perf_counter() - start
                    row = measured(Fields(local, valid), scan, truth) | {"seconds": seconds}
                    total = sums.setdefault((case.name, name), {})
                    for column, value in row.items():
                        total[column] = total.get(column, 0.0) + value / len(persons)
    print("| case | method |", " | ".join(COLUMNS), "| seconds |")
    print("| --- | --- |", " | ".join(["---:"] * (len(COLUMNS) + 1)), "|")
    for (case, name), row in sums.items():
        print(f"| {case} | {Path(name).name} |", " | ".join(cells(row)), f"| {row['seconds']:.1f} |")


if __name__ == "__main__":
    main()
