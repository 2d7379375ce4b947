"""From files to maps: `chimap run` and `chimap invert`."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from chimap import from_local_field, pipeline
from chimap.arrays import Mask, Volume
from chimap.commands.console import console, keep_freed_memory, print_table, progress, tell
from chimap.errors import InputError
from chimap.io import checks, nifti, space
from chimap.io.labels import with_segmentation
from chimap.io.output import whole_directory, whole_file
from chimap.physics import units as unit
from chimap.plan import Plan
from chimap.regions import as_table, region_values
from chimap.scan import Maps, Scan
from chimap.segmentation import table_of_names


def run(
    *,
    phase: Sequence[Path],
    magnitude: Sequence[Path],
    dicom: Path | None,
    series: Sequence[int],
    mask: Path | None,
    segmentation: Path | None,
    echo_times: Sequence[float] | None,
    field_strength: float | None,
    b0_direction: Sequence[float] | None,
    phase_range: Sequence[float] | None,
    phase_sign: int | None,
    plan: Plan,
    output: Path,
    write_dicom: bool,
    command: Sequence[str],
) -> None:
    """An acquisition to chi, fields, masks, a report and its provenance in the folder `output`."""
    from chimap.report.provenance import results_of

    keep_freed_memory()
    if dicom is not None:
        from chimap.io import dicom as dicom_series

        read = partial(dicom_series.read_scan, dicom, series=series)
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
    if segmentation is not None:
        scan = with_segmentation(scan, segmentation)
    tell(scan.warnings)
    earlier = results_of(output)
    export = _dicom_writer(scan, plan, output / "dicom", earlier) if write_dicom else None
    maps = reconstruct(scan, plan)
    plan = replace(plan, settings=from_local_field.with_settings(plan.settings, maps.settings))
    with whole_directory(output, earlier=earlier) as folder:
        if export is not None:
            export(folder / "dicom", maps)
        write_maps(folder, scan, maps, plan, command=command)
    tell(maps.warnings)
    print_seconds(maps)
    console.print(f"Maps: {output}/chi.nii.gz, total_field, local_field, mask\nReport: {output / 'report.html'}")
    if maps.segmentation is not None:
        console.print(f"Values by region: {output / 'regions.tsv'}")
    if write_dicom:
        console.print(f"DICOM: {output / 'dicom'}, with the patient's name and number as in {dicom}")


def invert(
    *,
    local_field: Path,
    mask: Path,
    magnitude: Path | None,
    csf: Path | None,
    b0_direction: Sequence[float] | None,
    units: str | None,
    field_strength: float | None,
    echo_time: float | None,
    method: str,
    reference: str,
    settings: Mapping[str, Mapping[str, Any]],
    choose_regularisation: str | None = None,
    field_error: float | None = None,
    resume: bool,
    output: Path,
    command: Sequence[str],
) -> None:
    """A local field to chi: one NIfTI, with what was done beside it as JSON.

    A method that learns from the scan keeps its state in a hidden file beside the output until it is done.
    """
    from chimap import methods
    from chimap.report.provenance import versions

    keep_freed_memory()
    if not output.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"--output is {output}, needed a file name that ends in .nii.gz or .nii")
    found = methods.find(method, "inversion")
    checkpoint = output.with_name(f".{output.name.split('.nii')[0]}.checkpoint")
    if resume and not found.takes("checkpoint"):
        raise InputError(f"--resume is for methods that learn from the scan; {method} does not")
    if found.zero_is_csf and csf is None:
        raise InputError(
            f"{method} needs a mask of the fluid in the ventricles: give --csf, or the scan to `chimap run`"
        )
    if csf is not None and not found.zero_is_csf:
        raise InputError(f"--csf is for methods that make chi zero there; {method} does not")
    rate = None
    if field_strength is not None and echo_time is not None:
        rate = unit.radians_per_ppm(_in_seconds(echo_time), field_strength)
    field, affine = nifti.read_volume(local_field)
    inside, notes = nifti.read_mask(mask, affine, field.shape, str(local_field))
    tell(notes)
    field = in_ppm(field, inside, units, field_strength, echo_time, name=str(local_field))
    size = space.voxel_size(affine)
    b0 = space.b0_from_affine(affine) if b0_direction is None else space.b0_from_user(b0_direction)
    weight = None
    if magnitude is not None:
        weight, magnitude_affine = nifti.read_volume(magnitude)
        checks.same_grid(str(magnitude), weight.shape, magnitude_affine, str(local_field), field.shape, affine)
    fluid = None
    if csf is not None:
        fluid, notes = nifti.read_mask(csf, affine, field.shape, str(local_field))
        tell(notes)
    choice = None
    if field_error is not None and choose_regularisation != "discrepancy":
        raise InputError("--field-error is for --choose-regularisation discrepancy")
    if choose_regularisation is not None:
        with progress() as begin:
            choice = from_local_field.chosen_regularisation(
                field,
                inside,
                size,
                b0,
                magnitude=weight,
                radians_per_ppm=rate,
                csf=fluid,
                method=method,
                criterion=choose_regularisation,
                error=field_error,
                settings=settings,
                on_step=lambda step, steps: begin(f"{method}: choosing lambda, inversion {step}", steps + 1),
            )
        settings = from_local_field.with_settings(settings, {found.name: {"regularisation": choice.regularisation}})
        if not choice.reached:
            tell([f"{choice.sentence}."])
    if not resume:
        checkpoint.unlink(missing_ok=True)
    try:
        with progress() as begin:
            begin(f"inversion: {method}", 1)
            chi = from_local_field.invert(
                field,
                inside,
                size,
                b0,
                magnitude=weight,
                radians_per_ppm=rate,
                csf=fluid,
                method=method,
                settings=settings,
                on_step=lambda step, steps: begin(f"{method}: step {step} of {steps}", steps + 1),
                checkpoint=checkpoint,
            )
    except KeyboardInterrupt:
        if checkpoint.exists():
            tell([f"{method} can go on: give the same command with --resume"])
        raise
    zero = "zero sum over the whole grid"
    if found.zero_is_csf:
        zero = "its mean in the cerebrospinal fluid"
    elif reference == "mask":
        zero = "its mean in the mask"
        chi = torch.where(inside, chi - chi[inside].mean(), chi)
    derived = {"radians_per_ppm": rate} if rate is not None and found.takes("radians_per_ppm") else {}
    record = {
        "command": [Path(part).name if "/" in part else part for part in command],
        "method": found.label,
        "reference": found.reference,
        "parameters": {**found.parameters(), **derived, **settings.get(method, {})},
        "units": "ppm",
        "chi is relative to": zero,
        "voxel size [mm]": size,
        "B0 direction (voxel axes)": b0,
        "frame": from_local_field.note_on_frame(
            found, size, b0, (field.shape[0], field.shape[1], field.shape[2]), settings
        )
        or "the scan's own",
        "versions": versions(),
    }
    if choice is not None:
        record["choice of the regularisation"] = {
            "how": choice.sentence,
            "points": [vars(point) for point in choice.points],
        }
    with whole_file(output) as target:
        nifti.write_volume(target, chi, affine, description=f"chi [ppm], {found.label}")
    with whole_file(output.with_name(output.name.split(".nii")[0] + ".json")) as target:
        target.write_text(json.dumps(record, indent=2, default=str) + "\n")
    checkpoint.unlink(missing_ok=True)
    console.print(f"Map: {output}")


def reconstruct(scan: Scan, plan: Plan) -> Maps:
    stages = len(pipeline.STAGES) + plan.regions + plan.swi
    with progress() as begin:
        return pipeline.reconstruct(scan, plan, on_stage=lambda name: begin(name, stages))


def write_maps(
    folder: Path,
    scan: Scan,
    maps: Maps,
    plan: Plan,
    *,
    command: Sequence[str],
    seed: int | None = None,
    comparison: Mapping[str, float] | None = None,
) -> None:
    """Everything of a run into a folder that holds nothing yet but what else belongs to the run."""
    from chimap.report.page import write_report
    from chimap.report.provenance import write_provenance

    volumes = {
        "chi": (maps.chi, f"chi [ppm], {Path(plan.inversion).name}"),
        "total_field": (maps.total_field, "total field [ppm]"),
        "local_field": (maps.local_field, "local field [ppm]"),
        "mask": (maps.mask, "where chi is valid"),
        "brain_mask": (maps.brain_mask, "where the phase was used"),
    }
    if maps.r2star is not None:
        volumes["r2star"] = (maps.r2star, "R2* [1/s]")
    for name, volume in maps.swi.items():
        volumes[name] = (volume, name.replace("_", " "))
    if maps.segmentation is not None:
        volumes["segmentation"] = (maps.segmentation.labels, "regions, named in segmentation.tsv")
        (folder / "segmentation.tsv").write_text(table_of_names(maps.segmentation.names), encoding="utf-8")
        (folder / "regions.tsv").write_text(as_table(region_values(maps, scan.voxel_size)), encoding="utf-8")
    for name, (volume, description) in volumes.items():
        nifti.write_volume(folder / f"{name}.nii.gz", volume, scan.affine, description=description)
    extras = None if comparison is None else {name: f"{value:.4g}" for name, value in comparison.items()}
    write_report(folder / "report.html", scan, maps, plan, extras=extras)
    written = sorted(path for path in folder.rglob("*") if path.is_file())
    write_provenance(folder / "provenance.json", scan, maps, plan, command=command, seed=seed, outputs=written)


def _dicom_writer(scan: Scan, plan: Plan, target: Path, earlier: Sequence[str]) -> Callable[[Path, Maps], None]:
    """Writes chi as a DICOM series of the scan's study. Made before the work begins, so that it fails before."""
    from chimap.io import dicom_output
    from chimap.methods import TO_CHI, find

    series = dicom_output.source_of(scan)
    own = {*dicom_output.file_names(series), *(Path(name).name for name in earlier)}
    left = {path.name for path in target.glob("*")} - own
    if left:
        raise InputError(f"{target} holds {len(left)} files of something else; needed another --output for this DICOM")
    method = find(plan.inversion, *TO_CHI).label

    def write(folder: Path, maps: Maps) -> None:
        zero = "without a reference" if maps.reference is None else f"relative to {maps.reference.region}"
        description = f"Magnetic susceptibility [ppb] by chimap: {method}, {zero}. The report of the run says more."
        dicom_output.write_series(folder, maps.chi, series, description=description)

    return write


def print_seconds(maps: Maps) -> None:
    print_table({f"{name} [s]": seconds for name, seconds in maps.seconds.items()})


def in_ppm(
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
        return field / unit.radians_per_ppm(_in_seconds(echo_time), field_strength)
    spread = float(field[mask].std()) if int(mask.sum()) > 1 else 0.0
    if spread == 0:
        raise InputError(f"{name} is constant inside the mask: there is no field to invert")
    if units is None and spread > 0.3:
        raise InputError(
            f"{name} has a standard deviation of {spread:.3g} inside the mask, a local field in ppm has about 0.02: "
            "give --units hz or rad, or --units ppm if it is in ppm"
        )
    return field


def _in_seconds(echo_time: float) -> float:
    if echo_time > 0.5:
        raise InputError(f"--echo-time is {echo_time:g}: that is milliseconds, needed seconds")
    return echo_time
