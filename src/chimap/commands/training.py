"""Networks that learn: `chimap train`."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from chimap.commands.console import console, keep_freed_memory
from chimap.errors import InputError
from chimap.io.output import whole_file
from chimap.networks.weights import SUFFIX, published
from chimap.simulation.labels import LabelMap, read_packed
from chimap.training.own_data import MeasuredField, draw_crops, frames_of
from chimap.training.plot import plot_log
from chimap.training.recipes.table import find
from chimap.training.samples import draw_batch
from chimap.training.settings import changed
from chimap.training.train import read_best, score_name, train, validation_samples


def train_network(
    *,
    recipe: str,
    data: Path,
    validation: Path | None,
    size: str | None,
    device: str | None,
    steps: int | None,
    seed: int | None,
    assignments: Sequence[str],
    minutes: float | None,
    start: str | None,
    resume: bool,
    output: Path,
    command: Sequence[str],
) -> None:
    """Train a network on samples of packed label maps.

    Args:
        recipe: Name.
        data: Packed label maps of the people to learn from; or a folder with a folder for each scan, as `chimap run`
            writes it: local_field.nii.gz, mask.nii.gz, and chi.nii.gz or magnitude.nii.gz where there is one.
        validation: Those to judge by; the last seventh of `data` if None.
        size: "gpu" or "cpu"; that of the device if None.
        device: As torch names it; a GPU where there is one if None.
        steps: Of the optimiser, as the recipe says if None.
        seed: Of weights and samples.
        assignments: "name=value" of further settings.
        minutes: Write a checkpoint and stop after so long.
        start: Weights to begin with: the best.safetensors of a training, or the name of those in the package.
        resume: Go on from the last checkpoint.
        output: Folder.
        command: As it was called, for the record.

    Raises:
        InputError: Something that does not exist or does not fit.
    """
    keep_freed_memory()
    found = find(recipe)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    settings = found.sizes[size or ("cpu" if chosen.type == "cpu" else "gpu")]
    if steps is not None:
        if steps < 1:
            raise InputError(f"--steps is {steps}, needed at least 1")
        settings = replace(settings, steps=steps)
    if seed is not None:
        settings = replace(settings, seed=seed)
    settings = changed(settings, assignments)
    begin = None
    if start is not None:
        begin = Path(start) if start.endswith(SUFFIX) else published(start)
        if not begin.is_file():
            raise InputError(f"--start {start}: there is no such file")
        settings = replace(settings, start=hashlib.sha256(begin.read_bytes()).hexdigest()[:16])
    found.check(settings)
    own = data.is_dir()
    people = [] if own else read_packed(data)
    judges = read_packed(validation) if validation is not None else []
    if own and settings.takes != "local field":
        needed = {"phase": "wrapped phase", "total field": "total fields"}.get(settings.takes, "labels")
        raise InputError(
            f"{recipe} learns from {needed}, and {data} is a folder of local fields: give packed label maps"
        )
    if own and not judges:
        raise InputError(f"{data} is a folder of scans: give packed label maps to judge by with --validation")
    if not judges:
        people, judges = _split(people, data)
    scans = _read_scans(data, needs_chi=found.needs_chi) if own else []
    if own:
        settings = replace(settings, samples=replace(settings.samples, **frames_of(scans)))
    started = _join_processes(chosen)
    if chosen.type == "cuda" and started:
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    first = not started or distributed.get_rank() == 0
    about = _about(command, data, [one.name for one in (scans or people)], [one.name for one in judges], chosen)
    try:
        if first:
            many = len(scans or people)
            count = f"{many} {'person' if many == 1 else 'people'} to learn from, {len(judges)} to judge by"
            console.print(f"{recipe}: {settings.steps} steps on {chosen}, {count}")
        people, judges = ([_moved(one, chosen) for one in some] for some in (people, judges))
        scans = [_moved_scan(scan, chosen) for scan in scans]
        draw = partial(draw_crops, scans, settings.samples) if own else partial(draw_batch, people, settings.samples)
        best = train(
            found,
            settings,
            draw,
            validation_samples(judges, settings) if first else [],
            output,
            device=chosen,
            start=begin,
            resume=resume,
            stop_after=float("inf") if minutes is None else 60 * minutes,
            tell=console.print,
        )
    except KeyboardInterrupt:
        if first:
            _record(output, about)
        raise
    finally:
        if started:
            distributed.destroy_process_group()
    if first:
        _record(output, about)
        if best.exists():
            _, _, record = read_best(best)
            score = f"{score_name(settings)} {record['score']:.2f} %"
            console.print(f"Best weights: {best}, step {record['step']}, validation {score}")
        else:
            console.print(f"Stopped before the first validation; go on with --resume: {output}")


def _split(people: list[LabelMap], data: Path) -> tuple[list[LabelMap], list[LabelMap]]:
    """The last seventh to judge by."""
    if len(people) < 2:
        raise InputError(f"{data} holds {len(people)} label map: give others to judge by with --validation")
    count = max(len(people) // 7, 1)
    return people[:-count], people[-count:]


def _read_scans(folder: Path, *, needs_chi: bool) -> list[MeasuredField]:
    """Every folder in it that holds a local field."""
    from chimap.io import nifti, space

    scans = []
    for place in sorted(path.parent for path in folder.glob("*/local_field.nii.gz")):
        field, affine = nifti.read_volume(place / "local_field.nii.gz")
        mask, _ = nifti.read_mask(place / "mask.nii.gz", affine, field.shape, str(place / "local_field.nii.gz"))
        more = {}
        for name in ("chi", "magnitude"):
            path = place / f"{name}.nii.gz"
            more[name] = nifti.read_volume(path)[0] if path.exists() else None
            if more[name] is not None and more[name].shape != field.shape:
                raise InputError(f"{path} has the grid {tuple(more[name].shape)}, the local field {tuple(field.shape)}")
        if needs_chi and more["chi"] is None:
            raise InputError(f"{place} holds no chi.nii.gz, which this recipe learns from; uqsm and uqsm+ need none")
        b0 = space.b0_from_affine(affine)
        scans.append(
            MeasuredField(place.name, field, mask, more["chi"], more["magnitude"], space.voxel_size(affine), b0)
        )
    if not scans:
        raise InputError(f"{folder} holds no folder with a local_field.nii.gz, such as `chimap run` writes")
    return scans


def _moved(label_map: LabelMap, device: torch.device) -> LabelMap:
    return replace(label_map, classes=label_map.classes.to(device))


def _moved_scan(scan: MeasuredField, device: torch.device) -> MeasuredField:
    names = ("local_field", "mask", "chi", "magnitude")
    return replace(scan, **{n: getattr(scan, n).to(device) for n in names if getattr(scan, n) is not None})


def _about(
    command: Sequence[str], data: Path, people: Sequence[str], judges: Sequence[str], device: torch.device
) -> dict[str, Any]:
    """What a card needs to know beside the settings; no folder of the machine."""
    files = [Path(part).name if "/" in part else part for part in command]
    return {
        "command": [part for part in files if part != "--resume"],
        "data": hashlib.sha256(data.read_bytes()).hexdigest() if data.is_file() else None,
        "people": list(people),
        "judges": list(judges),
        "device": "a CPU" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _record(output: Path, about: Mapping[str, Any]) -> None:
    with whole_file(output / "about.json") as target:
        target.write_text(json.dumps(about, indent=2) + "\n")
    plot_log(output)


def _join_processes(device: torch.device) -> bool:
    """Join the other processes that torchrun started; False if this one is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return False
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return True
