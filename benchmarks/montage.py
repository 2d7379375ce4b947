"""A simulated subject beside a real one: magnitude, phase, local field, chi. To be judged by eye.

    python benchmarks/montage.py LABELS.npz [--output montage.png] [--seed 0]

LABELS is a file of `chimap pack`. The lower rows, real scans, need ../shared/data or CHIMAP_DATA and are
left out without.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from chimap.commands.console import keep_freed_memory
from chimap.io.nifti import read_volume
from chimap.simulation.acquisition import acquire
from chimap.simulation.anatomy import label_head
from chimap.simulation.labels import read_packed

Panel = tuple[str, Tensor, float, float]


def simulated(labels: Path, seed: int) -> list[Panel]:
    maps = read_packed(labels)
    head = label_head(maps[seed % len(maps)], seed=seed)
    scan, truth = acquire(head, field_error=0.5, seed=seed)
    assert scan.magnitude is not None
    measured = (truth.local_field + truth.field_error) * truth.mask
    bright = float(scan.magnitude[0][truth.mask].quantile(0.5))
    return [
        ("magnitude, 4 ms", scan.magnitude[0], 0, 1.8 * bright),
        ("magnitude, 22 ms", scan.magnitude[3], 0, 1.2 * bright),
        ("phase, 22 ms", scan.phase[3], -np.pi, np.pi),
        ("local field", measured, -0.05, 0.05),
        ("true chi", truth.chi, -0.1, 0.15),
    ]


def real(folder: Path) -> list[Panel]:
    challenge, epi = folder / "challenge-2016", folder / "epi-whole-brain"
    found = [
        ("real magnitude, masked", read_volume(challenge / "magnitude.nii.gz")[0], None, None),
        ("real local field", read_volume(challenge / "local_field_ppm.nii.gz")[0], -0.05, 0.05),
        ("real magnitude, EPI", read_volume(epi / "part-mag_T2starw.nii.gz")[0], None, None),
        ("real phase, EPI", read_volume(epi / "part-phase_T2starw.nii.gz")[0], None, None),
    ]
    return [
        (name, volume, *(np.percentile(volume.numpy(), (1, 99)) if low is None else (low, high)))
        for name, volume, low, high in found
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--output", type=Path, default=Path("montage.png"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    keep_freed_memory()
    rows = [simulated(options.labels, options.seed)]
    data = Path(os.environ.get("CHIMAP_DATA", Path(__file__).parents[2] / "shared" / "data")) / "real"
    if data.is_dir():
        rows.append(real(data))
    figure = Figure(figsize=(20, 8.4 * len(rows)), layout="constrained", facecolor="black")
    panels = figure.subplots(2 * len(rows), 5)
    for axes in panels.flat:
        axes.axis("off")
    for row, entries in enumerate(rows):
        for column, (name, volume, low, high) in enumerate(entries):
            x, y, z = (n // 2 for n in volume.shape)
            for line, image in ((2 * row, volume[:, :, z]), (2 * row + 1, volume[x + 6 if x > 20 else x])):
                panels[line, column].imshow(image.T.numpy(), origin="lower", cmap="gray", vmin=low, vmax=high)
            panels[2 * row, column].set_title(name, color="white", fontsize=13)
    figure.savefig(options.output, dpi=60)
    print(options.output)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
