"""The volumes of a run as a page's script shows them: three planes, any window, one over the other."""

import base64
import gzip
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from chimap.arrays import Mask, Volume
from chimap.report.figures import Window, percentiles, round_window, symmetric_window
from chimap.report.template import script
from chimap.report.view import View
from chimap.scan import Maps, Scan
from chimap.segmentation import Segmentation, names_within

MOST_VOXELS = 5_000_000
"""Of a volume in full detail; those of a larger grid are shown with every other voxel, or fewer, along each axis."""
LEVELS = 500
"""Steps within a window: finer than an eye or a display."""
OUTSIDE = -32000
"""Stands, in packed volumes, for a voxel where there is no value; values end next to it."""


@dataclass(frozen=True)
class Layer:
    """One volume that can be looked at.

    Attributes:
        name: What it is.
        unit: Of its values.
        volume: Shape (x, y, z), in the file's axes.
        window: Values shown black and white at first.
        inside: Everything else is left out.
        coarse: Half the detail is enough.
        levels: Steps within the window.
        names: What values mean, where they are the numbers of something.
    """

    name: str
    unit: str
    volume: Volume
    window: Window
    inside: Mask | None = None
    coarse: bool = False
    levels: int = LEVELS
    names: Mapping[int, str] = field(default_factory=dict)


def layers(scan: Scan, maps: Maps, chi_window: Window) -> Iterator[Layer]:
    """Everything worth scrolling through, chi first, then in the order of computation."""
    brain, last = maps.brain_mask, len(scan.echo_times) - 1
    yield Layer("susceptibility", "ppm", maps.chi, chi_window, maps.mask)
    if scan.magnitude is not None:
        for echo in sorted({0, last}):
            volume = scan.magnitude[echo]
            high = round_window(volume[brain], (1.0, 99.8))[1]
            yield Layer(f"magnitude, echo {echo + 1}", "a.u.", volume, (0.0, high), coarse=echo > 0, levels=100)
    yield Layer(f"wrapped phase, echo {last + 1}", "rad", scan.phase[last], (-math.pi, math.pi), coarse=True)
    if maps.unwrapped_phase is not None:
        volume = maps.unwrapped_phase[last]
        yield Layer(f"unwrapped phase, echo {last + 1}", "rad", volume, round_window(volume[brain]), brain, coarse=True)
    yield Layer("total field", "ppm", maps.total_field, symmetric_window(maps.total_field[brain]), brain, coarse=True)
    if maps.r2star is not None:
        high = round_window(maps.r2star[brain], (0.0, 99.0))[1]
        yield Layer("R2*", "1/s", maps.r2star, (0.0, high), brain, coarse=True)
    yield Layer("local field", "ppm", maps.local_field, symmetric_window(maps.local_field[maps.mask]), maps.mask)
    for name, volume in maps.swi.items():
        if name.endswith("mip"):
            window = round_window(volume[brain], (1.0, 99.8))
            yield Layer(name.replace("_", " "), "a.u.", volume, window, brain, coarse=name != "swi_mip", levels=64)
    if maps.segmentation is not None:
        yield _numbered(maps.segmentation, maps.mask)
    yield Layer("valid mask", "", maps.mask.float(), (0.0, 1.0), coarse=True)


def _numbered(segmentation: Segmentation, mask: Mask) -> Layer:
    """Regions, numbered from 1 on in the order of their names' numbers."""
    named = names_within(segmentation, mask)
    present = sorted(named)
    volume = torch.zeros(segmentation.labels.shape)
    for place, number in enumerate(present, start=1):
        volume[segmentation.labels == number] = place
    names = {place: named[number] for place, number in enumerate(present, start=1)}
    high = max(len(present), 1)
    return Layer("regions", "", volume, (0.0, float(high)), mask & (volume > 0), levels=high, names=names)


def viewer(scan: Scan, maps: Maps, view: View, chi_window: Window) -> dict[str, Any]:
    """What the template's viewer takes: the script, and the volumes with what has to be known of each.

    Args:
        scan: The input.
        maps: What was made of it.
        view: The part that is shown, and how the file's axes lie in the patient.
        chi_window: Values of chi shown black and white at first [ppm].

    Returns:
        `script`, `about` (JSON) and `volumes` (base64 of what `packed` gives, one for each layer).
    """
    step = 1
    while math.prod(math.ceil((part.stop - part.start) / step) for part in view.box) > MOST_VOXELS:
        step += 1
    described, volumes = [], []
    for layer in layers(scan, maps, chi_window):
        stride = 2 * step if layer.coarse else step
        content, shape, level = packed(layer, view, stride)
        volumes.append(base64.b64encode(content).decode("ascii"))
        described.append(
            {
                "name": layer.name,
                "unit": layer.unit,
                "window": layer.window,
                "range": _range(layer),
                "shape": shape,
                "stride": stride,
                "level": level,
                "names": layer.names,
            }
        )
    about = {
        "layers": described,
        "voxel": view.voxel_size,
        "shape": view.shape,
        "cross": view.turned_index(view.centre),
        "order": view.order,
        "flipped": view.flipped,
        "outside": OUTSIDE,
        "box": [(part.start, part.stop) for part in view.box],
    }

    # in a script element, "</" could end it
    return {"script": script("viewer.js"), "about": json.dumps(about).replace("</", "<\\/"), "volumes": volumes}


def packed(layer: Layer, view: View, stride: int) -> tuple[bytes, tuple[int, int, int], float]:
    """A volume as the viewer's script unpacks it, turned to (right, anterior, superior).

    Whole multiples of a level, 16 bits, each less the one to its left: first all low bytes, then all high ones, gzip.
    That takes half of what the values take by themselves.

    Returns:
        The bytes, the shape, and the level in the layer's unit.
    """
    low, high = layer.window
    level = (high - low) / layer.levels
    steps = (layer.volume / level).nan_to_num(OUTSIDE + 1).round().clamp(OUTSIDE + 1, -OUTSIDE).short()
    if layer.inside is not None:
        steps[~layer.inside] = OUTSIDE
    turned = view.turned(steps)[::stride, ::stride, ::stride]
    x, y, z = turned.shape
    x_fastest = np.ascontiguousarray(turned.transpose(2, 1, 0)).ravel()
    differences = np.diff(x_fastest, prepend=np.int16(0)).astype("<u2")
    content = np.concatenate([(differences & 255).astype(np.uint8), (differences >> 8).astype(np.uint8)])
    return gzip.compress(content.tobytes(), compresslevel=4, mtime=0), (x, y, z), level


def _range(layer: Layer) -> Window:
    """How far the window's ends can be moved."""
    low, high = layer.window
    values = layer.volume if layer.inside is None else layer.volume[layer.inside]
    found = percentiles(values, (0.05, 99.95))
    # a window around zero can be opened on both sides, one from zero on only upwards
    span = high - low
    return min(low - span if low < 0 else low, found[0]), max(high + span, found[1])
