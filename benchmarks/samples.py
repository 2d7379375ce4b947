"""How long one training sample takes, and where the time goes.

    python benchmarks/samples.py LABELS.npz [--device cpu|cuda] [--repeats 10]

LABELS is a file of `chimap pack`. Printed are the median seconds of a sample of 64^3 and of 96^3 voxels, with and
without the scan (total field, wrapped phase, magnitude), after two warm-up samples.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from chimap.commands.console import keep_freed_memory
from chimap.simulation.labels import read_packed
from chimap.training.samples import SampleSettings, draw_sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    keep_freed_memory()
    maps = read_packed(options.labels, device=torch.device(options.device))
    print(f"{len(maps)} heads, {options.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for side in (64, 96):
        for scan in (True, False):
            settings = SampleSettings(shape=(side, side, side), scan=scan)
            seconds = []
            for seed in range(options.repeats + 2):
                start = time.perf_counter()
                draw_sample(maps, settings, seed)
                if options.device != "cpu":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
            what = "with the scan" if scan else "local field and chi"
            print(f"{side}^3  {what:<20} {1000 * statistics.median(seconds[2:]):6.0f} ms")


if __name__ == "__main__":
    main()
