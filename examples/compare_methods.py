"""Several inversions on one scan, side by side.

    python examples/compare_methods.py --phase phase.nii.gz --magnitude magnitude.nii.gz --output compared
    python examples/compare_methods.py --output compared        # the built-in head, whose truth is known

The field is made once, so that what differs between the maps is the inversion alone.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch

import chimap
from chimap import metrics
from chimap.simulation.acquisition import acquire
from chimap.simulation.head import built_in_head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", nargs="+", default=[], help="as `chimap run` takes it, with JSON beside it")
    parser.add_argument("--magnitude", nargs="+", default=[])
    parser.add_argument("--methods", nargs="+", default=["tkd", "tikhonov", "tv", "qsmnet+"])
    parser.add_argument("--voxel-size", type=float, default=2.0, help="of the built-in head [mm]")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()

    truth = None
    if options.phase:
        scan = chimap.read_scan(options.phase, options.magnitude)
    else:
        size = options.voxel_size
        shape = (round(176 / size), round(224 / size), round(176 / size))
        scan, truth = acquire(built_in_head(shape, (size, size, size), seed=1), seed=1)
    maps = chimap.reconstruct(scan, method=options.methods[0])

    found = {}
    for method in options.methods:
        chi = chimap.invert(
            maps.local_field,
            maps.mask,
            scan.voxel_size,
            scan.b0_direction,
            magnitude=None if scan.magnitude is None else scan.magnitude.square().sum(dim=0).sqrt(),
            method=method,
        )
        found[method] = torch.where(maps.mask, chi - chi[maps.mask].mean(), 0)
    if truth is not None:
        found["truth"] = torch.where(maps.mask, truth.chi - truth.chi[maps.mask].mean(), 0)

    options.output.mkdir(parents=True, exist_ok=True)
    for method, chi in found.items():
        values = chi[maps.mask]
        line = f"{method:10s} SD {float(values.std()):.4f} ppm"
        if truth is not None and method != "truth":
            line += f", NRMSE {metrics.nrmse(chi, found['truth'], maps.mask & truth.mask, demean=True):.1f} %"
        print(line)
        chimap.write_volume(options.output / f"{method}.nii.gz", chi, scan.affine, description=f"chi [ppm], {method}")

    middle = [n // 2 for n in scan.shape]
    figure, axes = plt.subplots(2, len(found), figsize=(3 * len(found), 7), squeeze=False, layout="constrained")
    for column, (method, chi) in enumerate(found.items()):
        axes[0, column].set_title(method)
        for row, picture in enumerate((chi[:, :, middle[2]], chi[middle[0]])):
            axes[row, column].imshow(picture.T, cmap="gray", vmin=-0.1, vmax=0.15, origin="lower")
            axes[row, column].axis("off")
    figure.savefig(options.output / "compared.png", dpi=100)
    print(f"Picture: {options.output / 'compared.png'}")


if __name__ == "__main__":
    main()
