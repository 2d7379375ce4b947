"""Values of many people as small drawings: where every dot, tick and label stands, for a template to draw as SVG.

Lengths are pixels of a drawing `WIDTH` wide, from its top left.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from chimap.group import limits

WIDTH = 320
_MARGIN = 14
_ROOM = 52  # height of the band of dots
_LINE = 13  # of a line of labels
_LINES = 4  # of labels at most
_LETTER = 6.3  # wide, on the safe side
_AXIS = 24  # height of ticks and their numbers
_REACH = 2.5  # limits of usual values, from the median: what is farther out is drawn at the edge
SCATTER_HEIGHT = 170
_LEFT = 46  # room for numbers beside a scatter plot

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Point:
    """One acquisition's value.

    Attributes:
        value: Finite.
        label: What it is called where there is little room.
        name: Of the acquisition.
        odd: Whether it is an outlier.
    """

    value: float
    label: str
    name: str
    odd: bool


@dataclass(frozen=True)
class Mark:
    """An outlier: its dot, and its label where there was room.

    Attributes:
        x: Of the dot.
        y: Of the dot.
        point: Whose it is.
        beyond: -1 or 1 where the value lies before or behind the axis and the dot at its end; else 0.
        label: Text, "" where there was no room.
        label_x: Its middle.
        label_y: Its foot.
    """

    x: float
    y: float
    point: Point
    beyond: int
    label: str = ""
    label_x: float = 0.0
    label_y: float = 0.0


@dataclass(frozen=True)
class Drawing:
    """A strip plot.

    Attributes:
        height: Of all.
        top: Of the band of dots.
        foot: Of the band of dots, where the axis is.
        ticks: Place and number of each.
        median: Its place.
        usual: First and last place of what is no outlier; None where nothing can be called so.
        dots: Path of all that are no outliers.
        size: Diameter of a dot.
        marks: Outliers, the farthest out first.
    """

    height: float
    top: float
    foot: float
    ticks: list[tuple[float, str]]
    median: float
    usual: tuple[float, float] | None
    dots: str
    size: float
    marks: list[Mark]


def strip(points: Sequence[Point], median: float, digits: int) -> Drawing:
    """Every value as a dot along one axis; outliers with their labels above.

    Args:
        points: At least one.
        median: Of their values.
        digits: After the point, of values written out.
    """
    values = [point.value for point in points]
    usual = limits(values)
    low, high = _axis(values, usual, digits)

    def across(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return _MARGIN + share * (WIDTH - 2 * _MARGIN)

    places = [across(point.value) for point in points]
    size = 6.0 if len(points) <= 60 else 4.5 if len(points) <= 250 else 3.5
    offsets = _swarm(places, size)
    odd = sorted(
        (index for index, point in enumerate(points) if point.odd),
        key=lambda index: -abs(points[index].value - median),
    )
    beyond = [_beyond(value, low, high) for value in values]
    texts = [
        f"{points[i].label} {shown(points[i].value, digits)}" if beyond[i] else points[i].label for i in odd
    ]  # what the axis does not say
    lines = _labelled([places[i] for i in odd], texts)
    used = 1 + max((line for line, _ in filter(None, lines)), default=-1)
    top = _LINE * used + 4.0
    middle = top + _ROOM / 2
    marks = [
        Mark(places[i], middle + offsets[i], points[i], beyond[i])
        if place is None
        else Mark(places[i], middle + offsets[i], points[i], beyond[i], text, place[1], top - 3 - _LINE * place[0])
        for i, text, place in zip(odd, texts, lines, strict=True)
    ]
    dots = "".join(
        f"M{x:.1f} {middle + offset:.1f}h0"
        for x, offset, point in zip(places, offsets, points, strict=True)
        if not point.odd
    )
    foot = top + _ROOM
    return Drawing(
        foot + _AXIS,
        top,
        foot,
        [(across(value), text) for value, text in ticks(low, high, 4)],
        across(median),
        None if usual is None else (across(usual[0]), across(usual[1])),
        dots,
        size,
        marks,
    )


@dataclass(frozen=True)
class Scatter:
    """Values against another number.

    Attributes:
        bottom: The numbers below: place and text.
        side: Those at the left.
        dots: Path of all that are no outliers.
        marks: The others, without labels; `beyond` is 1 above the axis and -1 below.
    """

    bottom: list[tuple[float, str]]
    side: list[tuple[float, str]]
    dots: str
    marks: list[Mark]


def scatter(others: Sequence[float], points: Sequence[Point], digits: int) -> Scatter:
    """Every value as a dot above another number, such as an age.

    Args:
        others: One for each point.
        points: At least one.
        digits: After the point, of values written out.
    """
    left, right = _widened(min(others), max(others), 0)
    values = [point.value for point in points]
    low, high = _axis(values, limits(values), digits)
    foot = SCATTER_HEIGHT - _AXIS

    def across(value: float) -> float:
        return _LEFT + (value - left) / (right - left) * (WIDTH - _LEFT - _MARGIN)

    def down(value: float) -> float:
        return foot - (min(max(value, low), high) - low) / (high - low) * (foot - 10)

    placed = [(across(other), down(point.value), point) for other, point in zip(others, points, strict=True)]
    return Scatter(
        [(across(value), text) for value, text in ticks(left, right, 5)],
        [(down(value), text) for value, text in ticks(low, high, 4)],
        "".join(f"M{x:.1f} {y:.1f}h0" for x, y, point in placed if not point.odd),
        [Mark(x, y, point, _beyond(point.value, low, high)) for x, y, point in placed if point.odd],
    )


def shown(value: float, digits: int) -> str:
    """A number with a true minus sign, and none before zero."""
    text = f"{value:.{digits}f}"
    return text.replace("-", MINUS) if float(text) else f"{0:.{digits}f}"


def ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Round numbers within a range, at most so many, and how they are written."""
    exponent = math.floor(math.log10((high - low) / most))
    steps = (factor * 10.0**power for power in (exponent, exponent + 1) for factor in (1, 2, 5))
    step = next(step for step in steps if math.floor(high / step) - math.ceil(low / step) < most)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step), math.floor(high / step)
    return [(number * step, shown(number * step, digits)) for number in range(first, last + 1)]


def _axis(values: Sequence[float], usual: tuple[float, float] | None, digits: int) -> tuple[float, float]:
    """A range that shows all values and limits, unless a few values are so far out that the others would merge."""
    low, high = min(values), max(values)
    if usual is not None:
        median, reach = (usual[0] + usual[1]) / 2, _REACH * (usual[1] - usual[0]) / 2
        low, high = max(min(low, usual[0]), median - reach), min(max(high, usual[1]), median + reach)
    return _widened(low, high, digits)


def _beyond(value: float, low: float, high: float) -> int:
    return (value > high) - (value < low)


def _widened(low: float, high: float, digits: int) -> tuple[float, float]:
    """A range with some room at its ends, also where all values are equal."""
    room = max(0.04 * (high - low), 10.0**-digits if high - low < 10.0**-digits else 0.0)
    return low - room, high + room


def _swarm(places: Sequence[float], size: float) -> list[float]:
    """How far each dot stands from the middle so that few overlap: those at one place stand above each other."""
    columns: dict[int, list[int]] = {}
    for index, place in enumerate(places):
        columns.setdefault(int(place // size), []).append(index)
    fullest = max(len(column) for column in columns.values())
    step = min(size, (_ROOM - size) / fullest)
    offsets = [0.0] * len(places)
    for column in columns.values():
        for rank, index in enumerate(column):
            offsets[index] = (rank + 1) // 2 * step * (1 if rank % 2 else -1)
    return offsets


def _labelled(places: Sequence[float], texts: Sequence[str]) -> list[tuple[int, float] | None]:
    """Line (0 is the lowest) and middle of each label; None for one that would stand on those before it."""
    taken: list[list[tuple[float, float]]] = [[] for _ in range(_LINES)]
    found: list[tuple[int, float] | None] = []
    for place, text in zip(places, texts, strict=True):
        half = _LETTER * len(text) / 2
        middle = min(max(place, half), WIDTH - half)
        line = next(
            (n for n, row in enumerate(taken) if all(middle + half < a or middle - half > b for a, b in row)), None
        )
        if line is None:
            found.append(None)
        else:
            taken[line].append((middle - half - 6, middle + half + 6))
            found.append((line, middle))
    return found
