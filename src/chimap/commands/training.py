"""Networks that learn: `chimap train`."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed

from chimap.commands.console import console, keep_freed_memory
from chimap.errors import InputError
from chimap.io.output import whole_file
from chimap.simulation.labels import LabelMap, read_packed
from chimap.training.plot import plot_log
from chimap.training.recipes.table import find
from chimap.training.settings import changed
from chimap.training.train import read_best, train


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
    resume: bool,
    output: Path,
    command: Sequence[str],
) -> None:
    """Train a network on samples of packed label maps.

    Args:
        recipe: Name.
        data: Packed label maps of the people to learn from.
        validation: Those to judge by; the last seventh of `data` if None.
        size: "gpu" or "cpu"; that of the device if None.
        device: As torch names it; a GPU where there is one if None.
        steps: Of the optimiser, as the recipe says if None.
        seed: Of weights and samples.
        assignments: "name=value" of further settings.
        minutes: Write a checkpoint and stop after so long.
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
    people = read_packed(data)
    judges = read_packed(validation) if validation is not None else []
    if not judges:
        people, judges = _split(people, data)
    started = _join_processes(chosen)
    if chosen.type == "cuda" and started:
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    first = not started or distributed.get_rank() == 0
    try:
        if first:
            count = f"{len(people)} people to learn from, {len(judges)} to judge by"
            console.print(f"{recipe}: {settings.steps} steps on {chosen}, {count}")
        best = train(
            found,
            settings,
            people,
            judges,
            output,
            device=chosen,
            resume=resume,
            stop_after=float("inf") if minutes is None else 60 * minutes,
            tell=console.print,
        )
    finally:
        if started:
            distributed.destroy_process_group()
    if first:
        _write_about(output, command, data, people, judges, chosen)
        plot_log(output)
        if best.exists():
            _, _, record = read_best(best)
            console.print(f"Best weights: {best}, step {record['step']}, validation NRMSE {record['score']:.2f} %")
        else:
            console.print(f"Stopped before the first validation; go on with --resume: {output}")


def _split(people: list[LabelMap], data: Path) -> tuple[list[LabelMap], list[LabelMap]]:
    """The last seventh to judge by."""
    if len(people) < 2:
        raise InputError(f"{data} holds {len(people)} label map: give others to judge by with --validation")
    count = max(len(people) // 7, 1)
    return people[:-count], people[-count:]


def _write_about(
    output: Path,
    command: Sequence[str],
    data: Path,
    people: Sequence[LabelMap],
    judges: Sequence[LabelMap],
    device: torch.device,
) -> None:
    """What a card needs to know beside the settings; no folder of the machine."""
    folders = [Path(part).name if "/" in part else part for part in command]
    about = {
        "command": [part for part in folders if part != "--resume"],
        "data": hashlib.sha256(data.read_bytes()).hexdigest(),
        "people": [one.name for one in people],
        "judges": [one.name for one in judges],
        "device": "a CPU" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    with whole_file(output / "about.json") as target:
        target.write_text(json.dumps(about, indent=2) + "\n")


def _join_processes(device: torch.device) -> bool:
    """Join the other processes that torchrun started; False if this one is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return False
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return True
