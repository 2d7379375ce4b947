"""uQSM+ on one's own scans: local fields are enough, no reference map is needed.

    chimap run --phase phase.nii.gz --output scans/sub-01         # and so on: a folder for each scan
    chimap pack --output validation.npz labels/sub-90_aseg.mgz    # a FreeSurfer segmentation of anybody, to judge by
    python examples/train_on_your_data.py --scans scans --validation validation.npz --output own --steps 2000

Begins with the weights that come with the package, keeps the best, and draws chi of the first scan by both. On a GPU if
there is one; on two cores a step takes seconds.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

import chimap
from chimap import cli
from chimap.io import nifti, space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, required=True, help="folder with a folder for each scan")
    parser.add_argument("--validation", type=Path, required=True, help="made by `chimap pack`")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--set", action="append", default=[], help="as `chimap train` has it")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()

    words = ["train", "uqsm+", "--data", options.scans, "--validation", options.validation, "--output", options.output]
    words += ["--steps", options.steps, "--start", "uqsm+", *(word for one in options.set for word in ("--set", one))]
    if cli.main([str(word) for word in words]) != 0:
        raise SystemExit(2)

    first = sorted(options.scans.glob("*/local_field.nii.gz"))[0].parent
    field, affine = nifti.read_volume(first / "local_field.nii.gz")
    mask, _ = nifti.read_mask(first / "mask.nii.gz", affine, field.shape, "the local field")
    where = space.voxel_size(affine), space.b0_from_affine(affine)
    middle = field.shape[2] // 2
    figure, axes = plt.subplots(1, 2, figsize=(8, 4.5), layout="constrained")
    for place, (name, method) in enumerate(
        {"as it comes": "uqsm+", "after your scans": str(options.output / "best.safetensors")}.items()
    ):
        chi = chimap.invert(field, mask, *where, method=method)
        axes[place].imshow(chi[:, :, middle].T, cmap="gray", vmin=-0.1, vmax=0.15, origin="lower")
        axes[place].set_title(name)
        axes[place].axis("off")
    figure.savefig(options.output / "before-and-after.png", dpi=100)
    print(f"Picture: {options.output / 'before-and-after.png'}")


if __name__ == "__main__":
    main()
