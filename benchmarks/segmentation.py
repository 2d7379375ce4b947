"""How well `parcellation.segment` finds regions in simulated whole heads: Dice and region values.

    python benchmarks/segmentation.py [--labels HELD_OUT.npz] [--cases axial-real …] [--weights segment]

Each head is scanned, and chi reconstructed by the default chain with the package's own mask; then it is segmented, with
the magnitude and without. Dice is with the labels of the head in its whole brain, so what the mask misses counts as
missed. "chi" is the mean over the region found less that over the true region's part of the mask, of the same
reconstruction [ppb]: what a segmentation by hand would have changed. Rows are means over the heads; the last column
says the worst Dice. The built-in head stands in where no labels are given. Labels must be of heads that nobody trained
on: 13 and later for the weights of the package.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from chimap.benchmark.cases import Simulator, chosen, in_order_of_heads, people
from chimap.commands.console import keep_freed_memory
from chimap.parcellation import NAMES, REGIONS, classes_of, segment
from chimap.pipeline import reconstruct
from chimap.simulation.labels import read_packed

Row = tuple[float, float]
"""Dice, and the change of the mean of chi [ppm]."""


def scores(found: Tensor, labels: Tensor, chi: Tensor, brain: Tensor, mask: Tensor) -> dict[str, Row]:
    """By region that the head has: found are numbers of `NAMES`, labels those of `tissues.TISSUES`."""
    truth, rows = classes_of(labels) * brain, {}
    for index, (name, number) in enumerate(zip(REGIONS, NAMES, strict=True), start=1):
        true, own = truth == index, found == number
        if not true.any():
            continue
        dice = float(2 * (true & own).sum() / (true.sum() + own.sum()))
        both = own.any() and (true & mask).any()
        rows[name] = dice, float(chi[own].mean() - chi[true & mask].mean()) if both else float("nan")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", nargs="*", type=Path, default=[])
    parser.add_argument("--cases", nargs="*", default=["axial-real", "oblique-real", "anisotropic-real"])
    parser.add_argument("--shape", nargs=3, type=int, default=(160, 192, 160))
    parser.add_argument("--weights", default="segment")
    options = parser.parse_args()
    keep_freed_memory()
    table: dict[str, dict[str, list[Row]]] = {}
    seconds = []
    with torch.no_grad():
        for person in people([one for path in options.labels for one in read_packed(path)]):
            simulate = Simulator(person, tuple(options.shape))
            for case in in_order_of_heads(chosen(options.cases)):
                subject = simulate(case)
                scan = replace(subject.scan, mask=None)
                maps = reconstruct(scan)
                for seen, magnitude in ((case.name, scan.magnitude), (f"{case.name}, no magnitude", None)):
                    start = time.perf_counter()
                    where = maps.chi, maps.mask, scan.voxel_size, scan.affine
                    found = segment(magnitude, *where, weights=options.weights).labels
                    seconds.append(time.perf_counter() - start)
                    rows = scores(found, subject.head.labels, maps.chi, subject.truth.mask, maps.mask)
                    for name, row in rows.items():
                        table.setdefault(seen, {}).setdefault(name, []).append(row)
    for seen, regions in table.items():
        print(f"\n{seen}\n\n| region | Dice | chi [ppb] | worst Dice |\n| --- | ---: | ---: | ---: |")
        for name, rows in regions.items():
            dice, change = torch.tensor(rows).T
            print(f"| {name} | {dice.mean():.3f} | {1000 * change.mean():+.1f} | {dice.min():.3f} |")
        mean = torch.tensor([[row[0] for row in rows] for rows in regions.values()]).mean()
        print(f"| mean | {mean:.3f} | | |")
    print(f"\n{sum(seconds) / len(seconds):.1f} s a segmentation, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
