"""The weights that come with the package: safetensors, checked before use."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from chimap.arrays import Triple
from chimap.errors import InputError
from chimap.networks.build import build, shape_of
from chimap.networks.folding import fold

FOLDER = Path(__file__).parents[1] / "weights"
SUMS = "SHA256SUMS"
SUFFIX = ".safetensors"
SCALE = ".scale"
"""Ends the name of the scales of a tensor in 8 bits: one for each of its first index."""


@dataclass(frozen=True)
class Trained:
    """A network that has learned.

    Attributes:
        network: In evaluation mode, on the CPU, its normalisations folded into its convolutions.
        input_scale: The field [ppm] is multiplied by this before the network.
        output_scale: What the network gives is multiplied by this [ppm].
        recipe: Its name.
        takes: "local field", "total field", "phase" or "magnitude and chi".
        voxel_sizes: That it has learned with [mm].
        tilt: Largest angle between B0 and the grid's z in what it has learned [rad].
    """

    network: nn.Module
    input_scale: float
    output_scale: float
    recipe: str
    takes: str
    voxel_sizes: tuple[Triple, ...]
    tilt: float


@lru_cache(maxsize=4)
def load_trained(name: str, folder: Path = FOLDER) -> Trained:
    """Load the weights of a method, after a look at their checksum: see `published`."""
    return read_trained(published(name, folder))


def published(name: str, folder: Path = FOLDER) -> Path:
    """The file of a method's weights, after a look at its checksum.

    Args:
        name: Of the method, such as "uqsm+".
        folder: That holds <name>.safetensors and SHA256SUMS.

    Raises:
        InputError: There are no such weights, or the file is not the one that was published.
    """
    path = folder / f"{name}{SUFFIX}"
    lines = [line.split() for line in (folder / SUMS).read_text().splitlines() if line.strip()]
    sums = {file: total for total, file in lines}
    if not path.exists() or path.name not in sums:
        have = ", ".join(sorted(file.removesuffix(SUFFIX) for file in sums)) or "none"
        raise InputError(f"there are no weights of {name!r} in {folder}; there are {have}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sums[path.name]:
        raise InputError(
            f"{path} is not the file that was published: its SHA-256 is {found[:12]}…, needed {sums[path.name][:12]}…; "
            "install chimap again"
        )
    return path


def read_trained(path: Path) -> Trained:
    """Read weights with the settings that they carry, from the package or from a training.

    Raises:
        InputError: The file is no such thing.
    """
    weights, settings, _ = read_weights(path)
    samples = settings["samples"]
    network = build(shape_of(settings["network"]))
    network.load_state_dict(weights)
    fold(network.eval().requires_grad_(False))
    network = network.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]
    return Trained(
        network,
        input_scale=settings["input_scale"],
        output_scale=settings["output_scale"],
        recipe=settings["recipe"],
        takes=settings.get("takes", "local field"),
        voxel_sizes=tuple((x, y, z) for x, y, z in samples["voxel_sizes"]),
        tilt=samples["tilt"],
    )


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Weights in float32, settings, and record (step, score, seconds) of weights, as of `read_trained`.

    Raises:
        InputError: The file is no such thing.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            settings, record = json.loads(about["settings"]), json.loads(about.get("record", "{}"))
            _ = settings["samples"]["voxel_sizes"], settings["network"]
            weights = unpacked({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} holds no weights of a chimap network: {error}") from None
    return weights, settings, record


def packed(weights: Mapping[str, Tensor], bits: Literal[8, 16]) -> dict[str, Tensor]:
    """Weights as they are stored: in float16, or those of convolutions in 8 bits with a scale for each first index."""
    small: dict[str, Tensor] = {}
    for name, value in weights.items():
        if not value.is_floating_point():
            small[name] = value
        elif bits == 8 and value.ndim > 1:
            scale = value.abs().flatten(1).amax(dim=1).clamp_min(1e-12) / 127
            small[name] = (value / scale.reshape(-1, *[1] * (value.ndim - 1))).round().to(torch.int8)
            small[name + SCALE] = scale.float()
        else:
            small[name] = value.half()
    return small


def unpacked(small: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in float32 of what `packed` made."""
    weights: dict[str, Tensor] = {}
    for name, value in small.items():
        if name.endswith(SCALE):
            continue
        scale = small.get(name + SCALE)
        if scale is not None:
            value = value * scale.reshape(-1, *[1] * (value.ndim - 1))
        weights[name] = value.float() if value.is_floating_point() else value
    return weights
