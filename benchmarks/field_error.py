"""How much of a field lies near the magic-angle cone, where a dipole field has hardly any energy: what no chi explains.

    python benchmarks/field_error.py

Printed is the share of energy where |D| < 0.1, of the built-in head's local field at 2 mm, of each part of the field
error, of the field with errors of several shares, and of the 2016 challenge's measured field, which needs
../shared/data or CHIMAP_DATA. A field without structure has the volume of that region.
"""

import os
from pathlib import Path

import torch

from chimap.arrays import Mask, Triple, Volume
from chimap.io.nifti import read_volume
from chimap.io.space import b0_from_affine, voxel_size
from chimap.physics.dipole import dipole_kernel
from chimap.simulation.acquisition import local_field_of
from chimap.simulation.field_error import PARTS, field_error
from chimap.simulation.head import built_in_head


def near_the_cone(field: Volume, mask: Mask, size: Triple, b0: Triple) -> str:
    energy = torch.fft.fftn((field - field[mask].mean()) * mask).abs() ** 2
    cone = dipole_kernel(field.shape, size, b0).abs() < 0.1
    return f"{float(100 * energy[cone].sum() / energy.sum()):5.1f} %"


def main() -> None:
    head = built_in_head((80, 96, 80), (2.0, 2.0, 2.0))
    local = local_field_of(head)
    where = (head.mask, head.voxel_size, head.b0_direction)
    cone = dipole_kernel(head.shape, head.voxel_size, head.b0_direction).abs() < 0.1
    print(f"no structure                  {100 * float(cone.float().mean()):5.1f} %")
    print(f"built-in head, local field    {near_the_cone(local, *where)}")

    def error(share: float, seed: int, **parts: float) -> Volume:
        return field_error(
            head.labels,
            *where,
            share=share,
            local_field=local,
            generator=torch.Generator().manual_seed(seed),
            parts=parts or None,
        )

    for part in PARTS:
        print(f"error, {part:<23}{near_the_cone(error(0.5, 0, **{part: 1.0}), *where)}")
    for share in (0.3, 0.5, 0.7, 0.9):
        print(f"field with an error of {share:g}    {near_the_cone(local + error(share, 1), *where)}")
    folder = Path(os.environ.get("CHIMAP_DATA", Path(__file__).parents[2] / "shared" / "data"))
    path = folder / "real" / "challenge-2016" / "local_field_ppm.nii.gz"
    if path.exists():
        field, affine = read_volume(path)
        mask = read_volume(path.with_name("mask.nii.gz"))[0] > 0
        print(f"2016 challenge, measured      {near_the_cone(field, mask, voxel_size(affine), b0_from_affine(affine))}")


if __name__ == "__main__":
    main()
