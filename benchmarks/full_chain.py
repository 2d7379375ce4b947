"""What each choice of the chain costs in accuracy, on the built-in head; and what padding does to a real field.

    python benchmarks/full_chain.py [--shape 160 192 160] [--voxel-size 1 1 1]

Printed are the NRMSE of chi [%, means removed], XSIM, the slope of chi over the truth, the error of the local field as
a share of the SD of the true one, and the share of the true brain mask that is kept. The last part needs the 2016
challenge's local field below ../shared/data or CHIMAP_DATA, and is left out without it.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import torch

from chimap import metrics
from chimap.arrays import Mask, Volume
from chimap.commands.console import keep_freed_memory
from chimap.inversion.direct import tkd
from chimap.inversion.total_variation import total_variation
from chimap.io.nifti import read_volume
from chimap.io.space import b0_from_affine, voxel_size
from chimap.physics.dipole import DipoleModel
from chimap.pipeline import reconstruct
from chimap.plan import Plan
from chimap.scan import Scan
from chimap.simulation.acquisition import Truth, acquire
from chimap.simulation.head import built_in_head


def row(name: str, chi: Volume, mask: Mask, truth: Truth, local_field: Volume | None = None) -> None:
    inside = mask & truth.mask
    true = truth.chi - truth.chi[inside].mean()
    chi = chi - chi[inside].mean()
    field = ""
    if local_field is not None:
        difference = (local_field - truth.local_field)[inside]
        field = f"{float(100 * difference.std() / truth.local_field[truth.mask].std()):6.0f} %"
    print(
        f"  {name:<34}{metrics.nrmse(chi, true, inside):7.1f}{metrics.xsim(chi, true, inside):8.3f}"
        f"{metrics.slope(chi, true, inside):7.2f}{field:>9}{float(100 * inside.sum() / truth.mask.sum()):7.0f} %"
    )


def full_chain(scan: Scan, truth: Truth) -> None:
    own = replace(scan, mask=None)
    plans = [
        ("V-SHARP 12 to 2 mm", scan, Plan()),
        ("V-SHARP 12 to 1 mm", scan, Plan(settings={"vsharp": {"smallest_radius": 1.0}})),
        ("V-SHARP 12 to 3 mm", scan, Plan(settings={"vsharp": {"smallest_radius": 3.0}})),
        ("RESHARP", scan, Plan(background="resharp")),
        ("PDF", scan, Plan(background="pdf")),
        ("V-SHARP, TKD", scan, Plan(inversion="tkd")),
        ("V-SHARP, TV 1e-4", scan, Plan(settings={"tv": {"regularisation": 1e-4}})),
        ("V-SHARP, TV 1e-3", scan, Plan(settings={"tv": {"regularisation": 1e-3}})),
        ("own mask, noisy voxels dropped", own, Plan()),
        ("own mask, all of it", own, Plan(noise_limit=float("inf"))),
    ]
    print("from wrapped phase (V-SHARP 12 to 2 mm, TV 3e-4 and the true mask unless a row says otherwise)")
    for name, subject, plan in plans:
        maps = reconstruct(subject, plan)
        row(name, maps.chi, maps.mask, truth, maps.local_field)


def inversion_alone(scan: Scan, truth: Truth) -> None:
    print(f"from the true local field, SD {float(truth.local_field[truth.mask].std()):.4f} ppm")
    field = truth.local_field * truth.mask
    grids = {"": 0, ", doubled grid": None}
    for name, padding in grids.items():
        dipole = DipoleModel(scan.shape, scan.voxel_size, scan.b0_direction, padding=padding)
        row(f"TKD{name}", tkd(field, truth.mask, dipole), truth.mask, truth)
        row(f"TV{name}", total_variation(field, truth.mask, dipole), truth.mask, truth)
        weighted = total_variation(field, truth.mask, dipole, truth.mask.float())
        row(f"TV weighted by the mask{name}", weighted, truth.mask, truth)


def padding_on_a_real_field() -> None:
    folder = Path(os.environ.get("CHIMAP_DATA", Path(__file__).parents[2] / "shared" / "data"))
    path = folder / "real" / "challenge-2016" / "local_field_ppm.nii.gz"
    if not path.exists():
        print(f"no {path.name}: its part is left out")
        return
    field, affine = read_volume(path)
    mask = read_volume(path.with_name("mask.nii.gz"))[0] > 0
    print(f"2016 challenge, local field's SD {float(field[mask].std()):.4f} ppm: change on a doubled grid [% NRMSE]")
    for name, function in (("TKD", tkd), ("TV", total_variation)):
        maps = [
            function(field, mask, DipoleModel(field.shape, voxel_size(affine), b0_from_affine(affine), padding=padding))
            for padding in (0, None)
        ]
        print(f"  {name:<34}{metrics.nrmse(maps[1], maps[0], mask):7.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=3, type=int, default=(160, 192, 160))
    parser.add_argument("--voxel-size", nargs=3, type=float, default=(1.0, 1.0, 1.0))
    options = parser.parse_args()
    keep_freed_memory()
    head = built_in_head(tuple(options.shape), tuple(options.voxel_size))
    scan, truth = acquire(head)
    print(f"{'':<36}{'NRMSE':>7}{'XSIM':>8}{'slope':>7}{'field':>9}{'kept':>9}")
    with torch.no_grad():
        full_chain(replace(scan, mask=truth.mask), truth)
        inversion_alone(scan, truth)
        padding_on_a_real_field()


if __name__ == "__main__":
    main()
