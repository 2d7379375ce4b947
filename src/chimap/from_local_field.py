"""From a local field to chi by any method of the table: what each is given, and the margin that it needs."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from chimap import methods
from chimap.arrays import Echoes, Mask, Progress, Shape, Triple, Volume
from chimap.errors import InputError
from chimap.inversion.choice import Choice, choose, penalty_of
from chimap.linalg import bounding_box
from chimap.physics import units
from chimap.physics.dipole import DipoleModel


def invert(
    local_field: Volume,
    mask: Mask,
    voxel_size: Triple,
    b0_direction: Triple,
    *,
    magnitude: Volume | None = None,
    radians_per_ppm: float | None = None,
    csf: Mask | None = None,
    method: str = "tv",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    on_step: Progress | None = None,
    checkpoint: Path | None = None,
) -> Volume:
    """chi [ppm] of a local field [ppm], both (x, y, z), by a method named in `chimap.methods`.

    The field is continued by zeros where the mask comes closer than `MARGIN` to a face of the grid, so that the
    brain's image beyond the face does not leak in; elsewhere the grid is used as it is.

    A method takes of these what it can use: `magnitude`, which weighs the data; `radians_per_ppm`, the phase [rad] of
    1 ppm at the echo that counts, unless the user's settings have it; `csf`, where chi is to be zero.

    `on_step` is called with step and steps by a method that takes steps, and `checkpoint` is where one that learns
    keeps its state and goes on from.

    Raises:
        InputError: No inversion has the name.
    """
    found = methods.find(method, "inversion")
    if not mask.any():
        raise InputError("the mask is empty")
    dipole = DipoleModel(
        tuple(local_field.shape), voxel_size, b0_direction, padding=missing_margin(mask, voxel_size)
    ).to(local_field.device)
    arguments: list[Any] = [local_field, mask, dipole]
    if magnitude is not None and found.takes("weight"):
        arguments.append(magnitude / magnitude[mask].mean() * mask)
    more = {"radians_per_ppm": radians_per_ppm, "csf": csf, "progress": on_step, "checkpoint": checkpoint}
    more = {name: value for name, value in more.items() if value is not None and found.takes(name)}
    chosen = {**(settings or {}), found.name: {**more, **(settings or {}).get(found.name, {})}}
    return methods.call(found, chosen, *arguments)


def signal_of(
    magnitude: Echoes | None, mask: Mask, echo_times: tuple[float, ...], field_strength: float
) -> tuple[Volume | None, float]:
    """One echo that stands for all: it says as much about the field as they do together.

    Of an echo that is (magnitude TE)^2, so the one that stands for all has their root of the sum of squares for its
    magnitude, and sqrt(sum magnitude^2 TE^2 / sum magnitude^2) for its echo time, with means over the mask.

    Args:
        magnitude: (echo, x, y, z), any unit, or None: then all echoes count alike.
        mask: (x, y, z).
        echo_times: [s].
        field_strength: [T].

    Returns:
        Magnitude (x, y, z), None where none was given, and the phase [rad] of a field of 1 ppm.
    """
    power = [1.0] * len(echo_times) if magnitude is None else [float(echo[mask].square().mean()) for echo in magnitude]
    moment = sum(part * time**2 for part, time in zip(power, echo_times, strict=True))
    together = None if magnitude is None else torch.linalg.vector_norm(magnitude, dim=0)
    return together, units.radians_per_ppm(math.sqrt(moment / sum(power)), field_strength)


def check_choosable(method: methods.Method) -> None:
    """Refuse to choose the regularisation of a method that has none to choose.

    Raises:
        InputError: Names those that have.
    """
    if method.stage != "inversion" or "regularisation" not in method.parameters():
        able = [
            row.name for row in methods.METHODS if row.stage == "inversion" and "regularisation" in row.parameters()
        ]
        raise InputError(f"{method.label} has no regularisation to choose; {', '.join(able)} have")


PENALTIES = {"tikhonov": "chi", "l2": "gradient"}
"""What a method's regularisation weighs, where that is not the variation of chi."""


def chosen_regularisation(
    local_field: Volume,
    mask: Mask,
    voxel_size: Triple,
    b0_direction: Triple,
    *,
    method: str,
    criterion: str,
    error: float | None = None,
    magnitude: Volume | None = None,
    radians_per_ppm: float | None = None,
    csf: Mask | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    on_step: Progress | None = None,
) -> Choice:
    """The regularisation of a method for one field; see `inversion.choice.choose`. Arguments as `invert` has them.

    Raises:
        InputError: The method has no regularisation, or the criterion is unknown.
    """
    found = methods.find(method, "inversion")
    check_choosable(found)

    def inverted(value: float) -> Volume:
        trial = with_settings(settings, {found.name: {"regularisation": value}})
        given = {"magnitude": magnitude, "radians_per_ppm": radians_per_ppm, "csf": csf}
        return invert(local_field, mask, voxel_size, b0_direction, method=method, settings=trial, **given)

    padding = missing_margin(mask, voxel_size)
    shape = (local_field.shape[0], local_field.shape[1], local_field.shape[2])
    dipole = DipoleModel(shape, voxel_size, b0_direction, padding=padding).to(local_field.device)
    return choose(
        inverted,
        local_field,
        mask,
        dipole,
        criterion=criterion,  # pyright: ignore[reportArgumentType]
        around=(settings or {}).get(found.name, {}).get("regularisation", found.parameters()["regularisation"]),
        penalty=penalty_of(PENALTIES.get(found.name, "variation"), mask, voxel_size),
        error=error,
        progress=on_step,
    )


def with_settings(
    settings: Mapping[str, Mapping[str, Any]] | None, more: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Settings of methods, with some of them replaced."""
    own = settings or {}
    return {name: {**own.get(name, {}), **more.get(name, {})} for name in {**own, **more}}


def note_on_frame(
    method: methods.Method,
    voxel_size: Triple,
    b0_direction: Triple,
    shape: Shape,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> str | None:
    """What a network's frame did to a scan, as a sentence; None where nothing, or where there is no network."""
    if method.weights is None:
        return None
    from chimap.inversion.learned import how_resampled

    turn = (settings or {}).get(method.name, {}).get("turn", True)
    return how_resampled(method.weights, voxel_size, b0_direction, shape, turn=turn)


MARGIN = 10.0  # mm between the mask and its own periodic image


def missing_margin(mask: Mask, voxel_size: Triple) -> Shape:
    """Voxels to append along each axis so that the mask and its periodic image are `MARGIN` apart."""
    box = bounding_box(mask)
    missing = [
        max(0, math.ceil(MARGIN / size) - (n - (part.stop - part.start)))
        for n, part, size in zip(mask.shape, box, voxel_size, strict=True)
    ]
    return missing[0], missing[1], missing[2]
