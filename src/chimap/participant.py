"""One acquisition of a BIDS dataset to its derivatives. A result is whole or not there; its JSON comes last."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from chimap import pipeline
from chimap.derivatives import (
    FOUND,
    Job,
    checksums,
    map_inputs,
    maps_state,
    needs_segmentation,
    region_inputs,
    regions_state,
    settings,
)
from chimap.errors import InputError
from chimap.io import bids_names, nifti
from chimap.io.bids_reading import mask_for, segmentations_for
from chimap.io.labels import read_names, read_segmentation, table_beside
from chimap.io.output import whole_directory, whole_file
from chimap.io.space import voxel_size
from chimap.regions import COLUMNS, as_table, identify_bids, region_rows
from chimap.report.methods import methods_paragraph, methods_used
from chimap.report.page import write_report
from chimap.report.provenance import provenance, without_folders
from chimap.scan import Maps, Scan
from chimap.segmentation import VENTRICLES, Segmentation, canonical, region, table_of_names

SWI = {"swi": "swi", "swi_mip": "minIP", "true_swi": "desc-true_swi", "true_swi_mip": "desc-true_minIP"}
"""How BIDS's names of susceptibility-weighted images end."""
ON_REQUEST = (FOUND.removesuffix(".nii.gz"), "R2starmap", *SWI.values())
"""Ends of names that not every map has beside it: those of a map before go with it."""


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
    before = [f"{job.name}_{ending}{kind}" for ending in ON_REQUEST for kind in (".nii.gz", ".json", ".tsv")]
    with whole_directory(job.folder, earlier=before) as folder:
        for ending, (volume, description, about) in _volumes(maps).items():
            path = folder / f"{job.name}_{ending}.nii.gz"
            nifti.write_volume(path, volume, scan.affine, description=description)
            if ending != "Chimap":
                content = {"Description": description, **about, "Sources": sources}
                bids_names.write_json(bids_names.json_beside(path), content)
        if maps.segmentation is not None and scan.segmentation is None:
            path = folder / f"{job.name}_{FOUND}"
            nifti.write_volume(path, maps.segmentation.labels, scan.affine, description="regions found by a network")
            table_beside(path).write_text(table_of_names(maps.segmentation.names), encoding="utf-8")
            content = {"Description": "Regions found by a network in magnitude and chi", "Sources": sources}
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
    if job.segmentations is not None and needs_segmentation(job):
        segmentation, notes = _segmentation_with(job.plan.reference, job, scan)
        scan = replace(scan, segmentation=segmentation, notes=(*scan.notes, *notes))
    if job.masks is None:
        return scan
    path = mask_for(acquisition, job.masks)
    values, resampled = nifti.read_onto(path, scan.affine, scan.shape, what="mask")
    if not (values > 0).any():
        raise InputError(f"{path}: the mask is empty, no voxel is above 0")
    warnings = [*scan.warnings, *resampled]
    name = bids_names.parse(path.name)
    others = {} if name is None else {k: v for k, v in name.entities if acquisition.labels.get(k, v) != v}
    if others:
        warnings.append(f"The mask {path.name} is of another acquisition of this person.")
    files = (*scan.files, str(path))
    return replace(scan, mask=values > 0, warnings=tuple(warnings), files=files)


def _segmentation_with(reference: str, job: Job, scan: Scan) -> tuple[Segmentation, tuple[str, ...]]:
    """The one that names the region to which chi is to be relative; the last, where none does. And a note on it."""
    wanted = VENTRICLES if reference == "csf" else {canonical(reference)}
    found = list(_segmentations(job, scan.affine, scan.shape).values())
    return next((one for one in found if region(one[0], wanted).any()), found[-1])


def _segmentations(
    job: Job, affine: np.ndarray, shape: Sequence[int]
) -> dict[str, tuple[Segmentation, tuple[str, ...]]]:
    """Those of other programs by their kind; without any, the regions that were found beside the map. Notes on each."""
    if job.segmentations is None:
        path = job.path(FOUND)
        return {"network": (read_segmentation(path, affine, shape)[0], ())} if path.exists() else {}
    named = {}
    for kind, path in segmentations_for(job.acquisition, job.segmentations).items():
        values, notes = nifti.read_onto(path, affine, shape, what="segmentation")
        named[kind] = identify_bids(values, _table_of(path, job.segmentations), str(path)), notes
    return named


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
    for name, volume in maps.swi.items():
        found[SWI[name]] = volume, name.replace("_", " "), {"Units": "arbitrary"}
    return found


def _about_chi(
    job: Job, scan: Scan, maps: Maps, inputs: Sequence[Mapping[str, Any]], sources: Sequence[str]
) -> dict[str, Any]:
    used = methods_used(scan, job.plan)
    times = list(scan.echo_times)
    return {
        "Description": "Magnetic susceptibility",
        "Units": "ppm",
        "Reference": "none: as the inversion gives it" if maps.reference is None else maps.reference.sentence,
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
    found = _segmentations(job, affine, chi.shape)
    notes = [note for _, some in found.values() for note in some]
    rows = region_rows(maps, mask, voxel_size(affine), {kind: one for kind, (one, _) in found.items()})
    with whole_file(job.path("regions.tsv")) as target:
        target.write_text(as_table(rows), encoding="utf-8")
    with whole_file(job.path("regions.json")) as target:
        bids_names.write_json(target, {**COLUMNS, **({"Notes": notes} if notes else {}), "Inputs": inputs})


def _table_of(path: Path, root: Path) -> dict[int, str] | None:
    tables = bids_names.metadata_files(path, root, ".tsv")
    return read_names(tables[-1]) if tables else None
