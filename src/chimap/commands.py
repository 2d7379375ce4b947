"""What the commands of the command line do: read, compute, write whole, say what happened."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import CDLL
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from chimap import metrics, pipeline
from chimap.arrays import Mask, Triple, Volume
from chimap.errors import InputError
from chimap.io import checks, nifti, space
from chimap.io.output import whole_directory, whole_file
from chimap.physics import units as unit
from chimap.plan import Plan
from chimap.scan import Maps, Scan

console = Console(highlight=False, markup=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, markup=False)


def run(
    *,
    phase: Sequence[Path],
    magnitude: Sequence[Path],
    dicom: Path | None,
    mask: Path | None,
    echo_times: Sequence[float] | None,
    field_strength: float | None,
    b0_direction: Sequence[float] | None,
    phase_range: Sequence[float] | None,
    phase_sign: int | None,
    plan: Plan,
    output: Path,
    command: Sequence[str],
) -> None:
    """An acquisition to chi, fields, masks, a report and its provenance in the folder `output`."""
    keep_freed_memory()
    if dicom is not None:
        from chimap.io import dicom as dicom_series

        read = partial(dicom_series.read_scan, dicom)
    else:
        read = partial(nifti.read_scan, phase, magnitude)
    scan = read(
        mask=mask,
        echo_times=echo_times,
        field_strength=field_strength,
        b0_direction=None if b0_direction is None else (b0_direction[0], b0_direction[1], b0_direction[2]),
        phase_range=None if phase_range is None else (phase_range[0], phase_range[1]),
        phase_sign=phase_sign,
    )
    _tell(scan.warnings)
    maps = _reconstruct(scan, plan)
    with whole_directory(output) as folder:
        _write_maps(folder, scan, maps, plan, command=command)
    _tell(maps.warnings)
    _print_seconds(maps)
    console.print(f"Maps: {output}/chi.nii.gz, total_field, local_field, mask\nReport: {output / 'report.html'}")


def invert(
    *,
    local_field: Path,
    mask: Path,
    magnitude: Path | None,
    b0_direction: Sequence[float] | None,
    units: str | None,
    field_strength: float | None,
    echo_time: float | None,
    method: str,
    reference: str,
    settings: Mapping[str, Mapping[str, Any]],
    output: Path,
    command: Sequence[str],
) -> None:
    """A local field to chi: one NIfTI, with what was done beside it as JSON."""
    from chimap import methods
    from chimap.report.provenance import versions

    keep_freed_memory()
    if not output.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"--output is {output}, needed a file name that ends in .nii.gz or .nii")
    found = methods.find(method, "inversion")
    field, affine = nifti.read_volume(local_field)
    inside, notes = nifti.read_mask(mask, affine, field.shape, str(local_field))
    _tell(notes)
    field = _in_ppm(field, inside, units, field_strength, echo_time, name=str(local_field))
    size = space.voxel_size(affine)
    b0 = space.b0_from_affine(affine) if b0_direction is None else space.b0_from_user(b0_direction)
    weight = None
    if magnitude is not None:
        weight, magnitude_affine = nifti.read_volume(magnitude)
        checks.same_grid(str(magnitude), weight.shape, magnitude_affine, str(local_field), field.shape, affine)
    with _progress() as begin:
        begin(f"inversion: {method}", 1)
        chi = pipeline.invert(field, inside, size, b0, magnitude=weight, method=method, settings=settings)
    if reference == "mask":
        chi = torch.where(inside, chi - chi[inside].mean(), chi)
    record = {
        "command": [Path(part).name if "/" in part else part for part in command],
        "method": method,
        "reference": found.reference,
        "parameters": {**found.parameters(), **settings.get(method, {})},
        "units": "ppm",
        "chi is relative to": "its mean in the mask" if reference == "mask" else "zero sum over the whole grid",
        "voxel size [mm]": size,
        "B0 direction (voxel axes)": b0,
        "versions": versions(),
    }
    with whole_file(output) as target:
        nifti.write_volume(target, chi, affine, description=f"chi [ppm], {method}")
    with whole_file(output.with_name(output.name.split(".nii")[0] + ".json")) as target:
        target.write_text(json.dumps(record, indent=2, default=str) + "\n")
    console.print(f"Map: {output}")


def evaluate(*, chi: Path, truth: Path, mask: Path | None) -> None:
    """Print how far chi is from the truth."""
    found, affine = nifti.read_volume(chi)
    true, truth_affine = nifti.read_volume(truth)
    checks.same_grid(str(chi), found.shape, affine, str(truth), true.shape, truth_affine)
    inside = true != 0
    if mask is not None:
        inside, notes = nifti.read_mask(mask, truth_affine, true.shape, str(truth))
        _tell(notes)
    if not inside.any():
        raise InputError(f"{truth} is zero everywhere: there is nothing to compare with")
    _print_table(metrics.summary(found, true, inside))


def demo(*, output: Path, shape: tuple[int, int, int], voxel_size: Triple, seed: int, command: Sequence[str]) -> None:
    """Simulate the built-in head, write it as a user's files, reconstruct those and compare with the truth."""
    from chimap.io.bids import write_megre
    from chimap.report.figures import three_planes
    from chimap.report.view import view_of
    from chimap.simulation.acquisition import acquire
    from chimap.simulation.head import built_in_head

    keep_freed_memory()
    with _progress() as begin:
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
    maps = _reconstruct(scan, plan)
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
        _write_maps(folder, scan, maps, plan, command=command, seed=seed, comparison=table)
        view = view_of(scan.affine, scan.voxel_size, maps.mask, margin=6.0)
        picture = three_planes(maps.chi, view, window=(-0.1, 0.15), unit="ppm", inside=maps.mask)
        (folder / "chi.png").write_bytes(picture)
    _tell(maps.warnings)
    _print_seconds(maps)
    console.print("Error against the known truth, inside the mask:")
    _print_table(table)
    console.print(f"Maps: {output}/chi.nii.gz, total_field, local_field, mask\nReport: {output / 'report.html'}")


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks: fresh pages cost the convolutions and FFTs up to half of their time."""
    try:
        library = CDLL("libc.so.6")
        library.mallopt(-3, 2**31 - 4097)  # M_MMAP_THRESHOLD
        library.mallopt(-1, 2**31 - 4097)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # another C library; nothing is lost but speed


def _reconstruct(scan: Scan, plan: Plan) -> Maps:
    with _progress() as begin:
        return pipeline.reconstruct(scan, plan, on_stage=lambda name: begin(name, len(pipeline.STAGES)))


def _write_maps(
    folder: Path,
    scan: Scan,
    maps: Maps,
    plan: Plan,
    *,
    command: Sequence[str],
    seed: int | None = None,
    comparison: Mapping[str, float] | None = None,
) -> None:
    from chimap.report.page import write_report
    from chimap.report.provenance import write_provenance

    volumes = {
        "chi": (maps.chi, f"chi [ppm], {plan.inversion}"),
        "total_field": (maps.total_field, "total field [ppm]"),
        "local_field": (maps.local_field, f"local field [ppm], {plan.background}"),
        "mask": (maps.mask, "where chi is valid"),
        "brain_mask": (maps.brain_mask, "where the phase was used"),
    }
    for name, (volume, description) in volumes.items():
        nifti.write_volume(folder / f"{name}.nii.gz", volume, scan.affine, description=description)
    extras = None if comparison is None else {name: f"{value:.4g}" for name, value in comparison.items()}
    write_report(folder / "report.html", scan, maps, plan, extras=extras)
    write_provenance(folder / "provenance.json", scan, maps, plan, command=command, seed=seed)


def _in_ppm(
    field: Volume,
    mask: Mask,
    units: str | None,
    field_strength: float | None,
    echo_time: float | None,
    *,
    name: str,
) -> Volume:
    if units in ("hz", "rad") and field_strength is None:
        raise InputError(f"--units {units} needs --field-strength in tesla")
    if units == "rad" and echo_time is None:
        raise InputError("--units rad needs --echo-time in seconds")
    if units == "hz" and field_strength is not None:
        return field / unit.hz_per_ppm(field_strength)
    if units == "rad" and field_strength is not None and echo_time is not None:
        if echo_time > 0.5:
            raise InputError(f"--echo-time is {echo_time:g}: that is milliseconds, needed seconds")
        return field / unit.radians_per_ppm(echo_time, field_strength)
    spread = float(field[mask].std()) if int(mask.sum()) > 1 else 0.0
    if spread == 0:
        raise InputError(f"{name} is constant inside the mask: there is no field to invert")
    if units is None and spread > 0.3:
        raise InputError(
            f"{name} has a standard deviation of {spread:.3g} inside the mask, a local field in ppm has about 0.02: "
            "give --units hz or rad, or --units ppm if it is in ppm"
        )
    return field


@contextmanager
def _progress() -> Iterator[Any]:
    """Yields begin(name, of): a bar that moves on when the next stage begins; silent where nobody looks."""
    columns = (SpinnerColumn(), TextColumn("{task.description:<28}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("")

        def begin(name: str, of: int) -> None:
            started = int(bar.tasks[0].fields.get("started", 0))
            bar.update(task, description=name, total=of, completed=started, started=started + 1)

        yield begin


def _tell(warnings: Sequence[str]) -> None:
    for sentence in warnings:
        errors.print(Text.assemble(("warning: ", "yellow"), sentence))


def _print_seconds(maps: Maps) -> None:
    _print_table({f"{name} [s]": seconds for name, seconds in maps.seconds.items()})


def _print_table(rows: Mapping[str, float]) -> None:
    table = Table(box=None, show_header=False)
    for name, value in rows.items():
        table.add_row(Text(name), f"{value:.4g}")
    console.print(table)
