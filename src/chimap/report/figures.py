"""Volumes as PNG pictures: three planes, axial levels, histograms.

The right of the patient is at the left of axial and coronal pictures, as radiologists hang them, and
anterior at the left of sagittal ones. A voxel is a whole number of pixels along its shortest side; nothing is
smoothed.

matplotlib is used through its objects only: pyplot would keep global state.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from chimap.arrays import Mask, Volume
from chimap.report.view import View

Window: TypeAlias = tuple[float, float]

DPI = 100
TEXT = 22  # pixels; pictures are shown at about 0.6 of their width on a page of 1000 pixels
_POINTS = TEXT * 72 / DPI
MINUS = "\N{MINUS SIGN}"
FRAME = 34  # pixels around every slice, for its letters: on phase noise they could not be read
BAR_WIDTH = 24
BAR_ROOM = 146
PLANES_WIDTH = 1400
LEVELS_WIDTH = 1300


def symmetric_window(values: torch.Tensor) -> Window:
    """A window around zero that holds 98 % of the values and ends on a round number."""
    low, high = percentiles(values, (1.0, 99.0))
    reach = max(abs(low), abs(high))
    if not reach > 0:
        return -1.0, 1.0
    power = 10.0 ** math.floor(math.log10(reach))
    rounded = next(step * power for step in (1, 1.5, 2, 3, 4, 5, 7.5, 10) if step * power >= reach * 0.999)
    return -rounded, rounded


def round_window(values: torch.Tensor, share: tuple[float, float] = (1.0, 99.0)) -> Window:
    """A window between two percentiles of the values, both moved outwards to a round number."""
    low, high = percentiles(values, share)
    if not high > low:
        return low - 1.0, low + 1.0
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= (high - low) / 4 * 0.999)
    return math.floor(low / step) * step, math.ceil(high / step) * step


def percentiles(values: torch.Tensor, shares: Sequence[float]) -> list[float]:
    """Percentiles of the finite values; zeros where there are none."""
    array = values.detach().cpu().numpy().ravel()
    array = array[np.isfinite(array)]
    if not array.size:
        return [0.0] * len(shares)
    return [float(value) for value in np.percentile(array, shares)]


def three_planes(
    volume: Volume,
    view: View,
    *,
    window: Window,
    unit: str,
    inside: Mask | None = None,
    outlines: Sequence[tuple[Mask, str]] = (),
    ticks: Mapping[float, str] | None = None,
) -> bytes:
    """Sagittal, coronal and axial slice through the view's centre, with a colour bar.

    Args:
        volume: Shape (x, y, z), in the file's axes.
        view: From `chimap.report.view.view_of`.
        window: Values shown black and white.
        unit: Beside the colour bar.
        inside: Everything else is shown black.
        outlines: Masks and the colours of their rims.
        ticks: Values and labels of the colour bar, round numbers if None.

    Returns:
        A PNG picture.
    """
    turned = _shown(volume, view, inside)
    rims = [(view.turned(mask), colour) for mask, colour in outlines]
    at = view.turned_index(view.centre)
    panels = [_panel(turned, view, plane, at[axis], rims) for axis, plane in enumerate(PLANES)]
    return _draw([panels], PLANES_WIDTH, window=window, unit=unit, ticks=ticks)


def axial_levels(
    volume: Volume,
    view: View,
    *,
    window: Window,
    unit: str,
    inside: Mask,
    count: int = 12,
    columns: int = 4,
) -> bytes:
    """Axial slices from the lower to the upper part of a mask, evenly spaced, with a colour bar.

    Args:
        volume: Shape (x, y, z), in the file's axes.
        view: From `chimap.report.view.view_of`.
        window: Values shown black and white.
        unit: Beside the colour bar.
        inside: Everything else is shown black; the slices keep clear of its lowest and highest sixth.
        count: Number of slices.
        columns: Slices in a row.

    Returns:
        A PNG picture. Each slice is labelled with its distance from the view's centre along the slice normal.
    """
    turned = _shown(volume, view, inside)
    (levels,) = np.nonzero(view.turned(inside).any(axis=(0, 1)))
    low, high = (levels[0], levels[-1]) if levels.size else (0, turned.shape[2] - 1)
    span = high - low
    chosen = np.unique(np.linspace(low + span / 6, high - span / 6, count).round().astype(int))
    centre = view.turned_index(view.centre)[2]
    panels = []
    for level in chosen:
        distance = round(float(level - centre) * view.voxel_size[2])
        note = f"{'+' if distance > 0 else ''}{signed(float(distance))} mm"
        panels.append(_panel(turned, view, "axial", int(level), [], note=note))
    rows = [panels[first : first + columns] for first in range(0, len(panels), columns)]
    return _draw(rows, LEVELS_WIDTH, window=window, unit=unit, ticks=None)


def histogram(values: torch.Tensor, *, window: Window, name: str, unit: str) -> bytes:
    """Share of the voxels in 120 equal classes; what lies beyond the window is counted in words.

    Args:
        values: Any shape; values that are not finite are left out.
        window: Range of the classes.
        name: Of the quantity, below the picture.
        unit: Of the quantity.

    Returns:
        A PNG picture.
    """
    from matplotlib.figure import Figure

    array = values.detach().cpu().numpy().ravel()
    array = array[np.isfinite(array)]
    counts, edges = np.histogram(array, bins=120, range=window)
    beyond = 1 - counts.sum() / max(array.size, 1)
    figure = Figure(figsize=(7.6, 4.0), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0.1, 0.19, 0.87, 0.72))
    axes.stairs(100 * counts / max(array.size, 1), edges, fill=True, color="#4a6785")
    axes.axvline(0, color="#222222", linewidth=1)
    axes.set_xlim(*window)
    axes.set_xlabel(f"{name} [{unit}]", fontsize=13)
    axes.set_ylabel("share of voxels [%]", fontsize=13)
    axes.tick_params(labelsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{100 * beyond:.2g} % beyond the range shown", fontsize=12, loc="right", color="#555555")
    return _png(figure, grey=False)


PLANES: Mapping[str, tuple[str, str, str, str]] = {
    "sagittal": ("A", "P", "S", "I"),
    "coronal": ("R", "L", "S", "I"),
    "axial": ("R", "L", "A", "P"),
}
"""Labels at the left, right, top and bottom; the position is the axis that the plane cuts."""


class _Panel(NamedTuple):
    image: np.ndarray  # rows from the top, columns from the left; NaN is shown black
    pixel: tuple[float, float]  # [mm] along a row, along a column
    name: str
    letters: tuple[str, str, str, str]
    rims: list[tuple[np.ndarray, str]]
    note: str


def _shown(volume: torch.Tensor, view: View, inside: torch.Tensor | None) -> np.ndarray:
    turned = view.turned(volume)
    return turned if inside is None else np.where(view.turned(inside), turned, np.nan)


def _panel(
    turned: np.ndarray,
    view: View,
    plane: str,
    index: int,
    rims: Sequence[tuple[np.ndarray, str]],
    *,
    note: str = "",
) -> _Panel:
    axis = list(PLANES).index(plane)
    across, up = (other for other in range(3) if other != axis)

    # Seen from the patient's feet, front and left, so the first axis of every plane runs to the left.
    def cut(array: np.ndarray) -> np.ndarray:
        return array.take(index, axis=axis)[::-1, ::-1].T

    return _Panel(
        cut(turned),
        (view.voxel_size[across], view.voxel_size[up]),
        plane,
        PLANES[plane],
        [(cut(mask), colour) for mask, colour in rims],
        note,
    )


def _draw(
    rows: Sequence[Sequence[_Panel]],
    width: int,
    *,
    window: Window,
    unit: str,
    ticks: Mapping[float, str] | None,
) -> bytes:
    from matplotlib.figure import Figure

    panels = [panel for row in rows for panel in row]
    widest = max(sum(panel.image.shape[1] * panel.pixel[0] for panel in row) for row in rows)
    shortest = min(min(panel.pixel) for panel in panels)
    scale = max(round(width / widest * shortest), 1) / shortest  # pixels per mm, whole per shortest side

    def size(panel: _Panel) -> tuple[int, int]:
        high, wide = panel.image.shape
        return round(wide * panel.pixel[0] * scale), round(high * panel.pixel[1] * scale)

    heights = [max(size(panel)[1] for panel in row) + 2 * FRAME for row in rows]
    strip = max(sum(size(panel)[0] + 2 * FRAME for panel in row) for row in rows)
    total_width, total_height = strip + BAR_ROOM, sum(heights)
    figure = Figure(figsize=(total_width / DPI, total_height / DPI), dpi=DPI, facecolor="white")

    def axes_at(left: int, top: int, wide: int, high: int, **options: Any) -> Any:
        bottom = total_height - top - high
        box = (left / total_width, bottom / total_height, wide / total_width, high / total_height)
        return figure.add_axes(box, **options)

    axes_at(0, 0, strip, total_height, facecolor="black", xticks=[], yticks=[])
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for panel in row:
            wide, high = size(panel)
            above = top + (height - high) // 2
            _paint(axes_at(left + FRAME, above, wide, high), panel, window)
            _label(axes_at(left, above - FRAME, wide + 2 * FRAME, high + 2 * FRAME), panel)
            left += wide + 2 * FRAME
        top += height
    bar_height = min(total_height - 5 * TEXT, 640)
    bar = axes_at(strip + 14, (total_height - bar_height + TEXT) // 2, BAR_WIDTH, bar_height)
    _colour_bar(bar, window, unit, ticks)
    return _png(figure, grey=not any(panel.rims for panel in panels))


def _paint(axes: Any, panel: _Panel, window: Window) -> None:
    from matplotlib import colormaps

    axes.set_axis_off()
    grey = colormaps["gray"].with_extremes(bad="black")
    low, high = window
    axes.imshow(panel.image, cmap=grey, vmin=low, vmax=high, interpolation="nearest", aspect="auto")
    for mask, colour in panel.rims:
        if mask.any() and not mask.all():
            axes.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.8)


def _label(axes: Any, panel: _Panel) -> None:
    axes.set_axis_off()
    style: dict[str, Any] = {"transform": axes.transAxes, "fontsize": _POINTS, "color": "#f2f2f2"}
    left, right, top, bottom = panel.letters
    box = axes.get_window_extent()
    x, y = FRAME / 2 / box.width, FRAME / 2 / box.height
    axes.text(x, 0.5, left, ha="center", va="center", **style)
    axes.text(1 - x, 0.5, right, ha="center", va="center", **style)
    axes.text(0.5, 1 - y, top, ha="center", va="center", **style)
    axes.text(0.5, y, bottom, ha="center", va="center", **style)
    if panel.note:
        axes.text(x / 2, y, panel.note, ha="left", va="center", **style)


def _colour_bar(axes: Any, window: Window, unit: str, ticks: Mapping[float, str] | None) -> None:
    low, high = window
    ramp = np.linspace(0, 1, 256)[:, None]
    axes.imshow(ramp, cmap="gray", origin="lower", aspect="auto", extent=(0, 1, low, high))
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.tick_params(labelsize=_POINTS, length=6, width=1.2)
    ticks = round_ticks(window) if ticks is None else ticks
    axes.set_yticks(list(ticks), labels=list(ticks.values()))
    axes.set_title(unit, fontsize=_POINTS, loc="left", pad=14)


def round_ticks(window: Window) -> dict[float, str]:
    """Values at equal distances with both ends, and zero where it is inside; the ends alone if none fit."""
    low, high = window
    for count in (5, 4, 6, 7, 3, 8, 2, 9, 10, 11, 12):
        step = (high - low) / count
        digits = f"{step:.2e}".split("e")[0]
        meets_zero = low * high >= 0 or abs(low / step - round(low / step)) < 1e-3
        if digits in ("1.00", "1.50", "2.00", "2.50", "3.00", "5.00", "7.50") and meets_zero:
            values = [low + index * step for index in range(count + 1)]
            places = max(0, -math.floor(math.log10(step)) + (digits[2] != "0"))
            texts = [f"{value if abs(value) > step / 1e3 else 0:.{places}f}" for value in values]
            return {value: text.replace("-", MINUS) for value, text in zip(values, texts, strict=True)}
    return {low: signed(low), high: signed(high)}


def signed(value: float) -> str:
    """A number of up to four digits, with a true minus sign."""
    return f"{value:.4g}".replace("-", MINUS)


def _png(figure: Any, *, grey: bool) -> bytes:
    """Draw; pictures without colour keep one channel, a third of the bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("L" if grey else "RGB")
    stream = io.BytesIO()
    picture.save(stream, format="PNG", compress_level=6)
    return stream.getvalue()
