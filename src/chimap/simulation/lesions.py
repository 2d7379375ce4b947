"""Lesions put into a head that exists: haemorrhages, calcifications and microbleeds.

Draws are made in the scanner's mm, so a seed gives the same lesions at the same places for every voxel size
and slab, as far as the brain on that grid has room for them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from chimap.arrays import Mask, Triple, Volume
from chimap.errors import InputError
from chimap.linalg import bounding_box
from chimap.physics.random_sources import blob
from chimap.physics.solids import Box, Range, random_rotation, solid
from chimap.simulation.head import Head
from chimap.simulation.tissues import TISSUES

Kind: TypeAlias = Literal["haemorrhage", "calcification", "microbleed"]

PLACES = (
    *("white matter", "internal capsule", "cerebellar white matter"),
    *("caudate", "putamen", "pallidum", "thalamus", "accumbens"),
    *("red nucleus", "substantia nigra", "subthalamic nucleus", "dentate nucleus"),
)
"""Tissues that may hold the middle of a lesion."""
GAP = 3.0
"""Least distance [mm] between a lesion whose place is drawn and the rim of the brain mask."""
RIM = 0.2
"""Thickness of a haemorrhage's rim as a share of the way from its surface to its middle."""
LATTICE = 24
"""Voxels along the edge of the box in which a haemorrhage's outline is drawn."""
REACH = 120.0
"""Half the edge [mm] of the cube around the brain from which places are drawn."""
TRIES = 20000
"""Places drawn for each lesion; most are outside the brain."""


@dataclass(frozen=True)
class Lesion:
    """One lesion.

    Attributes:
        kind: Decides its outline, its signal and its label.
        chi: Mean susceptibility relative to water [ppm]; it takes the place of the tissue's.
        radius: Of a sphere of the same volume [mm].
        centre: In scanner coordinates [mm] (right, front, up); None to draw a place.
    """

    kind: Kind
    chi: float
    radius: float
    centre: Triple | None = None


@dataclass(frozen=True)
class _Name:
    """What a name on the command line stands for: how many lesions, and the ranges of chi [ppm], radius [mm]."""

    kind: Kind
    chi: Range
    radius: Range
    count: tuple[int, int] = (1, 1)


# Haemorrhage: fully deoxygenated blood has about 1.4 ppm (QSMnet+, doi:10.1016/j.neuroimage.2020.116619).
# Calcification: up to that of the 2019 challenge (Marques et al. 2021, doi:10.1002/mrm.28716). Microbleeds: up to
# 5 mm across mostly (Greenberg et al. 2009, doi:10.1016/S1474-4422(09)70013-4).
_NAMES: dict[str, _Name] = {
    "haemorrhage": _Name("haemorrhage", (0.4, 1.4), (4.0, 12.0)),
    "calcification": _Name("calcification", (-3.3, -0.3), (2.0, 6.0)),
    "microbleed": _Name("microbleed", (0.3, 1.0), (0.8, 2.5)),
    "microbleeds": _Name("microbleed", (0.3, 1.0), (0.8, 2.5), (5, 20)),
}


def draw_lesions(kinds: Sequence[str], generator: torch.Generator) -> list[Lesion]:
    """Draw value and size of lesions: "haemorrhage", "calcification", "microbleed", or 5 to 20 "microbleeds".

    Raises:
        InputError: Another name.
    """
    return [lesion for kind in kinds for lesion in _draw(_known(kind, kind), generator)]


def parse_lesions(texts: Sequence[str], generator: torch.Generator) -> list[Lesion]:
    """Read lesions as written on a command line: name, name:chi or name:chi:radius, in ppm and mm.

    "calcification:-3.3:4" has given values, "microbleeds::1.5" a given radius; what is not given is drawn.

    Raises:
        InputError: A text that cannot be read.
    """
    lesions = []
    for text in texts:
        name, *numbers = text.split(":")
        known = _known(name.strip(), text)
        if len(numbers) > 2:
            raise InputError(f"lesion '{text}' has {len(numbers)} numbers, needed name:chi:radius at most")
        chi, radius = (_number(number, text) for number in [*numbers, "", ""][:2])
        if radius is not None and not 0.3 <= radius <= 30:
            raise InputError(f"lesion '{text}' has a radius of {radius:g} mm, needed 0.3 to 30 mm")
        if chi is not None and not 0 < abs(chi) <= 20:
            raise InputError(f"lesion '{text}' has {chi:g} ppm, needed up to 20 ppm on either side of 0")
        for lesion in _draw(known, generator):
            lesions.append(
                Lesion(
                    lesion.kind,
                    lesion.chi if chi is None else chi,
                    lesion.radius if radius is None else radius,
                )
            )
    return lesions


def add_lesions(head: Head, lesions: Sequence[Lesion], generator: torch.Generator) -> Head:
    """Put lesions into a head: its chi, m0, R2* and labels change, its mask does not.

    Places are drawn in white or deep grey matter, so that a lesion lies wholly in the brain mask, 3 mm from its
    rim and on no other lesion; the largest come first. A haemorrhage has an irregular outline and a rim of more
    iron and less signal; calcifications and microbleeds are ellipsoids. A lesion's values are those of its
    tissue in proportion to its |chi|: R2* goes up with iron, so late echoes lose it and the first shows it.

    Args:
        head: Volumes (x, y, z), any voxel size and orientation.
        lesions: A given centre is kept as long as the lesion lies in the mask there.
        generator: Of outlines, directions and places; every lesion takes the same number of draws on any grid.

    Returns:
        The head with lesions; labels are those of `tissues.TISSUES` where a lesion fills over half a voxel.

    Raises:
        InputError: A lesion that fits nowhere, or not at its centre; a head whose labels use a lesion's number.
    """
    if not lesions:
        return head
    names = {TISSUES[lesion.kind].label: lesion.kind for lesion in lesions}
    for label, kind in names.items():
        if head.label_names.get(label, kind) != kind:
            raise InputError(f"the head's label {label} is '{head.label_names[label]}', needed free for a {kind}")
    if not head.mask.any():
        raise InputError("the head's brain mask is empty: no lesion has a place")
    drawn = [(lesion, _body(lesion, generator), _places(head, generator)) for lesion in lesions]
    drawn.sort(key=lambda one: (one[0].centre is None, -one[0].radius))
    depth = _depth(head.mask, head.voxel_size)
    free = head.mask.clone()
    chi, m0, r2star, labels = (volume.clone() for volume in (head.chi, head.m0, head.r2star, head.labels))
    for lesion, body, places in drawn:
        box, shares, texture = _settle(lesion, body, places, head, depth, free)
        share = sum(shares[1:], shares[0])
        chi[box], m0[box], r2star[box] = _painted(lesion, shares, texture, chi[box], m0[box], r2star[box])
        labels[box] = torch.where(share > 0.5, TISSUES[lesion.kind].label, labels[box])
        free[box] &= share == 0
    return replace(head, chi=chi, m0=m0, r2star=r2star, labels=labels, label_names={**head.label_names, **names})


@dataclass(frozen=True)
class _Body:
    """A lesion's outline about its centre.

    Attributes:
        surface: Points of its surface (n, 3), in scanner axes [mm].
        turn: Its columns are the outline's own axes, in scanner axes.
        radii: Of an ellipsoid [mm]; None where there is an outline.
        outline: Values on a lattice along the own axes, above `level` inside; None for an ellipsoid.
        level: Value at the surface.
        middle: Centre of mass in the lattice [its voxels].
        spacing: Of the lattice [mm].
        texture: Noise of unit variance on a lattice around it.
    """

    surface: Tensor
    turn: Tensor
    radii: Triple | None = None
    outline: Tensor | None = None
    level: float = 0.0
    middle: Tensor | None = None
    spacing: float = 1.0
    texture: Tensor | None = None


def _known(name: str, text: str) -> _Name:
    if name not in _NAMES:
        raise InputError(f"lesion '{text}' is unknown, needed one of {', '.join(_NAMES)}")
    return _NAMES[name]


def _number(text: str, lesion: str) -> float | None:
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        raise InputError(f"lesion '{lesion}' cannot be read, needed name:chi:radius in ppm and mm") from None


def _draw(name: _Name, generator: torch.Generator) -> list[Lesion]:
    device = generator.device
    count = int(torch.randint(name.count[0], name.count[1] + 1, (1,), generator=generator, device=device))
    draws = torch.rand(count, 2, generator=generator, device=device).tolist()
    return [
        Lesion(
            name.kind,
            name.chi[0] + value * (name.chi[1] - name.chi[0]),
            name.radius[0] + size * (name.radius[1] - name.radius[0]),
        )
        for value, size in draws
    ]


def _body(lesion: Lesion, generator: torch.Generator) -> _Body:
    turn = random_rotation(generator)
    return _irregular(lesion, turn, generator) if lesion.kind == "haemorrhage" else _ellipsoid(lesion, turn, generator)


def _ellipsoid(lesion: Lesion, turn: Tensor, generator: torch.Generator) -> _Body:
    stretch = 0.25 if lesion.kind == "calcification" else 0.1
    factors = stretch * torch.randn(3, generator=generator, device=generator.device)
    radii = lesion.radius * torch.exp(factors - factors.mean())
    # points spread evenly over a sphere along a spiral
    index = torch.arange(200, device=generator.device) + 0.5
    height, angle = 1 - index / 100, math.pi * (1 + math.sqrt(5)) * index
    around = torch.sqrt(1 - height**2)
    points = torch.stack([around * torch.cos(angle), around * torch.sin(angle), height], dim=1)
    x, y, z = radii.tolist()
    return _Body((points * radii) @ turn.T, turn, radii=(x, y, z))


def _irregular(lesion: Lesion, turn: Tensor, generator: torch.Generator) -> _Body:
    body = torch.nn.functional.pad(blob(LATTICE, generator=generator, each=(1, 2)).float(), [4] * 6)[None]
    for _ in range(3):
        body = torch.nn.functional.avg_pool3d(body, 3, stride=1, padding=1)
    level = float(body.max()) / 2
    fine = 3  # volume and surface are those of the interpolated values
    edge = (body.shape[-1] - 1) * fine + 1
    inside = torch.nn.functional.interpolate(body[None], size=edge, mode="trilinear", align_corners=True) > level
    deep = -torch.nn.functional.max_pool3d(-inside.float(), 3, stride=1, padding=1) > 0
    points = torch.nonzero(inside[0, 0]) / fine
    middle = points.mean(dim=0)
    spacing = lesion.radius / (3 / (4 * math.pi) * len(points) / fine**3) ** (1 / 3)
    surface = torch.nonzero((inside & ~deep)[0, 0]) / fine
    surface = surface[:: math.ceil(len(surface) / 1000)]
    return _Body(
        (surface - middle) @ turn.T * spacing,
        turn,
        outline=body[0],
        level=level,
        middle=middle,
        spacing=spacing,
        texture=torch.randn(8, 8, 8, generator=generator, device=generator.device),
    )


def _places(head: Head, generator: torch.Generator) -> Tensor:
    """Places (n, 3) around the brain in scanner coordinates [mm]."""
    matrix = torch.as_tensor(head.affine, dtype=torch.float32, device=generator.device)
    middle = torch.nonzero(head.mask).float().mean(dim=0).to(matrix)
    middle = matrix[:3, :3] @ middle + matrix[:3, 3]
    # another voxel size moves the middle by less than a voxel; rounded, it mostly does not move at all
    middle = (middle / 20).round() * 20
    return middle + REACH * (2 * torch.rand(TRIES, 3, generator=generator, device=generator.device) - 1)


def _depth(mask: Mask, voxel_size: Triple) -> Volume:
    """Distance [mm] to the nearest voxel outside the mask; beyond the grid is outside."""
    box = bounding_box(mask)
    padded = np.pad(mask[box].cpu().numpy(), 1)
    inner = (slice(1, -1),) * 3
    depth = torch.zeros(mask.shape, device=mask.device)
    depth[box] = torch.from_numpy(np.asarray(distance_transform_edt(padded, sampling=voxel_size))[inner]).to(depth)
    return depth


def _settle(
    lesion: Lesion, body: _Body, places: Tensor, head: Head, depth: Volume, free: Mask
) -> tuple[Box, list[Tensor], Tensor | None]:
    """Find a lesion's place: its box there, the shares of its core and rim in it, and its texture.

    Args:
        places: Where it may go, in scanner coordinates (n, 3) [mm].
        depth: Distance to the mask's rim [mm].
        free: Mask without other lesions.
    """
    size = f"{lesion.kind} of {lesion.radius:.1f} mm radius"
    to_voxels = torch.as_tensor(np.linalg.inv(head.affine), dtype=torch.float32, device=depth.device)
    surface = body.surface.to(depth.device) @ to_voxels[:3, :3].T
    if lesion.centre is not None:
        centre = torch.tensor([lesion.centre], device=depth.device) @ to_voxels[:3, :3].T + to_voxels[:3, 3]
        if _fits(surface, centre, head.mask)[0]:
            box, shares, texture = _shares(lesion, body, centre[0], head)
            if head.mask[box][sum(shares[1:], shares[0]) > 0].all():
                return box, shares, texture
        raise InputError(f"the {size} does not lie wholly in the brain mask at {lesion.centre} mm")

    numbers = [label for label, name in head.label_names.items() if name in PLACES]
    wanted = torch.isin(head.labels, torch.tensor(numbers, dtype=head.labels.dtype, device=depth.device))
    clear = free & (depth >= GAP + max(head.voxel_size))
    wanted &= clear
    centres = places.to(depth.device) @ to_voxels[:3, :3].T + to_voxels[:3, 3]
    fitting = centres[_at(wanted, centres)]
    if len(fitting) < TRIES // 100:  # little room: any voxel will do, those near the first place first
        voxels = torch.nonzero(wanted).float()
        away = ((voxels - centres[0]) * torch.tensor(head.voxel_size, device=depth.device)).norm(dim=1)
        fitting = torch.cat([fitting, voxels[away.argsort()]])
    for some in fitting.split(64):
        for centre in some[_fits(surface, some, clear)]:
            box, shares, texture = _shares(lesion, body, centre, head)
            if free[box][sum(shares[1:], shares[0]) > 0].all():
                return box, shares, texture
    raise InputError(f"the brain has no place for a {size}, in white or deep grey matter and {GAP:g} mm from its rim")


def _at(mask: Mask, voxels: Tensor) -> Tensor:
    """Values of a mask at places (*shape, 3) [voxels], False beyond the grid."""
    nearest = voxels.round().long()
    limit = torch.tensor(mask.shape, device=mask.device)
    inside = ((nearest >= 0) & (nearest < limit)).all(dim=-1)
    x, y, z = nearest.clamp_min(0).minimum(limit - 1).unbind(dim=-1)
    return inside & mask[x, y, z]


def _fits(surface: Tensor, centres: Tensor, mask: Mask) -> Tensor:
    """Whether a surface (n, 3) about centres (m, 3) [voxels] lies in a mask, shape (m,)."""
    return _at(mask, centres[:, None] + surface).all(dim=1)


def _shares(lesion: Lesion, body: _Body, centre: Tensor, head: Head) -> tuple[Box, list[Tensor], Tensor | None]:
    """Box of a lesion about a centre [voxels], shares of its core and rim (an ellipsoid has none), texture."""
    to_scanner = torch.as_tensor(head.affine[:3, :3], dtype=torch.float32, device=centre.device)
    turn = body.turn.to(centre)
    if body.radii is not None:
        unit = to_scanner / torch.tensor(head.voxel_size, device=centre.device)
        x, y, z = (c * d for c, d in zip(centre.tolist(), head.voxel_size, strict=True))
        rotation = (unit.T @ turn).tolist()
        box, share = solid(
            "ellipsoid",
            head.shape,
            head.voxel_size,
            centre=(x, y, z),
            radii=body.radii,
            rotation=rotation,
            device=centre.device,
        )
        return box, [share], None

    assert body.outline is not None and body.middle is not None and body.texture is not None
    surface = body.surface.to(centre) @ torch.linalg.inv(to_scanner).T
    first = (centre + surface.amin(dim=0)).floor().long().tolist()
    last = (centre + surface.amax(dim=0)).ceil().long().tolist()
    low = [max(a, 0) for a in first]
    counts = [min(b + 1, n) - a for a, b, n in zip(low, last, head.shape, strict=True)]
    parts = [max(3, math.ceil(8 * size / lesion.radius)) for size in head.voxel_size]

    def offsets(numbers: Sequence[int]) -> Tensor:
        """Places in voxels split into parts, along the body's own axes from its middle [mm], (..., 3)."""
        axes = [
            torch.arange(n * k, device=centre.device) / k + (a - 0.5 + 0.5 / k - c)
            for n, k, a, c in zip(counts, numbers, low, centre.tolist(), strict=True)
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) @ (to_scanner.T @ turn)

    places = offsets(parts) / body.spacing
    middle = body.middle.to(centre)
    shares = []
    for scale in (1.0, 1.0 - RIM):
        inside = _interpolate(body.outline.to(centre), places / scale + middle) > body.level
        x, y, z = counts
        split = inside.float().reshape(x, parts[0], y, parts[1], z, parts[2])
        shares.append(split.mean(dim=(1, 3, 5)))
    whole, core = shares[0], torch.minimum(*shares)
    # the texture's lattice is wide enough for an outline 2.5 times as long as a ball
    texture = _interpolate(body.texture.to(centre), (offsets((1, 1, 1)) / (2.5 * lesion.radius) + 1) * 3.5)
    x, y, z = (slice(a, a + n) for a, n in zip(low, counts, strict=True))
    return (x, y, z), [core, whole - core], texture


def _interpolate(values: Tensor, places: Tensor) -> Tensor:
    """Values of a cubic lattice at places (..., 3) [its voxels], towards 0 beyond it."""
    scaled = (places * (2 / (values.shape[-1] - 1)) - 1).flip(-1)  # grid_sample counts axes from the last
    found = torch.nn.functional.grid_sample(values[None, None], scaled[None], align_corners=True)
    return found[0, 0]


def _painted(
    lesion: Lesion, shares: list[Tensor], texture: Tensor | None, chi: Volume, m0: Volume, r2star: Volume
) -> tuple[Volume, Volume, Volume]:
    """chi, m0 and R2* of the voxels that a lesion covers by `shares`."""
    tissue, host = TISSUES[lesion.kind], TISSUES["white matter"]
    amount = abs(lesion.chi / tissue.chi)
    signal = host.m0 + min(amount, 1.0) * (tissue.m0 - host.m0)
    decay = host.r2star + amount * (tissue.r2star - host.r2star)
    # factors of iron, signal and decay, in the core and in the rim of a haemorrhage
    layers = [(1.0, 1.0, 1.0)] if len(shares) == 1 else [(0.8, 1.0, 1.0), (1.2, 0.85, 1.5)]
    share = sum(shares[1:], shares[0])
    iron = sum((part * layer[0] for part, layer in zip(shares, layers, strict=True)), torch.zeros_like(share))
    if texture is not None:
        iron = iron * (1 + abs(tissue.variation / tissue.chi) * texture)
    iron = iron * (share.sum() / iron.sum())  # the mean over the lesion is its chi
    new_m0, new_decay = (1 - share) * m0, (1 - share) * m0 * r2star
    for part, (_, less, more) in zip(shares, layers, strict=True):
        new_m0 = new_m0 + part * (signal * less)
        new_decay = new_decay + part * (signal * less * decay * more)  # R2* is a mean over what gives signal
    return (1 - share) * chi + lesion.chi * iron, new_m0, new_decay / new_m0.clamp_min(1e-6)
