"""What a training is: one frozen record, which is also the command line and goes into every checkpoint."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from chimap.errors import InputError
from chimap.networks.build import NetworkShape, shape_of
from chimap.training.samples import SampleSettings


@dataclass(frozen=True)
class Settings:
    """Settings of a training.

    Attributes:
        recipe: Name of the recipe, which decides the loss.
        network: Architecture.
        samples: What is drawn to learn from.
        takes: What the network is shown.
        gives: What it is to find, which is what validation compares.
        batch: Samples of a step, over all processes.
        steps: Of the optimiser.
        learning_rate: Of Adam, at the start.
        schedule: "constant", "cosine" to zero over all steps, or "exponential": `decay` every `decay_steps`.
        decay: Factor of the exponential schedule.
        decay_steps: Steps of the exponential schedule.
        optimiser: "adam" or "rmsprop".
        clip: Largest norm of the gradient, 0 for no limit.
        average: Weight of the past in the running average of the weights, which is what is validated and kept.
        freeze_norm: Share of the steps after which batch normalisation keeps its running statistics.
        input_scale: The field [ppm] is multiplied by this before the network.
        output_scale: What the network gives is multiplied by this [ppm].
        weights: Of the parts of the loss, by name.
        choices: What the recipe leaves open, by name.
        bf16: Convolutions in bfloat16.
        validate_every: Steps between validations.
        validation_samples: Drawn once, from the validation heads.
        checkpoint_every: Steps between checkpoints.
        seed: Of weights and samples.
        start: First digits of the SHA-256 of the weights that it begins with, instead of random ones.
    """

    recipe: str
    network: NetworkShape
    samples: SampleSettings
    takes: Literal["local field", "total field", "phase", "magnitude and chi"] = "local field"
    gives: Literal["chi", "local field", "regions"] = "chi"
    batch: int = 2
    steps: int = 3000
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "exponential"] = "cosine"
    decay: float = 0.9
    decay_steps: int = 200
    optimiser: Literal["adam", "rmsprop"] = "adam"
    clip: float = 1.0
    average: float = 0.99
    freeze_norm: float = 0.1
    input_scale: float = 100.0
    output_scale: float = 0.03
    weights: dict[str, float] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    bf16: bool = True
    validate_every: int = 250
    validation_samples: int = 6
    checkpoint_every: int = 100
    seed: int = 0
    start: str = ""


def to_json(settings: Settings) -> str:
    """The settings as one line; `from_json` gives them back."""
    return json.dumps(asdict(settings), sort_keys=True)


def from_json(text: str) -> Settings:
    """Read what `to_json` wrote."""
    return _made(Settings, json.loads(text))


def changed(settings: Settings, assignments: Sequence[str]) -> Settings:
    """Settings with "name=value" applied; "network.base=16" and "samples.shape=64,64,64" reach inside.

    Raises:
        InputError: No such setting, or a value of another kind.
    """
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set needs NAME=VALUE, such as batch=4; got {text!r}")
        settings = _changed(settings, name.strip().split("."), value.strip(), text)
    return settings


def _changed(record: Any, path: list[str], value: str, text: str) -> Any:
    name = path[0]
    if isinstance(record, dict):
        if name not in record:
            raise InputError(f"--set {text}: there is no {name!r} in this recipe; there are {', '.join(record)}")
        return {**record, name: _value(value, record[name], text)}
    known = [one.name for one in fields(record)]
    if name not in known:
        raise InputError(f"--set {text}: there is no setting {name!r}; there are {', '.join(known)}")
    old = getattr(record, name)
    if len(path) > 1:
        if not (is_dataclass(old) or isinstance(old, dict)):
            raise InputError(f"--set {text}: {name} holds no settings of its own")
        return replace(record, **{name: _changed(old, path[1:], value, text)})
    if is_dataclass(old) or isinstance(old, dict):
        raise InputError(f"--set {text}: {name} holds settings of its own, such as {name}.NAME=VALUE")
    return replace(record, **{name: _value(value, old, text)})


def _value(text: str, old: Any, assignment: str) -> Any:
    try:
        if isinstance(old, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(old, tuple):
            parts = text.split(",")
            if old and isinstance(old[0], tuple):  # voxel sizes: 1,1,1 or 1,1,1,0.8,0.8,2
                numbers = [float(part) for part in parts]
                if len(numbers) % 3:
                    raise ValueError
                return tuple(tuple(numbers[i : i + 3]) for i in range(0, len(numbers), 3))
            return tuple((int if isinstance(old[0], int) else float)(part) for part in parts)
        return type(old)(text)
    except (KeyError, ValueError):
        raise InputError(f"--set {assignment}: {text!r} cannot be read like {old!r}") from None


def _made(kind: Any, content: dict[str, Any]) -> Any:
    """A record of what JSON holds: lists become tuples, dictionaries records where the field is one."""
    values: dict[str, Any] = {}
    for name, value in content.items():
        if name == "network":
            values[name] = shape_of(value)
        elif name == "samples":
            values[name] = _made(SampleSettings, value)
        else:
            values[name] = _tuples(value)
    return kind(**values)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value
