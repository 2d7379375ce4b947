"""The training loop of all networks, read from top to bottom.

Everything random at a step follows from the seed and the step, so a training that is killed and goes on from its last
checkpoint ends with the same weights as one that was not. Several processes (torchrun) share each batch.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn

from chimap import metrics
from chimap.errors import InputError
from chimap.networks.build import NetworkShape, build
from chimap.networks.checkpoint import optimiser_tensors, restore_optimiser
from chimap.networks.folding import at_direction
from chimap.networks.laplacian import InstantShape
from chimap.networks.octave import OctaveShape
from chimap.networks.weights import read_weights
from chimap.simulation.labels import LabelMap
from chimap.training.recipes.segment import dice_missed
from chimap.training.recipes.shown import found_in, inversion_alone, wanted
from chimap.training.recipes.table import Recipe
from chimap.training.samples import Sample, draw_sample, stacked
from chimap.training.settings import Settings, from_json, to_json

WARM_UP = 100
"""Steps over which the learning rate rises from zero."""
CHECKPOINT = "step-"

Tell = Callable[[str], None]
Draw = Callable[[Sequence[int]], Sample]


@dataclass
class State:
    """What changes while a network learns, and, where it did not begin from nothing, what it began with."""

    network: nn.Module
    average: dict[str, Tensor]
    optimiser: torch.optim.Optimizer
    step: int = 0
    best: float = math.inf
    seconds: float = 0.0
    begun: dict[str, Any] = field(default_factory=dict)


_UNTOLD: dict[str, Any] = {
    "oriented": False,
    "coding": "vector",
    "standard_frame": False,
    "edit_kernel": True,
    "edit_vectors": True,
}
"""What the shape of a network says that is not told the direction."""


def train(
    recipe: Recipe,
    settings: Settings,
    draw: Draw,
    judged: Sequence[Sample],
    output: Path,
    *,
    device: torch.device,
    start: Path | None = None,
    resume: bool = False,
    stop_after: float = math.inf,
    tell: Tell = print,
) -> Path:
    """Train a network and keep the weights that did best on the validation heads.

    Args:
        recipe: Its loss is minimised.
        settings: What to do; a resumed training must be given the same.
        draw: Gives the batch of some seeds, on `device`.
        judged: To judge by, one by one, on `device`: nobody whom the training shows. See `validation_samples`.
        output: Folder: settings.json, log.jsonl, one checkpoint, best.safetensors.
        device: Of network and samples.
        start: Weights of the same network to begin with, or of the one that differs in being told the direction of B0:
            then as it is on axial scans; `settings.start` says which.
        resume: Go on from the checkpoint in `output`, if there is one.
        stop_after: Write a checkpoint and stop after so many seconds.
        tell: Called with a line now and then.

    Returns:
        The file of the best weights.

    Raises:
        InputError: The folder holds another training, or a training and `resume` is not asked for; or the weights to
            begin with are another network's.
    """
    rank, world = _processes()
    if settings.batch % world:
        raise InputError(f"a batch of {settings.batch} cannot be shared by {world} processes")
    torch.manual_seed(settings.seed)
    network = build(settings.network).to(device)
    begun = {} if start is None else _begin_with(start, network, settings)
    _prepare(output, settings, resume=resume, rank=rank)
    network = network.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]
    state = State(network, _copied(network), _optimiser(network, settings), begun=begun)
    if resume:
        _load(output, state)
    _trim_log(output / "log.jsonl", state.step, rank)
    parallel: nn.Module = network
    if world > 1:
        parts_alone = settings.network.kind == "variational"  # of which some have no gradient in some steps
        parallel = nn.parallel.DistributedDataParallel(network, find_unused_parameters=parts_alone)

    share = settings.batch // world
    since = time.perf_counter() - state.seconds
    resumed = time.perf_counter()
    while state.step < settings.steps:
        step = state.step
        first = settings.seed * 2**40 + step * settings.batch + rank * share
        sample = draw(range(first, first + share))
        generator = torch.Generator(device).manual_seed(first)
        rate = learning_rate(step, settings)
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        _ready(network, frozen_norm=step >= settings.freeze_norm * settings.steps)
        state.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
            parts = recipe.loss(parallel, sample, settings, step, generator)
        parts["loss"].backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), settings.clip or math.inf)
        if torch.isfinite(norm):  # a step into nowhere would end the training
            state.optimiser.step()
        _follow(state.average, network, min(settings.average, (step + 1) / (step + 10)))
        state.step += 1
        state.seconds = time.perf_counter() - since

        entry: dict[str, Any] = {"step": step, "rate": rate, "norm": float(norm)}
        entry |= {name: float(value.detach()) for name, value in parts.items()}
        last = state.step == settings.steps
        stop = time.perf_counter() - resumed > stop_after
        if rank == 0 and (last or state.step % settings.validate_every == 0):
            averaged = build(settings.network).to(device).eval()
            averaged.load_state_dict(state.average)
            score = validate(averaged, judged, settings)
            entry |= {"validation": score, "seconds": round(state.seconds, 1)}
            if score < state.best:
                state.best = score
                _write_best(output, state, settings)
            judged_by = f"validation {score_name(settings)} {score:.2f} %"
            tell(f"step {state.step} of {settings.steps}: loss {entry['loss']:.4f}, {judged_by}")
        if rank == 0:
            with (output / "log.jsonl").open("a") as log:
                log.write(json.dumps(entry) + "\n")
        if rank == 0 and (last or stop or state.step % settings.checkpoint_every == 0):
            _save(output, state)
        if world > 1:
            stop = _agreed(stop, device)
        if stop:
            break
    return output / "best.safetensors"


def _begin_with(start: Path, network: nn.Module, settings: Settings) -> dict[str, Any]:
    """Put weights into a network; what is known of them."""
    weights, before, record = read_best(start)
    if before.takes == settings.takes and _told_less(before.network, settings.network):
        told = build(before.network)
        told.load_state_dict(weights)
        weights = at_direction(told, torch.tensor([0.0, 0.0, 1.0]))
    elif before.network != settings.network or before.takes != settings.takes:
        raise InputError(
            f"{start} holds a network of {before.recipe}, {before.network}, which is not the {settings.network} that "
            "this training is of"
        )
    if (before.input_scale, before.output_scale) != (settings.input_scale, settings.output_scale):
        raise InputError(
            f"{start} was learned with other scales: --set input_scale={before.input_scale:g} "
            f"--set output_scale={before.output_scale:g}"
        )
    network.load_state_dict(weights)
    return {"recipe": before.recipe, "seed": before.seed, "steps": before.steps, **record}


def _told_less(before: NetworkShape, now: NetworkShape) -> bool:
    """Whether two networks differ in this alone: the second one is not told the direction of B0, nor turns its axes."""
    if not isinstance(before, InstantShape | OctaveShape) or not before.oriented:
        return False
    return now == replace(before, **_UNTOLD)


def _ready(network: nn.Module, *, frozen_norm: bool) -> None:
    """Training mode, but for the batch normalisation once its statistics are frozen.

    A lesion makes a sample's field many times stronger, and the statistics of a small batch would divide that out: the
    network would learn to give every lesion the same chi, and be used with other statistics than it learned with.
    """
    network.train()
    for module in network.modules():
        if frozen_norm and isinstance(module, nn.BatchNorm3d):
            module.eval()


def learning_rate(step: int, settings: Settings) -> float:
    """Of a step: the schedule, after a warm-up."""
    rate = settings.learning_rate
    if settings.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    elif settings.schedule == "exponential":
        rate *= settings.decay ** (step // settings.decay_steps)
    return rate * min(1.0, (step + 1) / min(WARM_UP, settings.steps))


def validation_samples(people: Sequence[LabelMap], settings: Settings) -> list[Sample]:
    """Samples to judge by: people's chi as in the literature, half of them with lesions, realistic field error.

    The field is that of the whole brain, but for a network that only learns to invert by the samples' own fields.
    """
    drawn = replace(
        settings.samples,
        field_error=(0.5, 0.5),
        snr=(50.0, 50.0),
        mask_error=(0.5, 0.5),
        hybrid=0.0,
        invert=0.0,
        scale_positive=(1.0, 1.0),
        upright=0.0,
        slices=(1.0, 1.0),
        blobs=0.0,
        solids=0,
        whole_brain=(settings.gives == "chi" and not inversion_alone(settings)) or settings.samples.whole_brain,
        scan=settings.samples.scan,
    )
    samples = []
    for index in range(settings.validation_samples):
        one = replace(drawn, blobs=1.0) if index % 2 else drawn
        samples.append(draw_sample([people[index % len(people)]], one, 2**60 + index))
    return samples


def score_name(settings: Settings) -> str:
    """What `validate` gives."""
    return "100 - Dice" if settings.gives == "regions" else "NRMSE"


@torch.no_grad()
def validate(network: nn.Module, samples: Sequence[Sample], settings: Settings) -> float:
    """Mean NRMSE [%] of what a network finds, maps of chi relative to their mean in the mask; of regions, what their
    Dice lacks [%]. Less is better.
    """
    if settings.gives == "regions":
        return dice_missed(network, samples)
    errors = []
    for sample in samples:
        found = found_in(network, stacked([sample]), settings)[0, -1]
        errors.append(metrics.nrmse(found, wanted(sample, settings), sample.mask, demean=True))
    return sum(errors) / max(len(errors), 1)


def read_best(path: Path) -> tuple[dict[str, Tensor], Settings, dict[str, Any]]:
    """Weights, settings and record (step, score, seconds) of a best.safetensors."""
    weights, settings, record = read_weights(path)
    return weights, from_json(json.dumps(settings)), record


def _write_best(output: Path, state: State, settings: Settings) -> None:
    record: dict[str, Any] = {"step": state.step, "score": state.best, "seconds": round(state.seconds, 1)}
    if state.begun:
        record["begun"] = state.begun
    about = {"settings": to_json(settings), "record": json.dumps(record)}
    hidden = output / ".best.safetensors"
    save_file({name: value.contiguous().cpu() for name, value in state.average.items()}, hidden, metadata=about)
    os.replace(hidden, output / "best.safetensors")


def _prepare(output: Path, settings: Settings, *, resume: bool, rank: int) -> None:
    record = output / "settings.json"
    if record.exists():
        if not resume:
            raise InputError(f"{output} holds a training already: give --resume to go on, or another --output")
        if from_json(record.read_text()) != settings:
            raise InputError(f"{output} was begun with other settings: they stand in {record}")
    elif rank == 0:
        output.mkdir(parents=True, exist_ok=True)
        hidden = output / ".settings.json"
        hidden.write_text(to_json(settings) + "\n")
        os.replace(hidden, record)


def _optimiser(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    if settings.optimiser == "rmsprop":
        return torch.optim.RMSprop(network.parameters(), lr=settings.learning_rate)
    return torch.optim.Adam(network.parameters(), lr=settings.learning_rate)


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


@torch.no_grad()
def _follow(average: dict[str, Tensor], network: nn.Module, past: float) -> None:
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - past)
        else:
            average[name].copy_(value)


def _save(output: Path, state: State) -> None:
    """Write a checkpoint whole, weights and optimiser in files of their own, then drop the one before."""
    hidden, place = output / ".checkpoint", output / f"{CHECKPOINT}{state.step:08d}"
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir()
    weights = {f"network.{name}": value for name, value in state.network.state_dict().items()}
    weights |= {f"average.{name}": value for name, value in state.average.items()}
    about = {"step": str(state.step), "best": repr(state.best), "seconds": repr(state.seconds)}
    save_file(
        {name: value.contiguous().cpu() for name, value in weights.items()}, hidden / "weights.safetensors", about
    )
    save_file(optimiser_tensors(state.optimiser), hidden / "optimiser.safetensors")
    older = list(output.glob(f"{CHECKPOINT}*"))
    shutil.rmtree(place, ignore_errors=True)
    os.replace(hidden, place)
    for folder in older:
        if folder != place:
            shutil.rmtree(folder, ignore_errors=True)


def _load(output: Path, state: State) -> None:
    """Put the newest checkpoint into the state; nothing happens where there is none."""
    found = sorted(output.glob(f"{CHECKPOINT}*"))
    if not found:
        return
    device = next(state.network.parameters()).device
    with safe_open(found[-1] / "weights.safetensors", framework="pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118
    state.network.load_state_dict(
        {n.removeprefix("network."): v for n, v in tensors.items() if n.startswith("network.")}
    )
    state.average = {n.removeprefix("average."): v for n, v in tensors.items() if n.startswith("average.")}
    state.step, state.best, state.seconds = int(about["step"]), float(about["best"]), float(about["seconds"])
    restore_optimiser(state.optimiser, load_file(found[-1] / "optimiser.safetensors"))


def _trim_log(path: Path, step: int, rank: int) -> None:
    """Drop what was logged after the checkpoint: those steps come again."""
    if rank or not path.exists():
        return
    lines = path.read_text().splitlines()
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < step]
    hidden = path.with_name(".log.jsonl")
    hidden.write_text("".join(line + "\n" for line in kept))
    os.replace(hidden, path)


def _processes() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _agreed(stop: bool, device: torch.device) -> bool:
    """Whether any process wants to stop."""
    flag = torch.tensor(float(stop), device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag)
