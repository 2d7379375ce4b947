"""What a method may take, and how the methods of each stage are called: the one place where a stage joins."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from chimap import from_local_field, methods
from chimap.arrays import Echoes, Mask, Triple, Volume
from chimap.errors import InputError
from chimap.fields.csf import ventricles
from chimap.fields.relaxation import r2star_map
from chimap.scan import Scan

Track: TypeAlias = Literal["inversion", "full chain"]
TRACKS: tuple[Track, ...] = ("inversion", "full chain")
Settings: TypeAlias = Mapping[str, Mapping[str, Any]]
"""{method: {name: value}}"""


@dataclass(frozen=True)
class Inputs:
    """One case as a method gets it. Volumes (x, y, z); fields in ppm. What the track "inversion" lacks is None: phase,
    total field and its mask.

    Attributes:
        local_field: Zero outside `mask`.
        mask: Where it is known.
        voxel_size: [mm].
        b0_direction: In voxel axes.
        total_field: Zero outside `brain_mask`.
        brain_mask: Where the phase was used.
        phase: Wrapped [rad], (echo, x, y, z).
        magnitude: Likewise.
        echo_times: [s].
        field_strength: [T].
    """

    local_field: Volume
    mask: Mask
    voxel_size: Triple
    b0_direction: Triple
    total_field: Volume | None = None
    brain_mask: Mask | None = None
    phase: Echoes | None = None
    magnitude: Echoes | None = None
    echo_times: tuple[float, ...] = ()
    field_strength: float | None = None

    def to(self, device: torch.device) -> "Inputs":
        """The same on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def of_scan(scan: Scan, local_field: Volume, mask: Mask, total_field: Volume, brain_mask: Mask) -> Inputs:
    """A scan and fields of it [ppm], each where it is known: what methods of every stage take."""
    return Inputs(
        local_field * mask,
        mask,
        scan.voxel_size,
        scan.b0_direction,
        total_field=total_field * brain_mask,
        brain_mask=brain_mask,
        phase=scan.phase,
        magnitude=scan.magnitude,
        echo_times=scan.echo_times,
        field_strength=scan.field_strength,
    )


@dataclass(frozen=True)
class Entry:
    """How methods of a stage take part.

    Attributes:
        tracks: Those whose inputs hold what the stage needs.
        call: From inputs, the method's name and, if there are any, `Settings` to chi [ppm], (x, y, z), and where it is
            valid.
    """

    tracks: tuple[Track, ...]
    call: Callable[..., tuple[Volume, Mask]]


def _invert(inputs: Inputs, method: str, settings: Settings | None = None) -> tuple[Volume, Mask]:
    given: dict[str, Any] = {}
    if methods.find(method, "inversion").takes("radians_per_ppm") and inputs.field_strength is not None:
        signal = inputs.magnitude, inputs.mask, inputs.echo_times, inputs.field_strength
        given["magnitude"], given["radians_per_ppm"] = from_local_field.signal_of(*signal)
    if methods.find(method, "inversion").zero_is_csf and inputs.magnitude is not None:
        rate = r2star_map(inputs.magnitude, inputs.mask, inputs.echo_times)
        given["csf"] = ventricles(rate, inputs.mask, inputs.voxel_size)
    where = inputs.voxel_size, inputs.b0_direction
    chi = from_local_field.invert(inputs.local_field, inputs.mask, *where, method=method, settings=settings, **given)
    return chi, inputs.mask


def _from_phase(inputs: Inputs, method: str, settings: Settings | None = None) -> tuple[Volume, Mask]:
    assert inputs.phase is not None and inputs.brain_mask is not None and inputs.field_strength is not None
    return methods.call(
        methods.find(method, "from phase"),
        settings or {},
        inputs.phase,
        inputs.magnitude,
        inputs.brain_mask,
        inputs.echo_times,
        inputs.field_strength,
        inputs.voxel_size,
        inputs.b0_direction,
    )


def _from_total_field(inputs: Inputs, method: str, settings: Settings | None = None) -> tuple[Volume, Mask]:
    assert inputs.total_field is not None and inputs.brain_mask is not None
    arguments = (inputs.total_field, inputs.brain_mask, inputs.voxel_size, inputs.b0_direction)
    chi, _ = methods.call(methods.find(method, "from total field"), settings or {}, *arguments)
    return chi, inputs.brain_mask


ENTRIES: dict[str, Entry] = {
    "inversion": Entry(TRACKS, _invert),
    "from total field": Entry(("full chain",), _from_total_field),
    "from phase": Entry(("full chain",), _from_phase),
}
"""By stage."""


def chosen(names: list[str] | None) -> list[methods.Method]:
    """Methods by name, in the order of the table, then weights files; all that can take part and are not slow if None.

    Raises:
        InputError: A name that no such method has.
    """
    known = [method for method in methods.METHODS if method.stage in ENTRIES]
    listed = [method.name for method in known]
    files = [name for name in dict.fromkeys(names or []) if name.endswith(methods.WEIGHTS)]
    for name in names or []:
        if name not in listed and name not in files:
            raise InputError(f"no method for the benchmark is called {name!r}; there are {', '.join(listed)}")
    rows = [method for method in known if (not method.slow if names is None else method.name in names)]
    return rows + [methods.find(name, *methods.TO_CHI) for name in files]


def write_inputs(folder: Path, inputs: Inputs) -> None:
    """Write inputs for another process."""
    from safetensors.torch import save_file

    # copies, as the format refuses tensors that share their memory
    volumes = {name: tensor.cpu().contiguous().clone() for name, tensor in inputs.tensors().items()}
    save_file(volumes, folder / "volumes.safetensors")
    numbers = {part.name: getattr(inputs, part.name) for part in fields(inputs) if part.name not in inputs.tensors()}
    (folder / "numbers.json").write_text(json.dumps(numbers))


def read_inputs(folder: Path) -> Inputs:
    """Read what `write_inputs` wrote."""
    from safetensors.torch import load_file

    numbers = json.loads((folder / "numbers.json").read_text())
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in numbers.items()
    }
    return Inputs(**load_file(folder / "volumes.safetensors"), **plain)
