"""A head from a label map: susceptibility, magnitude and decay of a person on any grid.

The same function makes a whole head for a benchmark and, on a small grid anywhere in the brain, what one training
sample is made of; on a CPU or a GPU, wherever the label map lies.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from chimap.arrays import Shape, Triple
from chimap.simulation.head import Head, blocks, check_grid, rotation_matrix, surrounding_grid
from chimap.simulation.labels import LabelMap
from chimap.simulation.smooth_noise import smooth_noise
from chimap.simulation.tissues import BRAIN_LABELS, NAMES, TISSUES
from chimap.simulation.vessels import grown_veins, vein_share

LABELS = 64
"""Length of a table of values; labels are below."""
OCTAVES = ((20.0, 0.55), (8.0, 0.48), (3.5, 0.52), (1.7, 0.44))
"""Grain [mm] and weight of the variation within tissues; the squared weights add up to 1."""


def literature_values(generator: torch.Generator, *, spread: float = 1.0) -> Tensor:
    """Values of every tissue, drawn around those of the literature.

    The magnitude is that of a spoiled gradient echo with a repetition time of 25 to 60 ms and a flip angle of 5 to 25
    degrees, so fluid is brighter or darker than white matter.

    Args:
        generator: On a CPU.
        spread: 0 for the values of `tissues.TISSUES`; at 1, chi has an SD of 15 % and at least 0.005 ppm, m0 of 5 %,
            R2* of 15 %, and the variation within a tissue of about a third.

    Returns:
        chi [ppm], m0, R2* [1/s] at 3 T, SD of chi within the tissue [ppm], 1 in the brain: shape (5, LABELS).
    """
    table = torch.zeros(5, LABELS)
    draws = spread * torch.randn(4, LABELS, generator=generator).clamp(-2.5, 2.5)
    long, steep = torch.rand(2, generator=generator).tolist()
    repetition, flip = 0.025 + 0.035 * long, math.radians(5 + 20 * steep)
    white = steady_state(TISSUES["white matter"].t1, repetition, flip)
    for name, tissue in TISSUES.items():
        label = tissue.label
        chi, m0, r2star, variation = draws[:, label].tolist()
        width = 0.0 if name == "air" else max((0.15 if tissue.brain else 0.1) * abs(tissue.chi), 0.005)
        table[:, label] = torch.tensor(
            [
                tissue.chi + width * chi,
                tissue.m0 * (1 + 0.05 * m0) * steady_state(tissue.t1, repetition, flip) / white,
                tissue.r2star * math.exp(0.15 * r2star),
                tissue.variation * math.exp(0.3 * variation),
                float(tissue.brain),
            ]
        )
    return table


def steady_state(t1: float, repetition: float, flip: float) -> float:
    """Magnitude of a spoiled gradient echo over m0, with T1 and repetition time [s] and flip angle [rad].

    References:
        Ernst and Anderson 1966, doi:10.1063/1.1719961.
    """
    left = math.exp(-repetition / t1)
    return math.sin(flip) * (1 - left) / (1 - math.cos(flip) * left)


def hybrid_values(generator: torch.Generator) -> Tensor:
    """Values of every tissue with no regard to the literature's chi: what keeps a network from learning anatomy.

    In the brain each tissue's chi is Gaussian around a random mean, a Gaussian mixture over the brain, in one of very
    different widths. What lies outside keeps `literature_values`, so that background fields stay as strong as they are.

    Args:
        generator: On a CPU.

    Returns:
        As `literature_values`.

    References:
        NeXtQSM's hybrid data: Cognolato et al. 2023, doi:10.1016/j.media.2022.102700, after Billot et al. 2020,
        arXiv:2003.01995. The paper gives no widths in ppm; 0.03 to 0.3 ppm are ours.
    """
    table = literature_values(generator)
    width = 0.03 * 10 ** float(torch.rand(1, generator=generator))
    means = width * torch.randn(LABELS, generator=generator)
    deviations = width * (0.05 + 0.3 * torch.rand(LABELS, generator=generator))
    brain = table[4] > 0
    table[0] = torch.where(brain, means, table[0])
    table[3] = torch.where(brain, deviations, table[3])
    table[1] *= torch.where(brain, 0.6 + 0.6 * torch.rand(LABELS, generator=generator), 1.0)
    table[2] *= torch.where(brain, 0.5 + 1.5 * torch.rand(LABELS, generator=generator), 1.0)
    return table


def label_head(
    label_map: LabelMap,
    shape: Shape = (176, 208, 176),
    voxel_size: Triple = (1.0, 1.0, 1.0),
    *,
    grid_rotation: Triple = (0.0, 0.0, 0.0),
    head_rotation: Triple = (0.0, 0.0, 0.0),
    head_shift: Triple = (0.0, 0.0, 0.0),
    head_scale: float | Triple = 1.0,
    bend: float = 1.0,
    values: Tensor | None = None,
    veins: bool = True,
    seed: int = 0,
) -> Head:
    """Make a head of a label map on a grid.

    Rotations are as in `built_in_head`: angles about the scanner's x, then y, then z. The grid's middle is the
    isocentre; without a shift, the middle of the brain lies there. Tissues mix at their borders, voxels much longer
    than those of the label map are averages of finer ones, and chi varies within a tissue over 2 to 20 mm. Inside the
    brain mask chi is that of the brain alone: bone that shares a voxel with it counts as outside.

    Args:
        label_map: Its device is the result's.
        shape: Grid.
        voxel_size: [mm].
        grid_rotation: Of the voxel axes [rad].
        head_rotation: Of the head [rad].
        head_shift: Of the head in the scanner [mm].
        head_scale: Size, one factor or one for each of the head's axes.
        bend: SD [mm] of a smooth displacement of 25 mm grain.
        values: As from `literature_values`, which is drawn from if None.
        veins: Let veins grow.
        seed: Of values, bend, veins and texture.

    Raises:
        InputError: A grid or voxel size that cannot be used.
    """
    scale: Triple = head_scale if isinstance(head_scale, tuple) else (head_scale, head_scale, head_scale)
    for factor in scale:
        check_grid(shape, voxel_size, factor)
    device = label_map.classes.device
    host = torch.Generator().manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    table = literature_values(host) if values is None else values
    turn = rotation_matrix(grid_rotation)
    warp = bend * smooth_noise((14, 14, 14), (25.0, 25.0, 25.0), 25.0, generator=host, channels=3)
    place = _Placement(label_map, turn, rotation_matrix(head_rotation), head_shift, scale, warp)

    factors = [max(math.floor(size / limit), 1) for size, limit in zip(voxel_size, (1.6, 1.6, 1.6), strict=True)]
    fine_shape = [n * factor for n, factor in zip(shape, factors, strict=True)]
    fine_size = [size / factor for size, factor in zip(voxel_size, factors, strict=True)]
    volumes, labels = _sampled(label_map.classes, place.nodes(fine_shape, fine_size), fine_shape, table)
    if max(factors) > 1:
        volumes = torch.stack([blocks(volume, factors).mean(dim=-1) for volume in volumes])
        labels = blocks(labels, factors).mode(dim=-1).values
    chi_of_brain, chi_of_others, brain, m0, decay = volumes
    r2star = decay / m0.clamp_min(1e-6)  # `decay` is m0 R2*: the mean is over what gives signal

    texture = torch.zeros_like(m0)
    for grain, weight in OCTAVES:
        texture += weight * smooth_noise(shape, voxel_size, grain, generator=generator)
    # iron and myelin go with R2*, water content against it
    r2star *= 1 + 0.08 * texture.clamp(-3, 3)
    m0 *= 1 - 0.025 * texture.clamp(-3, 3)
    mask = (brain > 0.5) & (_looked_up(table[4], labels) > 0)
    chi = torch.where(mask, chi_of_brain / brain.clamp_min(0.5), chi_of_brain + chi_of_others)
    chi += _looked_up(table[3], labels) * texture
    if veins:
        vein = grown_veins(labels, mask, voxel_size, generator=generator)
        share = vein_share(vein.points / torch.tensor(voxel_size, device=device), vein.radii, shape, voxel_size) * mask
        for volume, row in ((chi, 0), (m0, 1), (r2star, 2)):
            volume += share * (table[row, TISSUES["blood"].label] - volume)
        labels = torch.where(share > 0.5, TISSUES["blood"].label, labels)

    around = surrounding_grid(shape, voxel_size)
    points = [2 if step > 1 else 1 for step in around.step]
    far_shape = [n * k for n, k in zip(around.shape, points, strict=True)]
    far_size = [size / k for size, k in zip(around.voxel_size, points, strict=True)]
    far = _nearest(label_map.classes, _between(place.nodes(far_shape, far_size, around.middle), far_shape))
    coarse = [blocks(_looked_up(row, far), points).mean(dim=-1) for row in (table[0], table[0] * table[4])]
    affine = np.eye(4)
    affine[:3, :3] = turn.numpy() * np.asarray(voxel_size)
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return Head(
        chi=chi,
        m0=m0,
        r2star=r2star,
        labels=labels,
        mask=mask,
        voxel_size=(float(voxel_size[0]), float(voxel_size[1]), float(voxel_size[2])),
        affine=affine,
        surroundings=coarse[0],
        brain_around=coarse[1],
        step=around.step,
        margin=around.margin,
        label_names=dict(NAMES),
    )


def brain_share(
    label_map: LabelMap,
    extent: Triple,
    *,
    grid_rotation: Triple,
    head_rotation: Triple,
    head_shift: Triple,
    head_scale: Triple,
) -> float:
    """About which share of a box the brain fills, from a few points and without a bend.

    Args:
        label_map: As the other arguments, that of `label_head`.
        extent: Of the box [mm].
    """
    turn, rotation, warp = rotation_matrix(grid_rotation), rotation_matrix(head_rotation), torch.zeros(3, 2, 2, 2)
    place = _Placement(label_map, turn, rotation, head_shift, head_scale, warp)
    points = (12, 12, 12)
    nodes = place.nodes(points, [length / 12 for length in extent])
    labels = _nearest(label_map.classes, _between(nodes, points))
    return float(_looked_up(_IN_BRAIN, labels).mean())


def brain_box(
    label_map: LabelMap, *, grid_rotation: Triple, head_rotation: Triple, head_shift: Triple, head_scale: Triple
) -> Tensor:
    """Where the whole brain lies along a grid's axes, without a bend.

    Args:
        label_map: As the other arguments, that of `label_head`.

    Returns:
        Middle and half size of its box [mm] from the grid's middle, (2, 3), on the CPU.
    """
    every = 4
    brain = _looked_up(_IN_BRAIN, label_map.classes[::every, ::every, ::every]).nonzero().cpu() * every
    head = brain * torch.tensor(label_map.voxel_size) - torch.tensor(label_map.middle)
    scanner = head * torch.tensor(head_scale) @ rotation_matrix(head_rotation).T + torch.tensor(head_shift)
    grid = scanner @ rotation_matrix(grid_rotation)
    low, high = grid.amin(dim=0), grid.amax(dim=0)
    return torch.stack([low + high, high - low]) / 2


_IN_BRAIN = torch.zeros(LABELS)
_IN_BRAIN[list(BRAIN_LABELS)] = 1.0


class _Placement:
    """Where the voxels of a grid lie in a label map."""

    def __init__(self, label_map: LabelMap, turn: Tensor, rotation: Tensor, shift: Triple, scale: Triple, warp: Tensor):
        self.device = label_map.classes.device
        self.size = torch.tensor(label_map.voxel_size)
        self.middle = torch.tensor(label_map.middle)
        self.turn, self.rotation = turn, rotation
        self.shift, self.scale, self.warp = torch.tensor(shift), torch.tensor(scale), warp

    def nodes(self, shape: Sequence[int], size: Sequence[float], middle: Sequence[float] = (0.0, 0.0, 0.0)) -> Tensor:
        """Voxel indices (3, nx, ny, nz) in the label map of points 8 mm apart from the first voxel to the last.

        The bend is smooth, so they tell those of all voxels; see `_between`.
        """
        nodes = [max(round(n * d / 8) + 1, 2) for n, d in zip(shape, size, strict=True)]
        axes = [
            torch.linspace(-(n - 1) / 2 * d + m, (n - 1) / 2 * d + m, count)
            for n, d, m, count in zip(shape, size, middle, nodes, strict=True)
        ]
        scanner = self.turn @ torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
        head = (self.rotation.T @ (scanner - self.shift[:, None])) / self.scale[:, None]
        # the lattice of the bend spans 325 mm about the middle of the brain
        where = (head / 162.5).flip(0).T.reshape(1, 1, 1, -1, 3)
        head += grid_sample(self.warp[None], where, padding_mode="border", align_corners=True).reshape(3, -1)
        return ((head + self.middle[:, None]) / self.size[:, None]).reshape(3, *nodes).to(self.device)


def _between(nodes: Tensor, shape: Sequence[int]) -> Tensor:
    """What `nodes` tell (n, nx, ny, nz) at every voxel: (n, x, y, z)."""
    return interpolate(nodes[None], size=list(shape), mode="trilinear", align_corners=True)[0]


def _sampled(classes: Tensor, nodes: Tensor, shape: Sequence[int], table: Tensor) -> tuple[Tensor, Tensor]:
    """chi of the brain and of the rest, share of brain, m0 and m0 R2* (5, x, y, z), tissues mixed at their borders;
    and the label of each voxel (x, y, z)."""
    labels = _nearest(classes, _between(nodes, shape))
    box = []
    for n, places in zip(classes.shape, nodes, strict=True):
        low = min(max(int(places.min().floor()), 0), n - 2)
        box.append(slice(low, max(min(int(places.max().ceil()) + 1, n), low + 2)))
    part = classes[tuple(box)]
    chi, m0, r2star, _, brain = table
    source = torch.stack([_looked_up(row, part) for row in (chi * brain, chi * (1 - brain), brain, m0, m0 * r2star)])
    # grid_sample counts axes from the last, from -1 to 1
    low = torch.tensor([one.start for one in box], device=nodes.device).reshape(3, 1, 1, 1)
    scale = 2 / (torch.tensor(part.shape, device=nodes.device).reshape(3, 1, 1, 1) - 1)
    where = _between(((nodes - low) * scale - 1).flip(0), shape).permute(1, 2, 3, 0)
    volumes = grid_sample(source[None], where[None], mode="bilinear", padding_mode="border", align_corners=True)[0]
    return volumes, labels


def _looked_up(row: Tensor, labels: Tensor) -> Tensor:
    return row.to(labels.device).index_select(0, labels.flatten().int()).reshape(labels.shape)


def _nearest(classes: Tensor, at: Tensor) -> Tensor:
    """Labels at voxel indices (3, x, y, z), the outermost ones beyond the map: air, and below it the neck."""
    flat = torch.zeros(at.shape[1:], dtype=torch.int32, device=at.device)
    for n, places in zip(classes.shape, at, strict=True):
        flat = flat * n + places.round().clamp_(0, n - 1).int()
    return classes.flatten()[flat]
