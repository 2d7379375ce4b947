"""Whether the training on a card begins again as it began: its first losses, next to those of its table.

    python benchmarks/first_losses.py NAME --data TRAIN.npz

NAME is a method whose weights are shipped, TRAIN.npz the packed label maps of its card (`chimap pack`). Runs the steps
of the card's table, on the CPU. The same device, number of threads and torch give the same digits; others nearly.
"""

import argparse
import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from chimap.commands.console import keep_freed_memory
from chimap.networks.weights import FOLDER
from chimap.simulation.labels import read_packed
from chimap.training.recipes.table import find
from chimap.training.samples import Sample, draw_batch
from chimap.training.train import read_best, train


class Enough(Exception):
    pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    keep_freed_memory()
    card = (FOLDER / f"{options.name}.md").read_text()
    table = card.split("## First losses")[1].split("##")[0]
    logged = {int(step): float(loss) for step, loss in re.findall(r"^\| (\d+) \| ([\d.]+) \|$", table, re.MULTILINE)}
    found = hashlib.sha256(options.data.read_bytes()).hexdigest()[:16]
    if found not in card:
        print(f"{options.data} has the SHA-256 {found}…, which is not the card's: other people's losses differ")
    _, settings, _ = read_best(FOLDER / f"{options.name}.safetensors")
    people = read_packed(options.data)

    def draw(seeds: Sequence[int]) -> Sample:
        if seeds[0] % 2**40 > max(logged) * settings.batch:
            raise Enough
        return draw_batch(people, settings.samples, seeds)

    with tempfile.TemporaryDirectory() as folder:
        try:
            train(find(settings.recipe), settings, draw, [], Path(folder) / "again", device=torch.device("cpu"))
        except Enough:
            pass
        lines = (Path(folder) / "again" / "log.jsonl").read_text().splitlines()
    again = {entry["step"]: entry["loss"] for entry in map(json.loads, lines)}
    print(f"{'step':>5} {'card':>10} {'again':>10}")
    for step, loss in logged.items():
        print(f"{step:>5} {loss:>10.6f} {again[step]:>10.6f}")
    print(f"largest difference {max(abs(again[step] - loss) for step, loss in logged.items()):.1e}")


if __name__ == "__main__":
    main()
