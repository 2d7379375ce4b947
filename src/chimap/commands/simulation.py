"""Heads with known truth: `chimap demo`."""

from collections.abc import Sequence
from pathlib import Path

import torch

from chimap import metrics, pipeline
from chimap.arrays import Triple
from chimap.commands.console import console, keep_freed_memory, print_table, progress, tell
from chimap.commands.reconstruction import print_seconds, reconstruct, write_maps
from chimap.io import nifti
from chimap.io.output import whole_directory
from chimap.plan import Plan


def demo(*, output: Path, shape: tuple[int, int, int], voxel_size: Triple, seed: int, command: Sequence[str]) -> None:
    """Simulate the built-in head, write it as a user's files, reconstruct those and compare with the truth."""
    from chimap.io.bids import write_megre
    from chimap.report.figures import three_planes
    from chimap.report.view import view_of
    from chimap.simulation.acquisition import acquire
    from chimap.simulation.head import built_in_head

    keep_freed_memory()
    with progress() as begin:
        begin("simulating a head", 2)
        head = built_in_head(shape, voxel_size, seed=seed)
        begin("simulating its acquisition", 2)
        simulated, truth = acquire(head, seed=seed)
    with whole_directory(output / "input") as folder:
        files = write_megre(folder, simulated, subject="demo")
        nifti.write_volume(folder / "truth_chi.nii.gz", truth.chi, simulated.affine, description="true chi [ppm]")
        nifti.write_volume(
            folder / "truth_local_field.nii.gz",
            truth.local_field,
            simulated.affine,
            description="true field [ppm]",
        )
        nifti.write_volume(folder / "truth_mask.nii.gz", truth.mask, simulated.affine, description="true brain")
    del head, simulated
    source = output / "input"
    scan = nifti.read_scan(
        [source / path.name for path in files.phase], [source / path.name for path in files.magnitude]
    )
    plan = Plan()
    maps = reconstruct(scan, plan)
    compared = maps.mask & truth.mask
    reference = torch.where(compared, truth.chi - truth.chi[compared].mean(), 0)
    table = metrics.summary(maps.chi, reference, compared)
    overlap = 2 * (maps.brain_mask & truth.mask).sum() / (maps.brain_mask.sum() + truth.mask.sum())
    field_error = metrics.nrmse(maps.local_field, truth.local_field, compared, demean=True)
    alone = pipeline.invert(truth.local_field * compared, compared, scan.voxel_size, scan.b0_direction)
    table |= {
        "local field, NRMSE [%]": field_error,
        "brain mask, Dice": float(overlap),
        "inversion of the true local field, NRMSE [%]": metrics.nrmse(alone, truth.chi, compared, demean=True),
    }
    with whole_directory(output) as folder:
        write_maps(folder, scan, maps, plan, command=command, seed=seed, comparison=table)
        view = view_of(scan.affine, scan.voxel_size, maps.mask, margin=6.0)
        picture = three_planes(maps.chi, view, window=(-0.1, 0.15), unit="ppm", inside=maps.mask)
        (folder / "chi.png").write_bytes(picture)
    tell(maps.warnings)
    print_seconds(maps)
    console.print("Error against the known truth, inside the mask:")
    print_table(table)
    console.print(f"Maps: {output}/chi.nii.gz, total_field, local_field, mask\nReport: {output / 'report.html'}")
