"""Seconds of one training step without its sample, by number format and memory order.

    python benchmarks/training_step.py LABELS.npz [RECIPE ...]

LABELS is a file of `chimap pack`. Medians of five steps after one that does not count.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from chimap.commands.console import keep_freed_memory
from chimap.networks.build import build
from chimap.simulation.labels import read_packed
from chimap.training.recipes.table import RECIPES, find
from chimap.training.samples import draw_batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("recipes", nargs="*", default=list(RECIPES))
    options = parser.parse_args()
    keep_freed_memory()
    maps = read_packed(options.labels)
    for name in options.recipes:
        recipe = find(name)
        settings = recipe.sizes["cpu"]
        sample = draw_batch(maps, settings.samples, range(settings.batch))
        for low in (False, True):
            for order in (torch.contiguous_format, torch.channels_last_3d):
                network = build(settings.network).to(memory_format=order)
                optimiser = torch.optim.Adam(network.parameters())
                seconds = []
                for step in range(6):
                    start = time.perf_counter()
                    optimiser.zero_grad()
                    with torch.autocast("cpu", torch.bfloat16, enabled=low):
                        parts = recipe.loss(network, sample, settings, step, torch.Generator().manual_seed(step))
                    parts["loss"].backward()
                    optimiser.step()
                    seconds.append(time.perf_counter() - start)
                what = f"{'bf16' if low else 'float32'}, {str(order).removeprefix('torch.')}"
                print(f"{name:<8} batch {settings.batch}  {what:<28} {statistics.median(seconds[1:]):.2f} s")


if __name__ == "__main__":
    main()
