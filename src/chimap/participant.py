"""One acquisition of a BIDS dataset to its derivatives. A result is whole or not there; its JSON comes last."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from chimap import pipeline
from chimap.derivatives import Job, checksums, map_inputs, maps_state, region_inputs, regions_state, settings
from chimap.errors import InputError
from chimap.io import bids_names, nifti
from chimap.io.bids_reading import mask_for, segmentations_for
from chimap.io.output import whole_directory, whole_file
from chimap.io.space import voxel_size
from chimap.regions import identify_bids, region_rows
from chimap.report.methods import methods_paragraph, methods_used
from chimap.report.page import write_report
from chimap.report.provenance import provenance, without_folders
from chimap.scan import Maps, Scan
from chimap.segmentation import Segmentation, names_from_table

COLUMNS = {
    "segmentation": {"Description": "Which segmentation the region is of: its label of seg, atlas or desc"},
    "region": {"Description": "Name of the region; the whole mask comes first"},
    "voxels": {"Description": "Voxels of the region in which chi is valid"},
    "volume_mm3": {"Description": "Their volume", "Units": "mm^3"},
    "chi_mean": {"Description": "Mean susceptibility", "Units": "ppm"},
    "chi_sd": {"Description": "Standard deviation of the susceptibility among the voxels", "Units": "ppm"},
    "chi_median": {"Description": "Median susceptibility", "Units": "ppm"},
    "r2star_mean": {"Description": "Mean decay rate R2*", "Units": "1/s"},
    "r2star_sd": {"Description": "Standard deviation of R2* among the voxels", "Units": "1/s"},
    "r2star_median": {"Description": "Median R2*", "Units": "1/s"},
}
"""Of a table of region values; what was not measured is n/a."""


def make(job: Job) -> tuple[str, ...]:
    """Write what is missing or out of date of a job's derivatives.

    Returns:
        What a reader should doubt, one sentence each.

    Raises:
        InputError: The acquisition, its mask or its segmentation cannot be used; or it was mapped otherwise before.
    """
    warnings: tuple[str, ...] = ()
    if maps_state(job) != "done":
        warnings = _make_maps(job)
    if regions_state(job) != "done":
        _make_regions(job)
    return warnings


def _make_maps(job: Job) -> tuple[str, ...]:
    inputs = checksums(map_inputs(job), job.acquisition.root)  # as they are before they are read
    scan = _read(job)
    maps = pipeline.reconstruct(scan, job.plan)
    job.folder.mkdir(parents=True, exist_ok=True)
    sources = [f"bids:raw:{row['Name']}" for row in inputs if row["Name"].startswith("sub-")]
    with whole_directory(job.folder) as folder:
        for ending, (volume, description, about) in _volumes(maps).items():
            path = folder / f"{job.name}_{ending}.nii.gz"
            nifti.write_volume(path, volume, scan.affine, description=description)
            if ending != "Chimap":
                content = {"Description": description, **about, "Sources": sources}
                bids_names.write_json(bids_names.json_beside(path), content)
        job.path("Chimap.json").unlink(missing_ok=True)  # from here on, what was there before is no whole any more
        job.path("regions.json").unlink(missing_ok=True)
    write_report(job.report, scan, maps, job.plan, title=f"Susceptibility map of {job.name}")
    with whole_file(job.path("Chimap.json")) as target:
        bids_names.write_json(target, _about_chi(job, scan, maps, inputs, sources))
    return tuple(without_folders(warning, scan) for warning in (*scan.warnings, *maps.warnings))


def _read(job: Job) -> Scan:
    acquisition = job.acquisition
    scan = nifti.read_scan(acquisition.phase, acquisition.magnitude, root=acquisition.root, **job.told)
    if job.masks is None:
        return scan
    path = mask_for(acquisition, job.masks)
    values, resampled = nifti.read_onto(path, scan.affine, scan.shape)
    if not (values > 0).any():
        raise InputError(f"{path}: the mask is empty, no voxel is above 0")
    warnings = list(scan.warnings)
    if resampled:
        warnings.append(
            f"The mask {path.name} lies on another grid and was brought onto the scan's by the nearest neighbour, "
            "as if the head had not moved between the two."
        )
    name = bids_names.parse(path.name)
    others = {} if name is None else {k: v for k, v in name.entities if acquisition.labels.get(k, v) != v}
    if others:
        warnings.append(f"The mask {path.name} is of another acquisition of this person.")
    files = (*scan.files, str(path))
    return replace(scan, mask=values > 0, warnings=tuple(warnings), files=files)


def _volumes(maps: Maps) -> dict[str, tuple[Any, str, dict[str, Any]]]:
    """{end of the name: (volume, description, what else its JSON says)}."""
    found: dict[str, tuple[Any, str, dict[str, Any]]] = {
        "Chimap": (maps.chi, "magnetic susceptibility [ppm]", {}),
        "desc-total_fieldmap": (maps.total_field, "field of all sources [ppm]", {"Units": "ppm"}),
        "desc-local_fieldmap": (maps.local_field, "field of the sources in the mask [ppm]", {"Units": "ppm"}),
        "desc-brain_mask": (maps.brain_mask, "where the phase was used", {"Type": "Brain"}),
        "desc-valid_mask": (maps.mask, "where local field and susceptibility are valid", {"Type": "ROI"}),
    }
    if maps.r2star is not None:
        found["R2starmap"] = maps.r2star, "decay rate R2* [1/s]", {"Units": "1/s"}
    return found


def _about_chi(
    job: Job, scan: Scan, maps: Maps, inputs: Sequence[Mapping[str, Any]], sources: Sequence[str]
) -> dict[str, Any]:
    used = methods_used(scan, job.plan)
    times = list(scan.echo_times)
    return {
        "Description": "Magnetic susceptibility",
        "Units": "ppm",
        "Reference": "mean of the valid mask" if job.plan.reference == "mask" else "none: as the inversion gives it",
        "EstimationAlgorithm": used[-1].method.label,
        "EstimationReference": used[-1].method.reference,
        "Methods": methods_paragraph(scan, maps, job.plan),
        "EchoTime": times if len(times) > 1 else times[0],
        "MagneticFieldStrength": scan.field_strength,
        "B0Direction": list(scan.b0_direction),
        "Warnings": [without_folders(warning, scan) for warning in (*scan.warnings, *maps.warnings)],
        "Sources": list(sources),
        "Call": job.call,
        "Settings": settings(job),
        "Inputs": list(inputs),
        "Provenance": provenance(scan, maps, job.plan, command=job.command),
    }


def _make_regions(job: Job) -> None:
    inputs = checksums(region_inputs(job), job.output)
    chi, affine = nifti.read_volume(job.path("Chimap.nii.gz"))
    mask = nifti.read_volume(job.path("desc-valid_mask.nii.gz"))[0] > 0
    maps = {"chi": chi}
    if job.path("R2starmap.nii.gz").exists():
        maps["r2star"] = nifti.read_volume(job.path("R2starmap.nii.gz"))[0]
    named: dict[str, Segmentation] = {}
    if job.segmentations is not None:
        for kind, path in segmentations_for(job.acquisition, job.segmentations).items():
            values, _ = nifti.read_onto(path, affine, chi.shape)
            named[kind] = identify_bids(values, _table_of(path, job.segmentations), str(path))
    rows = region_rows(maps, mask, voxel_size(affine), named)
    text = "\n".join("\t".join(_cell(row.get(column, "")) for column in COLUMNS) for row in rows)
    with whole_file(job.path("regions.tsv")) as target:
        target.write_text("\t".join(COLUMNS) + "\n" + text + "\n", encoding="utf-8")
    with whole_file(job.path("regions.json")) as target:
        bids_names.write_json(target, {**COLUMNS, "Inputs": inputs})


def _table_of(path: Path, root: Path) -> dict[int, str] | None:
    tables = bids_names.metadata_files(path, root, ".tsv")
    if not tables:
        return None
    try:
        return names_from_table(tables[-1].read_text(encoding="utf-8-sig"), str(tables[-1]))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{tables[-1]} cannot be read as text: {error}") from None


def _cell(value: str | int | float) -> str:
    if isinstance(value, str):
        return value or "n/a"
    # to 1e-6: a mean that the reference makes zero is zero, and no outlier for its rounding
    return f"{round(value, 6) + 0.0:.8g}" if math.isfinite(value) else "n/a"
