"""Random maps of simple sources, for training: perturbations, sources around a brain, blobs, simple shapes.

Numbers are drawn on the generator's device, where the maps are made too. A solid is drawn within its bounding
box only, and its surface has partial volume unless a function says that its map is binary.
"""

from collections.abc import Iterable, Sequence

import torch

from chimap.arrays import Mask, Shape, Triple, Volume
from chimap.errors import InputError
from chimap.linalg import along_axis
from chimap.physics.solids import Range, Solid, rotations, solid

CLOSING = 8
"""Radius [voxels] of the ball that closes the gaps of a blob."""


def perturbation_map(
    shape: Shape,
    voxel_size: Triple,
    *,
    generator: torch.Generator,
    kinds: Sequence[Solid] = ("ellipsoid",),
    count: int = 6,
    radius: Range = (1.0, 5.0),
    strength: float = 1.5,
    spread: float = 0.1,
    negative: float = 1 / 3,
    hard: bool = False,
) -> tuple[Volume, Mask]:
    """Solids of high susceptibility as uQSM+ adds to its training fields; where they overlap, values add.

    The paper gives radii, values and the comparison of solids (appendix C). Its published code differs or says
    more: radii of 2 to 6 mm (here the text's 1 to 5), six solids per map and a third of them negative (both
    taken), whole degrees of three Euler angles (here uniform over rotations) and places that the rotation may
    carry out of the grid (here every centre is inside). The code's maps are binary: `hard`.

    Args:
        shape: Grid.
        voxel_size: [mm].
        generator: Decides the device.
        kinds: What to draw from, with equal odds.
        count: Solids.
        radius: Least and greatest half axis [mm]; of an ellipsoid or cuboid every axis is drawn, of a cylinder
            its radius and half its length.
        strength: Mean of |chi| [ppm].
        spread: Standard deviation of chi [ppm].
        negative: Odds of a negative value.
        hard: No partial volume.

    Returns:
        chi [ppm], shape (x, y, z), and where there is any solid.

    Raises:
        InputError: Radii that are no range above 0.

    References:
        uQSM+, appendix C.
    """
    _check_range("radii", radius)
    device = generator.device
    chi = torch.zeros(shape, device=device)
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    turns = rotations(count, generator).tolist()
    normal = torch.randn(count, generator=generator, device=device).tolist()
    for draw, noise, turn in zip(_uniform(count, 8, generator), normal, turns, strict=True):
        kind = kinds[int(draw[0] * len(kinds))]
        radii = _radii(kind, draw[1:4], radius)
        value = strength + spread * noise
        box, share = solid(
            kind,
            shape,
            voxel_size,
            centre=_inside(draw[4:7], shape, voxel_size),
            radii=radii,
            rotation=turn,
            hard=hard,
            device=device,
        )
        chi[box] += share * (-value if draw[7] < negative else value)
        mask[box] |= share > 0
    return chi, mask


def external_sources(
    mask: Mask,
    voxel_size: Triple,
    *,
    generator: torch.Generator,
    count: int = 100,
    chi: float = 9.2,
    spread: float = 0.5,
    radius: Range = (3.5, 10.5),
) -> Volume:
    """Ellipsoids like pockets of air around a brain, as NeXtQSM makes its background fields.

    The paper says about 100 of about 9.2 ppm, sized around a tenth of the brain's volume. The default radii are
    about a tenth of those of a brain, so that a hundred together make a tenth of its volume; were each a tenth,
    they would fill the grid. Where ellipsoids overlap, the later one covers the earlier. Spread is our choice.

    Args:
        mask: Brain, shape (x, y, z); sources are cut off at its surface.
        voxel_size: [mm].
        generator: On the mask's device.
        count: Mean of the number of ellipsoids, which follows a Poisson distribution.
        chi: Mean value [ppm].
        spread: Its standard deviation [ppm].
        radius: Least and greatest half axis [mm].

    Returns:
        chi [ppm], shape (x, y, z), zero in the mask.

    Raises:
        InputError: No voxel is outside the mask, or radii that are no range above 0.

    References:
        NeXtQSM.
    """
    _check_range("radii", radius)
    outside = torch.nonzero(~mask)
    if len(outside) == 0:
        raise InputError("the mask fills the grid, needed some space around it for external sources")
    x, y, z = mask.shape
    device = generator.device
    number = int(torch.poisson(torch.tensor(float(count), device=device), generator=generator))
    chosen = torch.randint(len(outside), (number,), generator=generator, device=device)
    places = (outside[chosen] + torch.rand(number, 3, generator=generator, device=device) - 0.5).tolist()
    turns = rotations(number, generator).tolist()
    values = (chi + spread * torch.randn(number, generator=generator, device=device)).tolist()
    result = torch.zeros(x, y, z, device=mask.device)
    for place, turn, value, draw in zip(places, turns, values, _uniform(number, 3, generator), strict=True):
        box, share = solid(
            "ellipsoid",
            (x, y, z),
            voxel_size,
            centre=_triple(p * d for p, d in zip(place, voxel_size, strict=True)),
            radii=_radii("ellipsoid", draw, radius),
            rotation=turn,
            device=mask.device,
        )
        result[box] = (1 - share) * result[box] + share * value
    result[mask] = 0
    return result


def blob(
    size: int | Shape,
    *,
    generator: torch.Generator,
    each: tuple[int, int] = (5, 10),
    closing: int = CLOSING,
) -> Mask:
    """An irregular body without holes that fills most of a box, as iQSM draws haemorrhages and calcifications.

    Cubes, cuboids and spheres of a tenth to half the edge are put on 16 x 16 x 16 voxels at random and turned
    at random; gaps are closed by a ball, the outermost voxels cleared, and the body resized and closed again.
    The published code draws 1 to 5 cuboids by a mistake in their number, 5 to 10 of all others; here it is 5 to
    10 of each. It turns about two axes; here it is any rotation. The first cube sits in the middle, so that no
    blob is empty.

    Args:
        size: Edge, or edges, of the box [voxels].
        generator: Decides the device.
        each: Least and greatest number of cubes, of cuboids and of spheres; fewer give odder bodies.
        closing: Radius of the ball [voxels].

    Raises:
        InputError: A box of less than 2 voxels along some axis.

    References:
        Gao et al. 2022, iQSM, doi:10.1016/j.neuroimage.2022.119410.
    """
    edges: Shape = (size, size, size) if isinstance(size, int) else size
    if min(edges) < 2:
        raise InputError(f"the blob's box is {edges}, needed edges of at least 2 voxels")
    n, device = 16, generator.device
    grid, unit = (n, n, n), (1.0, 1.0, 1.0)
    numbers = torch.randint(each[0], each[1] + 1, (3,), generator=generator, device=device).tolist()
    total = sum(numbers)
    turns = rotations(total, generator).tolist()
    body = torch.zeros(grid, dtype=torch.bool, device=device)
    for i, (draw, turn) in enumerate(zip(_uniform(total, 6, generator), turns, strict=True)):
        kind: Solid = "sphere" if i >= numbers[0] + numbers[1] else "cuboid"
        radii = [n / 2 * (0.1 + 0.4 * value) for value in draw[:3]]
        if i < numbers[0] or kind == "sphere":
            radii = [radii[0]] * 3
        centre = _inside((0.5, 0.5, 0.5) if i == 0 else draw[3:], grid, unit)
        box, share = solid(
            kind, grid, unit, centre=centre, radii=_triple(radii), rotation=turn, hard=True, device=device
        )
        body[box] |= share > 0
    body = _close(body, closing)
    inner = torch.zeros_like(body)
    inner[1:-1, 1:-1, 1:-1] = body[1:-1, 1:-1, 1:-1]
    resized = torch.nn.functional.interpolate(inner[None, None].float(), size=edges, mode="trilinear")[0, 0] > 0.5
    return _close(resized, closing)


def blob_source(
    shape: Shape,
    voxel_size: Triple,
    *,
    generator: torch.Generator,
    edge: Range = (12.0, 24.0),
    positive: Range = (0.4, 1.2),
    negative: Range = (0.2, 0.3),
) -> tuple[Volume, Mask]:
    """One blob as iQSM adds to half of its training patches: a haemorrhage or, with even odds, a calcification.

    Args:
        shape: Grid.
        voxel_size: [mm].
        generator: Decides the device.
        edge: Least and greatest edge of the blob's box [mm].
        positive: Range of a haemorrhage's chi [ppm].
        negative: Range of a calcification's -chi [ppm].

    Returns:
        chi [ppm] to add, shape (x, y, z), binary as in the paper, and the blob.

    Raises:
        InputError: The grid does not hold the greatest box and two voxels on each side.

    References:
        Gao et al. 2022, iQSM, doi:10.1016/j.neuroimage.2022.119410.
    """
    _check_range("blob's edges", edge)
    most = [max(round(edge[1] / d), 2) for d in voxel_size]
    if any(m + 4 > n for m, n in zip(most, shape, strict=True)):
        raise InputError(f"the grid is {tuple(shape)}, too small for blobs of {edge[1]:g} mm and 2 voxels around")
    device = generator.device
    length, sign, value, *where = _uniform(1, 6, generator)[0]
    wanted = edge[0] + length * (edge[1] - edge[0])
    x, y, z = (max(round(wanted / d), 2) for d in voxel_size)
    low, high = positive if sign < 0.5 else (-negative[0], -negative[1])
    first = [2 + int(draw * (n - m - 3)) for draw, n, m in zip(where, shape, (x, y, z), strict=True)]
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    box = tuple(slice(a, a + m) for a, m in zip(first, (x, y, z), strict=True))
    mask[box] = blob((x, y, z), generator=generator)
    return mask * (low + value * (high - low)), mask


def simple_shapes(
    shape: Shape,
    *,
    generator: torch.Generator,
    cuboids: int = 50,
    spheres: int = 50,
    spread: float = 1.0,
    size: Range = (0.01, 0.5),
    hard: bool = True,
) -> Volume:
    """Cuboids along the axes and spheres of random chi, the training maps of DeepQSM.

    Its authors' generator is known in the form of a later forward-model package, whose ranges these are: edges
    (diameters) shrink from the full range at the first cuboid (sphere) to half of it at the last, values are
    N(0, spread), and a later shape covers an earlier one. There, shapes are cut at the grid's end, as here.

    Args:
        shape: Grid.
        generator: Decides the device.
        cuboids: Number of cuboids.
        spheres: Number of spheres.
        spread: Standard deviation of chi [ppm].
        size: Least and greatest edge or diameter, as a share of the grid's shortest side.
        hard: No partial volume.

    Returns:
        chi [ppm], shape (x, y, z).

    References:
        Bollmann et al. 2019, DeepQSM, doi:10.1016/j.neuroimage.2019.03.060.
    """
    _check_range("sizes", size)
    device = generator.device
    unit, result = (1.0, 1.0, 1.0), torch.zeros(shape, device=device)
    total = cuboids + spheres
    values = (spread * torch.randn(total, generator=generator, device=device)).tolist()
    for i, (value, draw) in enumerate(zip(values, _uniform(total, 6, generator), strict=True)):
        kind: Solid = "cuboid" if i < cuboids else "sphere"
        done = i / cuboids if i < cuboids else (i - cuboids) / spheres
        longest = min(shape) / (1 + done)
        radii = _radii(kind, draw[:3], (longest * size[0] / 2, longest * size[1] / 2))
        centre = _inside(draw[3:], shape, unit)
        box, share = solid(kind, shape, unit, centre=centre, radii=radii, hard=hard, device=device)
        result[box] = (1 - share) * result[box] + share * value
    return result


def _close(body: Mask, radius: int) -> Mask:
    """Fill what a ball of `radius` voxels cannot reach from outside."""
    padded = torch.nn.functional.pad(body, [radius] * 6)
    grown = _grow(padded, radius)
    closed = ~_grow(~grown, radius)
    inner = slice(radius, -radius)
    return closed[inner, inner, inner]


def _grow(body: Mask, radius: int) -> Mask:
    """Voxels within `radius` voxels of a body, which goes around at the grid's ends."""
    distance = [
        along_axis(torch.fft.fftfreq(n, d=1 / n, device=body.device).square(), axis)
        for axis, n in enumerate(body.shape)
    ]
    ball = (distance[0] + distance[1] + distance[2] <= radius**2).float()
    met = torch.fft.irfftn(torch.fft.rfftn(body.float()) * torch.fft.rfftn(ball), s=body.shape)
    return met > 0.5


def _uniform(count: int, each: int, generator: torch.Generator) -> list[list[float]]:
    """Numbers from [0, 1) in one go, so that a GPU is asked once."""
    return torch.rand(count, each, generator=generator, device=generator.device).tolist()


def _radii(kind: Solid, draw: Sequence[float], bounds: Range) -> Triple:
    a, b, c = (bounds[0] + value * (bounds[1] - bounds[0]) for value in draw)
    return {"sphere": (a, a, a), "cylinder": (a, a, c)}.get(kind, (a, b, c))


def _inside(draw: Sequence[float], shape: Sequence[int], voxel_size: Sequence[float]) -> Triple:
    """A place within the grid's voxels [mm]."""
    return _triple((value * n - 0.5) * d for value, n, d in zip(draw, shape, voxel_size, strict=True))


def _triple(values: Iterable[float]) -> Triple:
    x, y, z = values
    return x, y, z


def _check_range(what: str, bounds: Range) -> None:
    if not 0 < bounds[0] <= bounds[1]:
        raise InputError(f"the {what} go from {bounds[0]:g} to {bounds[1]:g}, needed a range above 0")
