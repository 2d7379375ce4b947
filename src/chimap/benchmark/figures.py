"""Pictures of the benchmark: maps with their errors, bars, error over orientation, linearity of lesions."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from chimap.arrays import Mask, Volume
from chimap.benchmark.cases import Subject
from chimap.benchmark.inputs import TRACKS, Track
from chimap.linalg import bounding_box
from chimap.report.view import View, view_of
from chimap.segmentation import CALCIFICATION, DEEP_GREY, HAEMORRHAGE, Segmentation, region

WINDOW = 0.15
"""Maps and errors are shown from minus to plus this [ppm]."""
DPI = 100
CELL = 1.45
"""Width of a slice [inch]."""
LABEL = 1.1
"""Width of the column of names [inch]."""
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000"),
    *("#8c564b", "#9467bd", "#bcbd22", "#17becf", "#1f3b73", "#a63603", "#31a354", "#de2d26"),
)


class Picture:
    """Slices of one case, kept while its methods run: a row for each method, the truth first.

    Only the two slices of every map are kept, so that memory does not grow with the number of methods.
    """

    def __init__(self, subject: Subject, name: str, *, upright: bool) -> None:
        """`upright`: the head stands along the grid's axes, however these lie in the scanner."""
        self.name = name
        head, mask = subject.head, subject.truth.mask
        affine = np.diag([*head.voxel_size, 1.0]) if upright else head.affine
        self._view: View = view_of(affine, head.voxel_size, mask, margin=3.0)
        self._at = self._view.turned_index(_middle(subject))
        true = torch.where(mask, subject.truth.chi - subject.truth.chi[mask].mean(), 0)
        self._truth = self._cut(true, mask)
        self._found: dict[tuple[Track, str], list[np.ndarray]] = {}
        self._failed: set[tuple[Track, str]] = set()

    def add(self, track: Track, method: str, chi: Volume, truth: Volume, inside: Mask) -> None:
        """Keep the slices of a map and of its error, both maps with a mean of 0 inside."""
        slices = [self._cut(chi, inside), self._cut(chi - truth, inside)]
        self._found[track, method] = [slices[0][0], slices[1][0], slices[0][1], slices[1][1]]

    def fail(self, track: Track, method: str) -> None:
        """Say that there is no map, where one was to be."""
        self._failed.add((track, method))

    def draw(self, methods: Sequence[str]) -> bytes:
        """A PNG picture. A method that has no place in a track, as it begins before the local field, is said to."""
        from matplotlib.figure import Figure

        size = self._view.voxel_size
        deep = (self._truth[0].shape[0] * size[1], self._truth[1].shape[0] * size[2])
        wide = self._truth[0].shape[1] * size[0]
        high = CELL * max(deep) / wide
        columns = 4 * len(TRACKS)
        width, height = LABEL + columns * CELL + 0.75, 0.5 + high * (1 + len(methods))
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")

        def cell(row: int, column: int, image: np.ndarray | str, pixel: tuple[float, float]) -> None:
            box = ((LABEL + column * CELL) / width, 1 - (0.5 + (row + 1) * high) / height, CELL / width, high / height)
            axes = figure.add_axes(box, facecolor="black", xticks=[], yticks=[])
            axes.spines[:].set_color("white")
            if isinstance(image, str):
                axes.set_facecolor("#eeeeee")
                axes.text(0.5, 0.5, image, ha="center", va="center", transform=axes.transAxes, fontsize=9)
                return
            extent = (0, image.shape[1] * pixel[0], 0, image.shape[0] * pixel[1])
            # the smallest range that all slices fit into, each in the middle
            axes.imshow(image, cmap="gray", vmin=-WINDOW, vmax=WINDOW, interpolation="nearest", extent=extent)
            axes.set_xlim((extent[1] - wide) / 2, (extent[1] + wide) / 2)
            axes.set_ylim((extent[3] - max(deep)) / 2, (extent[3] + max(deep)) / 2)

        planes = [(size[0], size[1]), (size[0], size[2])]
        for number, track in enumerate(TRACKS):
            middle = (LABEL + (4 * number + 2) * CELL) / width
            figure.text(middle, 1 - 0.16 / height, f"{self.name}: {track}", ha="center", va="center", fontsize=11)
            for column, heading in enumerate(("axial", "error", "coronal", "error")):
                place = (LABEL + (4 * number + column + 0.5) * CELL) / width
                figure.text(place, 1 - 0.38 / height, heading, ha="center", va="center", fontsize=9)
            for plane in range(2):
                cell(0, 4 * number + 2 * plane, self._truth[plane], planes[plane])
            for row, method in enumerate(methods, start=1):
                why = "failed" if (track, method) in self._failed else "begins\nearlier"
                slices = self._found.get((track, method), [why] * 4)
                for column, image in enumerate(slices):
                    cell(row, 4 * number + column, image, planes[column // 2])
        for row, name in enumerate(("truth", *methods)):
            at = 1 - (0.5 + (row + 0.5) * high) / height
            figure.text((LABEL - 0.1) / width, at, name, ha="right", va="center", fontsize=10)
        _scale(figure, width, height)
        return _png(figure)

    def _cut(self, volume: Volume, inside: Mask) -> tuple[np.ndarray, np.ndarray]:
        """Axial and coronal slice, rows from the top, the patient's right at the left; NaN outside."""
        turned = self._view.turned(torch.where(inside, volume, torch.nan))
        x, y, z = self._at
        return turned[::-1, ::-1, z].T.copy(), turned[::-1, y, ::-1].T.copy()


def bars(rows: Sequence[tuple[str, str, str, float]], cases: Sequence[str], methods: Sequence[str], name: str) -> bytes:
    """One group of bars for each case, one bar for each method, the tracks below each other.

    Args:
        rows: (case, track, method, value).
        cases: In order.
        methods: In order.
        name: Of the measure, with its unit.

    Returns:
        A PNG picture.
    """
    from matplotlib.figure import Figure

    values = {(case, track, method): value for case, track, method, value in rows}
    figure = Figure(figsize=(max(7.0, 2.2 + 0.16 * len(cases) * (len(methods) + 2)), 7.2), dpi=DPI, facecolor="white")
    panels = figure.subplots(len(TRACKS), 1, sharex=True, sharey=True)
    width = 0.84 / len(methods)
    for axes, track in zip(panels, TRACKS, strict=True):
        for number, method in enumerate(methods):
            heights = [values.get((case, track, method), np.nan) for case in cases]
            left = np.arange(len(cases)) + (number - (len(methods) - 1) / 2) * width
            axes.bar(left, heights, width, color=COLOURS[number % len(COLOURS)], label=method)
        axes.set_title(track, loc="left", fontsize=11)
        axes.set_ylabel(name)
        axes.grid(axis="y", color="#dddddd")
        _plain(axes)
    panels[-1].set_xticks(range(len(cases)), cases, rotation=30, ha="right")
    panels[-1].set_xlim(-0.6, len(cases) - 0.4)
    _legend(figure, panels[0])
    return _png(figure)


def curves(
    points: Sequence[tuple[str, str, float, float]],
    methods: Sequence[str],
    *,
    across: str,
    up: str,
    identity: bool = False,
) -> bytes:
    """A curve for each method, the tracks side by side.

    Args:
        points: (track, method, x, y).
        methods: In order.
        across: Name of x, with its unit.
        up: Likewise of y.
        identity: Draw y = x too.

    Returns:
        A PNG picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.8), dpi=DPI, facecolor="white")
    panels = figure.subplots(1, len(TRACKS), sharex=True, sharey=True)
    for axes, track in zip(panels, TRACKS, strict=True):
        if identity:
            ends = [point[2] for point in points]
            axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="#999999", linestyle="--", zorder=0)
        for number, method in enumerate(methods):
            own = sorted((x, y) for where, name, x, y in points if where == track and name == method)
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(
                *zip(*own, strict=True) if own else ([], []), color=colour, marker="o", markersize=4, label=method
            )
        axes.set_title(track, loc="left", fontsize=11)
        axes.set_xlabel(across)
        axes.grid(color="#dddddd")
        _plain(axes)
    panels[0].set_ylabel(up)
    _legend(figure, panels[0])
    return _png(figure)


def _middle(subject: Subject) -> tuple[int, int, int]:
    """Voxel through which the slices go: the middle of the largest lesion, else that of the deep grey nuclei."""
    head, mask = subject.head, subject.truth.mask
    segmentation = Segmentation(head.labels, head.label_names, "table")
    if subject.spots:
        x, y, z = max(subject.spots, key=lambda spot: spot.chi).centre
        return round(x), round(y), round(z)
    nuclei = frozenset().union(*(names for nucleus, names in DEEP_GREY.items() if nucleus in ("putamen", "pallidum")))
    for names in (CALCIFICATION | HAEMORRHAGE, nuclei):
        where = region(segmentation, names) & mask
        if names is not nuclei:
            where = _largest(where)
        if where.any():
            x, y, z = (round(float(along.float().mean())) for along in torch.nonzero(where, as_tuple=True))
            return x, y, z
    x, y, z = ((part.start + part.stop) // 2 for part in bounding_box(mask))
    return x, y, z


def _largest(marked: Mask) -> Mask:
    from scipy import ndimage

    parts, count = ndimage.label(marked.numpy())  # pyright: ignore[reportGeneralTypeIssues]
    if not count:
        return marked
    return torch.from_numpy(parts == 1 + int(np.bincount(parts.ravel())[1:].argmax()))


def _scale(figure: Any, width: float, height: float) -> None:
    axes = figure.add_axes(((width - 0.65) / width, 0.5 - 0.5 / height * 0.8, 0.12 / width, 0.8 / height))
    ramp = np.linspace(0, 1, 128)[:, None]
    axes.imshow(ramp, cmap="gray", origin="lower", aspect="auto", extent=(0, 1, -WINDOW, WINDOW))
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks([-WINDOW, 0, WINDOW])
    axes.tick_params(labelsize=8)
    axes.set_title("ppm", fontsize=8)


def _plain(axes: Any) -> None:
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0, 1 - 1.2 / figure.get_figwidth(), 1))
    figure.legend(handles, labels, loc="center right", frameon=False, fontsize=9)


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
