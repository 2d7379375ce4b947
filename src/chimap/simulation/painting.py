"""Tissues of the built-in head, painted one over the other at points in atlas coordinates."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from chimap.simulation.atlas import Atlas, Grid
from chimap.simulation.nuclei import SMALL_NUCLEI
from chimap.simulation.shapes import OUTLINES, Point, blend, capsule, chain, ellipsoid, outlined
from chimap.simulation.tissues import TISSUES


@dataclass(frozen=True)
class Person:
    """What makes one head differ from another, all in atlas coordinates.

    Attributes:
        atlas: The brain and the skull's cavity.
        patches: Smooth noise of unit variance, 3 channels: thickness of bone, of scalp, and where fat lies.
        cells: Noise of unit variance whose zero crossings are the walls between air cells.
        texture: Lattices whose sum is the variation within tissues.
    """

    atlas: Atlas
    patches: Grid
    cells: Grid
    texture: list[Grid]


class Canvas:
    """Values at points that tissues are painted onto: a share of 1 covers, less mixes.

    Args:
        points: Atlas coordinates [mm], shape (3, n).
        width: Over how many mm a border is soft: the distance between points, for partial volume.
        run: So many points that follow one another lie close together; divides n.
    """

    def __init__(self, points: Tensor, width: float, run: int):
        n = points.shape[1]
        runs = points.reshape(3, -1, run)
        self.run = run
        self.lowest, self.highest = runs.amin(dim=2), runs.amax(dim=2)
        self.points = points
        self.width = width
        air = TISSUES["air"]
        self.values = torch.tensor([air.chi, air.m0, air.r2star, air.variation])[:, None].repeat(1, n)
        self.labels = torch.zeros(n, dtype=torch.uint8)

    def share(self, distance: Tensor) -> Tensor:
        """Share of a point's surroundings that lies inside a surface."""
        return (0.5 - distance / self.width).clamp(0, 1)

    def paint(self, name: str, share: Tensor, where: Tensor | None = None) -> None:
        """Cover a share of every point, or of the points with the indices `where`."""
        tissue = TISSUES[name]
        if where is None:
            where = share.nonzero()[:, 0]
            share = share[where]
        for value, target in zip((tissue.chi, tissue.m0, tissue.r2star, tissue.variation), self.values, strict=True):
            old = target[where]
            target[where] = old + share * (value - old)
        self.labels[where[share > 0.5]] = tissue.label

    def within(self, low: Point, high: Point) -> Tensor:
        """Indices of the points in a box."""
        runs = torch.ones(self.lowest.shape[1], dtype=torch.bool)
        for axis in range(3):
            runs &= self.highest[axis] > low[axis] - self.width
            runs &= self.lowest[axis] < high[axis] + self.width
        where = (runs.nonzero() * self.run + torch.arange(self.run)).flatten()
        points = self.points[:, where]
        inside = torch.ones(len(where), dtype=torch.bool)
        for axis in range(3):
            inside &= points[axis] > low[axis] - self.width
            inside &= points[axis] < high[axis] + self.width
        return where[inside]

    def paint_shape(
        self, name: str, low: Point, high: Point, distance: Callable[[Tensor], Tensor], *, both: bool = False
    ) -> None:
        """Paint a shape that lies in a box; `both`: on the left too, given by its right side."""
        where = self.within(low, high)
        if both:
            other = self.within((-high[0], low[1], low[2]), (-low[0], high[1], high[2]))
            where = torch.cat([where[self.points[0, where] >= 0], other[self.points[0, other] < 0]])
        if where.numel():
            points = self.points[:, where]
            if both:
                points[0] = points[0].abs()
            self.paint(name, self.share(distance(points)), where)


def paint_head(canvas: Canvas, person: Person) -> Tensor:
    """Paint everything but veins and texture.

    Returns:
        Share of brain at every point.
    """
    cavity = person.atlas.cavity.at(canvas.points)[0]
    patches = person.patches.at(canvas.points)
    _soft_tissue_and_bone(canvas, cavity, patches)
    _face(canvas)
    _air(canvas, person)
    canvas.paint("csf", canvas.share(cavity))
    brain = _brain(canvas, person)
    for name in OUTLINES:
        grid = outlined(name)
        canvas.paint_shape(name, _point(grid.low), _point(grid.high), lambda p, grid=grid: grid.at(p)[0], both=True)
    for nucleus in SMALL_NUCLEI:
        canvas.paint_shape(nucleus.name, nucleus.low, nucleus.high, nucleus.distance, both=True)
    return brain


def _point(values: tuple[float, ...]) -> Point:
    return values[0], values[1], values[2]


def _soft_tissue_and_bone(canvas: Canvas, cavity: Tensor, patches: Tensor) -> None:
    points = canvas.points
    # the bulge at the back and the brow, which holds the frontal sinus
    ends = 1.5 * torch.sigmoid((points[1] - 68) / 5) + torch.sigmoid((-98 - points[1]) / 4)
    level = torch.exp(-(((points[2] + 2) / 20) ** 2))
    thickness = 6.0 + 1.0 * patches[0].clamp(-2, 2) + 2.0 * level * ends
    # temples: the skull is thin and a muscle lies on it
    temple = torch.exp(-(((points[1] - 15) / 28) ** 2) - ((points[2] + 5) / 26) ** 2)
    temple = temple * torch.sigmoid((points[0].abs() - 42) / 4)
    thickness = thickness - 2.0 * temple
    scalp = 5.0 + 0.8 * patches[1].clamp(-2, 2) + 7.0 * temple
    vault = cavity - thickness - scalp
    # below the brain the cavity's own outline would give a waist; face and neck take over
    face = ellipsoid(points, (0, 36, -62), (64, 52, 82))
    back = ellipsoid(points, (0, -42, -40), (66, 52, 60))
    neck = capsule(points, (0, -28, -95), (0, -40, -260), 54, 58)
    head = blend(blend(vault, face, 14), blend(back, neck, 30), 16)
    nose = chain(points, [(0, 84, -30), (0, 101, -62), (0, 92, -70)], [4, 9, 8])
    head = blend(head, nose, 8)
    canvas.paint("muscle", canvas.share(head))
    fat_depth = 4.2 + 1.2 * patches[1].clamp(-2, 2)
    deep_fat = canvas.share((1.0 - patches[2]) * 4) * (head < -8)
    canvas.paint("fat", canvas.share(head) * torch.maximum(canvas.share(-fat_depth - head), deep_fat))
    canvas.paint("skin", canvas.share(head) * canvas.share(-1.8 - head))
    bone = torch.maximum(-cavity, cavity - thickness)
    canvas.paint("bone", canvas.share(bone))
    marrow = torch.maximum(0.30 * thickness - cavity, cavity - 0.72 * thickness)
    vault_only = torch.sigmoid((points[2] + 25) / 3)
    canvas.paint("diploe", canvas.share(marrow) * vault_only)


def _face(canvas: Canvas) -> None:
    shape = partial(canvas.paint_shape, both=True)

    jaw = [(50, -6, -62), (48, 0, -100), (38, 40, -122), (14, 72, -128), (0, 76, -128)]
    shape("bone", (-5, -15, -140), (60, 88, -55), lambda p: chain(p, jaw, [5, 6, 7, 8, 8]))
    cheek = [(30, 70, -58), (52, 50, -56), (66, 15, -50), (66, -12, -46)]
    shape("bone", (20, -20, -66), (75, 80, -40), lambda p: chain(p, cheek, [6, 5, 3, 3]))
    shape("bone", (-1, 10, -96), (26, 80, -86), lambda p: ellipsoid(p, (0, 44, -91), (22, 32, 3)))  # palate
    shape("bone", (-1, 60, -118), (30, 90, -92), lambda p: chain(p, [(0, 78, -104), (24, 58, -104)], [6, 6]))
    shape("bone", (8, -40, -62), (60, 0, -30), lambda p: capsule(p, (14, -14, -46), (56, -34, -42), 8, 11))  # petrous
    shape("bone", (46, -50, -75), (74, -15, -35), lambda p: ellipsoid(p, (58, -32, -52), (11, 13, 19)))  # mastoid
    shape("bone", (-1, -30, -60), (16, 30, -28), lambda p: capsule(p, (0, 22, -46), (0, -22, -44), 11, 8))  # clivus
    shape("bone", (-1, -30, -260), (20, 10, -76), lambda p: _vertebrae(p))
    # orbits: a cone of fat in a shell of bone, the eye at its mouth
    cone = [(32, 64, -38), (18, 28, -36)]
    shape("bone", (5, 15, -58), (52, 72, -18), lambda p: capsule(p, cone[0], cone[1], 18, 6))
    shape("fat", (5, 15, -58), (52, 84, -18), lambda p: capsule(p, cone[0], cone[1], 16, 4.5))
    for dx, dz in ((9, 0), (-9, 0), (0, 9), (0, -9)):
        muscle = [(32 + dx, 62, -38 + dz), (30 + dx, 50, -38 + dz), (18, 28, -36)]
        shape("muscle", (8, 20, -52), (46, 70, -24), lambda p, m=muscle: chain(p, m, [1.2, 2.2, 1.0]))
    shape(
        "white matter",
        (4, 8, -42),
        (34, 56, -28),
        lambda p: chain(p, [(32, 53, -38), (17, 26, -35), (5, 10, -30)], [2, 2, 2]),
    )
    shape("skin", (16, 48, -54), (48, 82, -22), lambda p: ellipsoid(p, (32, 65, -38), (13, 13, 13)))
    shape("eye", (16, 48, -54), (48, 82, -22), lambda p: ellipsoid(p, (32, 65, -38), (12, 12, 12)))
    shape("lens", (24, 68, -46), (40, 82, -30), lambda p: ellipsoid(p, (32, 73.5, -38), (4.5, 2.2, 4.5)))


def _vertebrae(points: Tensor) -> Tensor:
    body = capsule(points, (0, -18, -82), (0, -22, -260), 10)
    disc = torch.remainder(points[2] + 84, 18) - 2.5
    return torch.maximum(body, 2.0 - disc.abs())


def _air(canvas: Canvas, person: Person) -> None:
    def cells(points: Tensor, distance: Tensor, width: float) -> Tensor:
        """Air cells divided by walls of bone or mucosa."""
        walls = person.cells.at(points)[0]
        return torch.maximum(distance, (width - walls.abs()) * 2)

    def air(low: Point, high: Point, distance: Callable[[Tensor], Tensor], *, walls: float = 0.0) -> None:
        def hollow(points: Tensor) -> Tensor:
            found = distance(points)
            return cells(points, found, walls) if walls else found

        canvas.paint_shape("air", low, high, hollow, both=True)

    canvas.paint_shape(
        "bone", (1, 66, -24), (28, 92, 16), lambda p: ellipsoid(p, (12, 80, -10), (14, 6.5, 17)), both=True
    )
    air((1, 66, -24), (28, 92, 16), lambda p: ellipsoid(p, (12, 80, -10), (11.5, 4.2, 14)))  # frontal
    canvas.paint_shape(
        "bone", (-1, 24, -62), (16, 70, -28), lambda p: ellipsoid(p, (8, 46, -42), (9, 23, 12)), both=True
    )
    air((1, 24, -60), (15, 70, -28), lambda p: ellipsoid(p, (8, 46, -42), (7, 21, 10)), walls=0.25)  # ethmoid
    canvas.paint_shape(
        "bone", (-1, 0, -60), (20, 30, -30), lambda p: ellipsoid(p, (8, 15, -45), (12, 13, 12)), both=True
    )
    air((1, 0, -58), (20, 30, -32), lambda p: ellipsoid(p, (9, 15, -45), (8.5, 11, 9.5)))  # sphenoid
    canvas.paint_shape(
        "bone", (12, 24, -92), (46, 74, -54), lambda p: ellipsoid(p, (29, 48, -73), (16, 20, 18)), both=True
    )
    air((12, 24, -92), (46, 74, -54), lambda p: ellipsoid(p, (29, 48, -73), (14, 18, 16)))  # maxillary
    air((1, 10, -90), (9, 96, -46), lambda p: _nasal_cavity(p))
    air((45, -50, -75), (72, -15, -35), lambda p: ellipsoid(p, (58, -32, -53), (8.5, 10, 15)), walls=0.45)  # mastoid
    air(
        (36, -35, -54),
        (95, -10, -38),
        lambda p: chain(p, [(42, -22, -46), (58, -20, -46), (92, -24, -46)], [3.5, 3.0, 3.5]),
    )
    throat = [(0, 8, -70), (0, -4, -84), (0, -2, -120), (0, 0, -150), (0, -4, -270)]
    air((-1, -20, -280), (16, 20, -62), lambda p: chain(p, throat, [8, 8, 7, 8, 9]))


def _nasal_cavity(points: Tensor) -> Tensor:
    """Half of the nose's inside: a narrow slit beside the septum, turbinates standing into it."""
    outline = ellipsoid(points, (6, 48, -66), (6.5, 40, 20))
    turbinate = torch.minimum(
        capsule(points, (8.5, 25, -76), (8.5, 68, -76), 4.2), capsule(points, (8, 25, -62), (8, 62, -62), 3.4)
    )
    return torch.maximum(torch.maximum(outline, 1.2 - points[0]), 1.4 - turbinate)


def _brain(canvas: Canvas, person: Person) -> Tensor:
    atlas = person.atlas.brain
    points = canvas.points
    where = canvas.within(_point(atlas.low), _point(atlas.high))
    grey, white, csf, brain = atlas.at(points[:, where])
    inside = grey + white + csf
    # painting one after the other: a share of what the next ones leave uncovered
    canvas.paint("csf", inside.clamp(0, 1), where)
    canvas.paint("grey matter", (grey / (grey + csf).clamp_min(1e-3)).clamp(0, 1) * inside, where)
    canvas.paint("white matter", white, where)
    stem = chain(points[:, where], [(0, -16, -8), (0, -26, -28), (0, -34, -48), (0, -44, -76)], [11, 15, 10, 7])
    canvas.paint("brain stem", canvas.share(stem) * (grey + white), where)
    cord = [(0, -42, -66), (0, -46, -90), (0, -52, -160), (0, -62, -260)]
    canvas.paint_shape("brain stem", (-10, -70, -260), (10, -36, -66), lambda p: chain(p, cord, [6, 5.5, 5, 5]))
    capsule_of_brain = [(12, 8, -2), (18, -2, 2), (24, -18, 4), (24, -24, 18), (26, -26, 30)]
    for side in (1.0, -1.0):
        index = canvas.within((min(6 * side, 36 * side), -82, -6), (max(6 * side, 36 * side), 14, 36))
        here = points[:, index] * torch.tensor([side, 1.0, 1.0])[:, None]
        share = canvas.share(chain(here, capsule_of_brain, [1.5, 2, 2.5, 3, 3]) / 2)
        radiation = chain(here, [(27, -28, 4), (32, -48, 6), (24, -76, 4)], [2.5, 2.5, 2])
        share = torch.maximum(share, canvas.share(radiation / 2))
        canvas.paint("internal capsule", share * atlas.at(points[:, index])[1], index)
    result = torch.zeros(points.shape[1])
    result[where] = brain
    return result
