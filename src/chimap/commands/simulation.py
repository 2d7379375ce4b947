"""Heads with known truth: `chimap simulate`, `chimap pack` and `chimap demo`."""

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from chimap import from_local_field, metrics
from chimap.arrays import Shape, Triple
from chimap.commands.console import console, keep_freed_memory, print_table, progress, tell
from chimap.commands.reconstruction import print_seconds, reconstruct, write_maps
from chimap.errors import InputError
from chimap.io import nifti
from chimap.io.bids import json_beside, write_description, write_json, write_megre
from chimap.io.output import whole_directory, whole_file
from chimap.plan import Plan
from chimap.simulation.acquisition import Truth, acquire
from chimap.simulation.anatomy import label_head
from chimap.simulation.head import Head, angles_for_b0, built_in_head, rotation_angles, rotation_matrix
from chimap.simulation.labels import LabelMap, from_freesurfer, read_packed, write_packed
from chimap.simulation.lesions import add_lesions, parse_lesions


def simulate(
    *,
    labels: Sequence[Path],
    subjects: int,
    seed: int,
    shape: Shape | None,
    voxel_size: Triple,
    b0_direction: Triple | None,
    head_rotation: Triple | None = None,
    field_strength: float,
    echo_times: Sequence[float],
    snr: float,
    field_error: float,
    lesions: Sequence[str],
    vendor: str,
    phase_sign: int | None,
    output: Path,
) -> None:
    """Write simulated acquisitions as a BIDS dataset, with their truth as derivatives of it.

    Args:
        labels: Label maps, folders of them or packed files; the built-in head if there are none.
        subjects: So many people; label maps are used again, bent otherwise, if there are fewer.
        seed: Of everything; the same seed writes the same bytes.
        shape: Grid; what holds a head if None.
        voxel_size: [mm].
        b0_direction: In voxel axes: the slab lies oblique in a head that is nearly straight. None for axial slices.
        head_rotation: Of the head and what lies in it about the isocentre [degrees], about the scanner's x, then y,
            then z. Another rotation is another acquisition, with noise of its own; the matrix that turns the scanner
            coordinates back lies beside the truth.
        field_strength: [T].
        echo_times: [s].
        snr: Of the brain at the first echo.
        field_error: Share of the local field's SD that obeys no dipole model.
        lesions: As `lesions.parse_lesions` reads them, in every subject.
        vendor: How phase is stored.
        phase_sign: 1 or -1 if the files shall have another sign than the vendor's.
        output: Folder.

    Raises:
        InputError: Something that cannot be simulated or written.
    """
    keep_freed_memory()
    if subjects < 1:
        raise InputError(f"--subjects is {subjects}, needed at least 1")
    if len(voxel_size) != 3 or not all(0.2 <= size <= 12 for size in voxel_size):
        raise InputError(f"--voxel-size is {voxel_size}, needed three lengths from 0.2 to 12 mm")
    if shape is None:
        shape = _shape_for(voxel_size)
    rotation = (0.0, 0.0, 0.0)
    if b0_direction is not None:
        if not any(b0_direction):
            raise InputError("--b0-dir is 0 0 0, needed a direction")
        rotation = angles_for_b0(b0_direction)
    pose = rotation_matrix([math.radians(angle) for angle in head_rotation or (0.0, 0.0, 0.0)])
    parse_lesions(lesions, torch.Generator())  # what cannot be read is refused before anything is made
    files = _label_files(labels)
    with whole_directory(output) as folder, progress() as begin:
        write_description(folder, "Simulated gradient-echo acquisitions")
        truth_folder = folder / "derivatives" / "truth"
        truth_folder.mkdir(parents=True)
        write_description(truth_folder, "True susceptibility and fields of the simulated acquisitions", derivative=True)
        rows = ["participant_id\tseed\tsource"]
        for index in range(subjects):
            begin(f"subject {index + 1} of {subjects}", subjects + 1)
            subject, own_seed = f"{index + 1:02d}", seed * 1000 + index
            host = torch.Generator().manual_seed(own_seed)
            turn = (0.08 * torch.randn(3, generator=host)).tolist()
            shift = 3.0 * torch.randn(3, generator=host)
            noise_seed = own_seed
            if head_rotation is not None:
                turn, shift = rotation_angles(pose @ rotation_matrix(turn)), pose @ shift
                noise_seed ^= zlib.crc32(repr(head_rotation).encode())  # another acquisition has other noise
            shift = shift.tolist()
            placement: dict[str, Any] = {
                "grid_rotation": rotation,
                "head_rotation": (turn[0], turn[1], turn[2]),
                "head_shift": (shift[0], shift[1], shift[2]),
                "seed": own_seed,
            }
            if files:
                label_map = _label_map(files[index % len(files)])
                head = label_head(label_map, shape, voxel_size, **placement, bend=1.0 + index // len(files))
                source = label_map.name
            else:
                head, source = built_in_head(shape, voxel_size, **placement), "built-in head"
            if lesions:
                head = add_lesions(head, parse_lesions(lesions, host), host)
            scan, truth = acquire(
                head,
                echo_times=echo_times,
                field_strength=field_strength,
                snr=snr,
                field_error=field_error,
                seed=noise_seed,
            )
            rows.append(f"sub-{subject}\t{own_seed}\t{source}")
            anatomy = folder / f"sub-{subject}" / "anat"
            anatomy.mkdir(parents=True)
            write_megre(anatomy, scan, subject=subject, vendor=vendor, sign=phase_sign)
            truths = truth_folder / f"sub-{subject}" / "anat"
            truths.mkdir(parents=True)
            write_truth(truths, head, truth, subject=subject)
            if head_rotation is not None:
                back = torch.block_diag(pose.T, torch.ones(1, 1)).double().numpy()
                name = f"sub-{subject}_from-scanner_to-upright_mode-points_xfm.txt"
                (truths / name).write_text("".join(" ".join(f"{v:.9g}" for v in row) + "\n" for row in back))
        (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    console.print(f"Acquisitions: {output}\nTruth: {output / 'derivatives' / 'truth'}")


def write_truth(folder: Path, head: Head, truth: Truth, *, subject: str) -> None:
    """Write chi, fields, mask and segmentation of a simulated head, as BIDS derivatives."""
    volumes = {
        "Chimap": (truth.chi, "true chi [ppm], 0 outside", {"Units": "ppm", "Reference": "water"}),
        "desc-total_fieldmap": (truth.total_field, "true total field [ppm]", {"Units": "ppm"}),
        "desc-local_fieldmap": (truth.local_field, "true local field [ppm]", {"Units": "ppm"}),
        "desc-error_fieldmap": (truth.field_error, "structured field error [ppm]", {"Units": "ppm"}),
        "desc-brain_mask": (truth.mask, "brain", {"Type": "Brain"}),
        "dseg": (head.labels.to(torch.uint8), "tissues, named in the table", {}),
    }
    for name, (volume, description, sidecar) in volumes.items():
        path = folder / f"sub-{subject}_{name}.nii.gz"
        nifti.write_volume(path, volume, head.affine, description=description)
        write_json(json_beside(path), {"Description": description, **sidecar})
    names = sorted(head.label_names.items())
    table = "index\tname\n" + "".join(f"{label}\t{name}\n" for label, name in names)
    (folder / f"sub-{subject}_dseg.tsv").write_text(table)


def pack(*, labels: Sequence[Path], output: Path) -> None:
    """Write label maps as one small file of tissues, for training and for quick simulation.

    Raises:
        InputError: No label map, or one that cannot be used.
    """
    if output.suffix != ".npz":
        raise InputError(f"--output is {output}, needed a file name that ends in .npz")
    files = _label_files(labels)
    with whole_file(output) as target:
        with progress() as begin:
            maps = []
            for file in files:
                begin(f"reading {getattr(file, 'name', file)}", len(files))
                maps.append(_label_map(file))
        write_packed(target, maps)
    console.print(f"Packed {len(maps)} label maps: {output}, {output.stat().st_size / 2**20:.1f} MiB")


def _label_files(labels: Sequence[Path]) -> list[Path | LabelMap]:
    """What can become a label map, in order: files of folders by name, packed maps as they are."""
    found: list[Path | LabelMap] = []
    for path in labels:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.name.endswith((".nii", ".nii.gz", ".mgz")))
            if not inside:
                raise InputError(f"the folder {path} holds no label map (.nii, .nii.gz)")
            found += inside
        elif path.suffix == ".npz":
            found += read_packed(path)
        else:
            found.append(path)
    return found


def _label_map(source: Path | LabelMap) -> LabelMap:
    if isinstance(source, LabelMap):
        return source
    numbers, voxel_size = nifti.read_labels(source)
    return from_freesurfer(numbers, voxel_size, name=source.name)


def _shape_for(voxel_size: Triple) -> Shape:
    """A grid of 176 x 224 x 176 mm."""
    x, y, z = (max(round(length / size / 2) * 2, 4) for length, size in zip((176, 224, 176), voxel_size, strict=True))
    return x, y, z


def demo(*, output: Path, shape: tuple[int, int, int], voxel_size: Triple, seed: int, command: Sequence[str]) -> None:
    """Simulate the built-in head, write it as a user's files, reconstruct those and compare with the truth."""
    from chimap.report.figures import three_planes
    from chimap.report.provenance import results_of
    from chimap.report.view import view_of

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
    alone = from_local_field.invert(truth.local_field * compared, compared, scan.voxel_size, scan.b0_direction)
    table |= {
        "local field, NRMSE [%]": field_error,
        "brain mask, Dice": float(overlap),
        "inversion of the true local field, NRMSE [%]": metrics.nrmse(alone, truth.chi, compared, demean=True),
    }
    with whole_directory(output, earlier=results_of(output)) as folder:
        view = view_of(scan.affine, scan.voxel_size, maps.mask, margin=6.0)
        picture = three_planes(maps.chi, view, window=(-0.1, 0.15), unit="ppm", inside=maps.mask)
        (folder / "chi.png").write_bytes(picture)
        write_maps(folder, scan, maps, plan, command=command, seed=seed, comparison=table)
    tell(maps.warnings)
    print_seconds(maps)
    console.print("Error against the known truth, inside the mask:")
    print_table(table)
    console.print(f"Maps: {output}/chi.nii.gz, total_field, local_field, mask\nReport: {output / 'report.html'}")
