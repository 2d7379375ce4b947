"""What a second pass gains: chi of `--two-pass` beside that of the default, on heads with strong sources.

    python benchmarks/two_pass.py [--labels FILE.npz …] [--cases haemorrhage-real …] [--people 1] [--shape 160 192 160]

From wrapped phase in the package's own mask. NRMSE of chi [%] everywhere, in the sources (|chi| above 0.3 ppm), in all
other tissue, and of that within 12 mm of a source; each in percent of the truth's own spread there. The last column is
the share of the mask that has the chi of the second pass [%].
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from chimap import metrics
from chimap.arrays import Mask, Triple, Volume
from chimap.benchmark.cases import CASES, Simulator, in_order_of_heads, people
from chimap.commands.console import keep_freed_memory
from chimap.fields.mask import erode, with_holes
from chimap.pipeline import reconstruct
from chimap.plan import Plan
from chimap.simulation.labels import read_packed

STRONG = 0.3
"""Above this |chi| [ppm] a voxel is part of a strong source."""
NEAR = 12.0
"""Up to so far from one [mm] its artefacts are looked for."""
GAP = 1.5
"""Voxels closer than this [mm] share their signal with a source and are left out of the tissue."""
COLUMNS = ("all", "sources", "tissue", "near", "second pass")


def errors(chi: Volume, truth: Volume, inside: Mask, voxel_size: Triple) -> list[float]:
    """NRMSE [%] in the regions of the columns."""
    strong = (truth.abs() > STRONG) & inside
    tissue = inside & erode(~strong, GAP, voxel_size)
    near = tissue & ~erode(~strong, NEAR, voxel_size)
    chi, truth = chi - chi[tissue].mean(), truth - truth[tissue].mean()
    regions = ((inside, True), (strong, False), (tissue, True), (near, True))
    return [metrics.nrmse(chi, truth, region, demean=demean) for region, demean in regions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", nargs="*", type=Path, default=[])
    names = ["haemorrhage-real", "calcification-real", "calcification-low-snr"]
    parser.add_argument("--cases", nargs="*", default=names)
    parser.add_argument("--people", type=int, help="so many of the labels; all if not given")
    parser.add_argument("--shape", nargs=3, type=int, default=(160, 192, 160))
    options = parser.parse_args()
    keep_freed_memory()
    cases = in_order_of_heads([case for case in CASES if case.name in options.cases])
    print("| head | case | passes |", " | ".join(COLUMNS), "|")
    print("| --- | --- | --- |", " | ".join(["---:"] * len(COLUMNS)), "|")
    for person in people([one for path in options.labels for one in read_packed(path)])[: options.people]:
        simulate = Simulator(person, (options.shape[0], options.shape[1], options.shape[2]))
        for case in cases:
            subject = simulate(case)
            scan, truth = subject.scan, subject.truth
            for name, plan in (("one", Plan()), ("two", replace(Plan(), two_pass=True))):
                with torch.no_grad():
                    maps = reconstruct(scan, plan)
                row = errors(maps.chi, truth.chi, maps.mask & truth.mask, scan.voxel_size)
                cells = [f"{value:.1f}" for value in row]
                if plan.two_pass:
                    second = maps.mask & ~with_holes(maps.brain_mask, maps.field_noise)
                    cells.append(f"{100 * float(second.sum() / maps.mask.sum()):.1f}")
                print("|", " | ".join((person.name, case.name, name, *cells)), "|", flush=True)


if __name__ == "__main__":
    main()
