"""Veins of the head as lines with a radius, and their share of each voxel."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chimap.arrays import Shape, Triple
from chimap.simulation.atlas import Atlas
from chimap.simulation.shapes import Point
from chimap.simulation.tissues import TISSUES


@dataclass(frozen=True)
class Vein:
    """Points (n, 3) [mm], less than a millimetre apart along a vein, and the radius [mm] at each."""

    points: Tensor
    radii: Tensor


def veins(atlas: Atlas, generator: torch.Generator) -> list[Vein]:
    """Sinuses of the dura, deep veins, veins of the cortex and of the white matter, in atlas coordinates."""
    return [*_sinuses(atlas), *_deep(generator), *_cortical(atlas, generator), *_medullary(generator)]


def _line(places: Sequence[Point], first: float, last: float) -> Vein:
    """A smooth line through the places, its radius changing evenly."""
    return _smooth(torch.tensor(places, dtype=torch.float32), first, last)


def _smooth(places: Tensor, first: float, last: float) -> Vein:
    """Catmull-Rom spline through places (n, 3)."""
    ends = torch.cat([2 * places[:1] - places[1:2], places, 2 * places[-1:] - places[-2:-1]])
    pieces = []
    for i in range(len(places) - 1):
        a, b, c, d = ends[i : i + 4]
        n = max(int(torch.linalg.norm(c - b) / 0.4), 1)
        t = (torch.arange(n) / n)[:, None]
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    points = torch.cat([*pieces, places[-1:]])
    return Vein(points, torch.linspace(first, last, len(points)))


def _surface(atlas: Atlas, directions: Tensor, depth: float) -> Tensor:
    """Points (n, 3) `depth` mm below the inner skull, seen from the middle of the brain along (n, 3)."""
    middle = torch.tensor([0.0, -18.0, 8.0])
    reach = torch.arange(30.0, 125.0, 1.0)
    unit = directions / directions.norm(dim=1, keepdim=True)
    points = middle + unit[:, None] * reach[:, None]
    inside = atlas.cavity.at(points.permute(2, 0, 1))[0] < -depth
    # the first place outside, so that a line which meets the cavity again further on stays on this side
    first = torch.where(inside.all(dim=1), len(reach) - 1, (~inside).int().argmax(dim=1))
    return middle + unit * reach[first][:, None]


def _on_midline(angle: Tensor) -> Tensor:
    """Directions (n, 3) in the midsagittal plane: 0 is front, pi / 2 up, pi back."""
    return torch.stack([torch.zeros_like(angle), torch.cos(angle), torch.sin(angle)], dim=1)


def _sinuses(atlas: Atlas) -> list[Vein]:
    angles = torch.linspace(0.05, math.pi + 0.22, 28)
    sagittal = _surface(atlas, _on_midline(angles), 1.5)
    lines = [_smooth(sagittal, 1.6, 4.2)]
    torcula = sagittal[-1]
    x, y, z = torcula.tolist()
    lines.append(_line([(0, -42, 4), (0, -58, 2), (0, -76, -4), (x, y, z)], 1.7, 2.4))  # straight sinus
    for side in (-1.0, 1.0):
        turn = torch.linspace(0.0, 1.25, 12)
        around = torch.stack([side * torch.sin(turn), -torch.cos(turn), torch.full_like(turn, -0.28)], dim=1)
        transverse = _surface(atlas, around, 0.0)
        transverse[0] = torcula
        lines.append(_smooth(transverse, 3.2, 3.4))
        x, y, z = transverse[-1].tolist()
        down = [
            (x, y, z),
            (side * 54, -46, -38),
            (side * 44, -48, -52),
            (side * 36, -34, -64),
            (side * 33, -26, -140),
        ]
        lines.append(_line(down, 3.4, 3.8))  # sigmoid sinus and jugular vein
    return lines


def _deep(generator: torch.Generator) -> list[Vein]:
    lines = [_line([(0, -36, 7), (0, -40, 8), (0, -44, 5)], 1.7, 1.7)]  # vein of Galen
    for side in (-1.0, 1.0):

        def mirrored(*places: Point, side: float = side) -> list[Point]:
            moved = torch.tensor(places) + 0.5 * torch.randn(len(places), 3, generator=generator)
            return [(side * x, y, z) for x, y, z in moved.tolist()]

        lines += [
            _line(mirrored((3, 2, 11), (2.5, -10, 15), (2.5, -24, 15), (1.5, -36, 8)), 0.9, 1.4),  # internal cerebral
            _line(mirrored((5, 26, 8), (3, 14, 9), (3, 2, 11)), 0.5, 0.8),  # septal
            _line(mirrored((21, -18, 20), (17, -8, 18), (10, 0, 13), (3, 2, 11)), 0.6, 0.9),  # thalamostriate
            _line(mirrored((13, 4, -19), (17, -12, -14), (18, -24, -8), (9, -36, 2), (1.5, -38, 7)), 0.7, 1.2),  # basal
            _line(mirrored((24, -44, 14), (14, -42, 12), (3, -38, 8)), 0.5, 0.9),  # of the atrium
            _line(mirrored((14, -62, -36), (9, -50, -24), (4, -42, -6), (1.5, -40, 5)), 0.5, 1.0),  # of the cerebellum
        ]
    return lines


def _cortical(atlas: Atlas, generator: torch.Generator) -> list[Vein]:
    lines = []
    for side in (-1.0, 1.0):
        for i in range(15):
            angle = 0.25 + (math.pi - 0.25) * (i + float(torch.rand(1, generator=generator))) / 15
            extent = 0.5 + 0.9 * float(torch.rand(1, generator=generator))
            lateral = torch.linspace(0.03, extent, 14)
            # the way wanders along the head: a random walk around the start
            wander = angle + (0.06 * torch.randn(14, generator=generator)).cumsum(0) - 0.06 * torch.arange(14) / 3
            wander[0] = angle
            directions = _on_midline(wander) * torch.cos(lateral)[:, None]
            directions[:, 0] = side * torch.sin(lateral)
            main = _surface(atlas, directions, 4.5)
            lines.append(_smooth(main, 1.3, 0.6))
            for node in range(3, 13, 3):  # branches dive into sulci
                inward = torch.tensor([0.0, -18.0, 8.0]) - main[node]
                inward = inward / inward.norm()
                stray = torch.randn(3, generator=generator)
                length = 8 + 12 * float(torch.rand(1, generator=generator))
                steps = torch.linspace(0, 1, 4)[:, None]
                way = main[node] + steps * length * (inward + 0.6 * stray)
                way[1:] += torch.randn(3, 3, generator=generator)
                lines.append(_smooth(way, 0.7, 0.4))
    return lines


def _medullary(generator: torch.Generator) -> list[Vein]:
    """Thin veins that run through white matter towards the side ventricles."""
    lines = []
    for side in (-1.0, 1.0):
        for _ in range(45):
            draw = torch.rand(4, generator=generator).tolist()
            y = 30 - 75 * draw[0]
            start = torch.tensor([side * (19 + 4 * draw[1] + max(-y - 10, 0) * 0.25), y, 22.0])
            lift = math.radians(5 + 70 * draw[2])
            outward = torch.tensor([side * math.cos(lift), 0.15 * (draw[1] - 0.5), math.sin(lift)])
            steps = torch.linspace(0, 1, 5)[:, None]
            way = start + steps * (12 + 14 * draw[3]) * outward + 0.5 * torch.randn(5, 3, generator=generator)
            lines.append(_smooth(way, 0.5, 0.3))
    return lines


def grown_veins(labels: Tensor, mask: Tensor, voxel_size: Triple, *, generator: torch.Generator) -> Vein:
    """Veins of a brain that is known by its labels only, as branching random walks.

    Medullary veins stand in white matter, away from the middle of the brain; those of the surface run in the fluid
    of the sulci and send branches inwards; deep ones run along the ventricles. About as many as a 3 T scan shows.

    Args:
        labels: Of `tissues.TISSUES`, shape (x, y, z).
        mask: Brain.
        voxel_size: [mm].
        generator: On the device of the labels.

    Returns:
        All points in one (n, 3), in mm from the first voxel, and their radii.
    """
    size = torch.tensor(voxel_size, device=labels.device)
    centre = torch.tensor([(n - 1) / 2 for n in labels.shape], device=labels.device) * size
    volume = math.prod(voxel_size)
    found: list[Vein] = []
    csf, white = labels == TISSUES["csf"].label, labels == TISSUES["white matter"].label
    for where, per_voxel, radius, length, bias in (
        (white, volume / 900, (0.2, 0.5), 22.0, "outwards"),
        (csf & mask, volume / 500, (0.4, 1.1), 40.0, "around"),
    ):
        # as many places at random as there would be veins if all of the grid were such tissue
        places = torch.rand(round(per_voxel * labels.numel()), 3, generator=generator, device=labels.device)
        places = (places * torch.tensor(labels.shape, device=labels.device)).floor()
        start = places[where[tuple(places.long().T)]] * size
        if not len(start):
            continue
        outwards = torch.nn.functional.normalize(start - centre, dim=1)
        stray = torch.randn(start.shape, generator=generator, device=start.device)
        if bias == "outwards":
            direction = outwards + 0.5 * stray
        else:
            direction = stray - (stray * outwards).sum(dim=1, keepdim=True) * outwards
        low, high = radius
        thick = low + (high - low) * torch.rand(len(start), generator=generator, device=start.device).square()
        paths, radii = _walk(start, direction, thick, length, generator)
        found.append(Vein(paths.flatten(0, 1), radii.flatten()))
        # branches leave somewhere along the way, two for each
        node = torch.randint(paths.shape[1], (2, len(start)), generator=generator, device=start.device)
        every = torch.arange(len(start), device=start.device)
        forks = torch.cat([paths[every, one] for one in node])
        inwards = torch.cat([direction, direction]) - 0.5 * torch.nn.functional.normalize(forks - centre, dim=1)
        inwards = inwards + 0.8 * torch.randn(forks.shape, generator=generator, device=start.device)
        paths, radii = _walk(forks, inwards, 0.65 * torch.cat([thick, thick]), length / 2, generator)
        found.append(Vein(paths.flatten(0, 1), radii.flatten()))
    if not found:
        return Vein(torch.zeros(0, 3, device=labels.device), torch.zeros(0, device=labels.device))
    return Vein(torch.cat([vein.points for vein in found]), torch.cat([vein.radii for vein in found]))


def _walk(
    start: Tensor, direction: Tensor, radius: Tensor, length: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random walks (n, steps, 3) [mm] that keep their direction for a while, tapering; and their radii (n, steps)."""
    step, steps = 0.5, round(length / 0.5)
    turns = torch.randn(len(start), steps, 3, generator=generator, device=start.device) * 0.14
    heading = torch.nn.functional.normalize(direction, dim=1)[:, None] + turns.cumsum(dim=1)
    heading = torch.nn.functional.normalize(heading, dim=2)
    # lengths differ: what goes on beyond its own has no radius
    share = torch.linspace(0, 1, steps, device=start.device)
    ends = 0.4 + 0.6 * torch.rand(len(start), 1, generator=generator, device=start.device)
    radii = radius[:, None] * (1 - 0.5 * share / ends) * (share <= ends)
    return start[:, None] + step * heading.cumsum(dim=1), radii


def vein_share(points: Tensor, radii: Tensor, shape: Shape, voxel_size: Triple) -> Tensor:
    """Share of each voxel that is vein, shape (x, y, z), 0 to 1.

    Args:
        points: In voxels, less than one apart along a vein, shape (n, 3).
        radii: [mm], shape (n,).
        shape: Grid.
        voxel_size: [mm].
    """
    size = torch.tensor(voxel_size, device=points.device)
    limit = torch.tensor(shape, device=points.device)
    width = math.prod(voxel_size) ** (1 / 3)
    share = torch.zeros(math.prod(shape), device=points.device)
    near = ((points > -5) & (points < limit + 5)).all(dim=1) & (radii > 0)
    points, radii = points[near], radii[near]
    group = torch.ceil(radii * 2).int()  # points of like radius share one box of neighbours
    for level in group.unique().tolist():
        chosen, radius = points[group == level], radii[group == level]
        # a voxel is touched up to radius + width / 2 from the point, which lies up to half a voxel off the centre
        reach = [int((level / 2 + width / 2) / step + 0.5) for step in voxel_size]
        box = torch.cartesian_prod(*[torch.arange(-n, n + 1, device=points.device) for n in reach])
        for some, radius_of_some in zip(chosen.split(8000), radius.split(8000), strict=True):
            centre = some.round()
            distance = ((centre - some)[:, None] + box).mul_(size).square_().sum(dim=2).sqrt_()
            covered = ((radius_of_some[:, None] - distance) / width + 0.5).clamp_(0, 1)
            # a vein thinner than a voxel cannot fill it
            covered *= (radius_of_some[:, None] ** 2 * math.pi / width**2).clamp_max(1)
            row, column = covered.nonzero(as_tuple=True)
            voxels = centre.long()[row] + box[column]
            ok = ((voxels >= 0) & (voxels < limit)).all(dim=1)
            flat = (voxels[:, 0] * shape[1] + voxels[:, 1]) * shape[2] + voxels[:, 2]
            share.scatter_reduce_(0, flat[ok], covered[row, column][ok], reduce="amax")
    return share.reshape(shape)
