"""How the error of chi grows with noise on the field, method by method.

    python benchmarks/noise.py [--labels PACKED] METHOD ...

METHOD is an inversion, a network that starts at the total field, or the best.safetensors of a training of either.
Gaussian noise of growing SD is added to the field that the method takes, of the built-in head or of the first head of
packed label maps; prints NRMSE [%] against the truth, and by how much the last column exceeds the first.
"""

import argparse
from pathlib import Path

import torch

from chimap import from_local_field, methods, metrics
from chimap.arrays import Volume
from chimap.commands.console import keep_freed_memory
from chimap.physics.shim import shim_field
from chimap.simulation.acquisition import fields_of
from chimap.simulation.anatomy import label_head
from chimap.simulation.head import Head, built_in_head
from chimap.simulation.labels import read_packed

NOISE = (0.0, 0.001, 0.002, 0.005, 0.01)
"""SD [ppm]; 3 T, 20 ms and a magnitude of 20 times its noise give 0.003."""
SHAPE = (160, 192, 160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--labels", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    head = built_in_head() if options.labels is None else label_head(read_packed(options.labels)[0], SHAPE, (1.0,) * 3)
    total, local = fields_of(head)
    total = total - shim_field(total, head.mask.float(), head.voxel_size)
    print("| method | " + " | ".join(f"{sd:g} ppm" for sd in NOISE) + " | growth |")
    print("| --- |" + " ---: |" * (len(NOISE) + 1))
    for name in options.methods:
        method = methods.find(name, "inversion", "from total field")
        errors = [error(method, head, local if method.stage == "inversion" else total, sd) for sd in NOISE]
        cells = " | ".join(f"{one:.1f}" for one in errors)
        print(f"| {method.label} | {cells} | {errors[-1] - errors[0]:.1f} |")


def error(method: methods.Method, head: Head, field: Volume, sd: float) -> float:
    noise = sd * torch.randn(head.shape, generator=torch.Generator().manual_seed(0))
    where = (head.mask, head.voxel_size, head.b0_direction)
    with torch.no_grad():
        if method.stage == "inversion":
            chi = from_local_field.invert((field + noise) * head.mask, *where, method=method.name)
        else:
            chi, _ = methods.call(method, {}, (field + noise) * head.mask, *where)
    return metrics.nrmse(chi, head.chi, head.mask, demean=True)


if __name__ == "__main__":
    main()
