"""The built-in head: susceptibility, magnitude and decay of a whole head, without any file of the user's.

Brain from the MNI152 maps that nilearn carries; skull, scalp, face, air, deep grey nuclei and veins from
shapes. It is a phantom for testing and teaching: every seed bends the same head a little differently.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chimap.arrays import Mask, Shape, Triple, Volume
from chimap.errors import InputError
from chimap.physics.dipole import unit_vector
from chimap.simulation.atlas import Grid, load_atlas
from chimap.simulation.painting import Canvas, Person, paint_head
from chimap.simulation.texture import lattice, texture_lattices
from chimap.simulation.tissues import BRAIN_LABELS, NAMES
from chimap.simulation.vessels import Vein, vein_share, veins

CENTRE = (0.0, -16.0, 9.0)
"""Atlas coordinates [mm] that come to the middle of the grid."""
COARSE = 6.0
"""Wanted voxel size [mm] of what lies around the grid."""
AROUND = 110.0
"""How far [mm] it reaches."""
BEND = 1.8
"""Standard deviation [mm] of the displacement that a seed draws along each axis."""


@dataclass(frozen=True)
class Head:
    """A head on a grid. Volumes (x, y, z).

    Attributes:
        chi: Susceptibility relative to water [ppm], air included.
        m0: Magnitude at TE = 0, 1 for water, 0 in air.
        r2star: Decay rate at 3 T [1/s].
        labels: Tissue that fills most of each voxel; `label_names` tells which.
        mask: Brain: grey and white matter with the CSF in ventricles and sulci.
        voxel_size: [mm].
        affine: Voxel index to scanner coordinates [mm] (right, front, up), B0 along the scanner's z.
        surroundings: chi [ppm] of head and neck on a coarser grid that reaches further, for the field of what
            lies beyond the grid.
        brain_around: chi [ppm] times the share of brain, likewise.
        step: One voxel of `surroundings` is as long as so many of the grid, along each axis.
        margin: The grid begins after so many voxels of `surroundings`.
        label_names: {label: tissue}.
    """

    chi: Volume
    m0: Volume
    r2star: Volume
    labels: Tensor
    mask: Mask
    voxel_size: Triple
    affine: np.ndarray
    surroundings: Tensor
    brain_around: Tensor
    step: Shape
    margin: Shape
    label_names: dict[int, str]

    @property
    def shape(self) -> Shape:
        """Grid (x, y, z)."""
        x, y, z = self.chi.shape
        return x, y, z

    @property
    def b0_direction(self) -> Triple:
        """Unit vector of B0, the scanner's z, in voxel axes."""
        x, y, z = self.affine[2, :3] / np.asarray(self.voxel_size)
        return float(x), float(y), float(z)


def built_in_head(
    shape: Shape = (160, 192, 160),
    voxel_size: Triple = (1.0, 1.0, 1.0),
    *,
    grid_rotation: Triple = (0.0, 0.0, 0.0),
    head_rotation: Triple = (0.0, 0.0, 0.0),
    head_shift: Triple = (0.0, 0.0, 0.0),
    head_scale: float = 0.9,
    seed: int = 0,
) -> Head:
    """Make a head on a grid.

    Rotations are angles about the scanner's x, then y, then z. Alone, `grid_rotation` is an oblique slab over
    a straight head and `head_rotation` a tilted head in a straight slab; both alike are a slab that follows a
    tilted head. The grid's middle is the scanner's isocentre. Voxels beyond 2 mm are averages of finer ones.

    Args:
        shape: Grid.
        voxel_size: [mm].
        grid_rotation: Of the voxel axes [rad].
        head_rotation: Of the head [rad].
        head_shift: Of the head in the scanner [mm].
        head_scale: Size relative to MNI152, which is larger than most heads.
        seed: Another seed bends the anatomy by a few mm and draws other veins, fat, air cells and texture.

    Raises:
        InputError: A grid or voxel size that cannot be used.
    """
    check_grid(shape, voxel_size, head_scale)
    generator = torch.Generator().manual_seed(seed)
    turn = rotation_matrix(grid_rotation)
    place = _Placement(
        rotation_matrix(head_rotation), head_shift, head_scale, lattice(16.0, generator, channels=3, smooth=3)
    )
    atlas = load_atlas()
    person = Person(
        atlas,
        patches=lattice(12.0, generator, channels=3, smooth=1),
        cells=lattice(3.0, generator, smooth=1),
        texture=texture_lattices(generator),
    )
    lines = veins(atlas, generator)

    factors = [math.ceil(size / 2) for size in voxel_size]  # voxels beyond 2 mm are made of finer ones
    fine_shape = [n * factor for n, factor in zip(shape, factors, strict=True)]
    fine_size = [size / factor for size, factor in zip(voxel_size, factors, strict=True)]
    values, labels, brain = _evaluate(person, lines, place, turn, fine_shape, fine_size)
    chi, m0, decay, brain = (blocks(volume, factors).mean(dim=-1) for volume in (*values, brain))
    if max(factors) > 1:
        labels = blocks(labels, factors).mode(dim=-1).values
    r2star = decay / m0.clamp_min(1e-6)  # `decay` is m0 R2*: the mean is over what gives signal
    affine = np.eye(4)
    affine[:3, :3] = turn.numpy() * np.asarray(voxel_size)
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)

    around = surrounding_grid(shape, voxel_size)
    coarse, _, coarse_brain = _evaluate(person, [], place, turn, around.shape, around.voxel_size, around.middle)
    return Head(
        chi=chi,
        m0=m0,
        r2star=r2star,
        labels=labels,
        mask=(brain > 0.5) & torch.isin(labels, torch.tensor(BRAIN_LABELS, dtype=labels.dtype)),
        voxel_size=(float(voxel_size[0]), float(voxel_size[1]), float(voxel_size[2])),
        affine=affine,
        surroundings=coarse[0],
        brain_around=coarse[0] * coarse_brain,
        step=around.step,
        margin=around.margin,
        label_names=dict(NAMES),
    )


@dataclass(frozen=True)
class SurroundingGrid:
    """A coarser grid around a grid, whose corners are corners of the finer one's voxels.

    Attributes:
        shape: Grid (x, y, z).
        voxel_size: [mm].
        step: One voxel is as long as so many of the finer grid.
        margin: The finer grid begins after so many voxels.
        middle: Of this grid, from the middle of the finer one, along the axes [mm].
    """

    shape: Shape
    voxel_size: Triple
    step: Shape
    margin: Shape
    middle: Triple


def surrounding_grid(
    shape: Shape, voxel_size: Triple, *, coarse: float = COARSE, reach: float = AROUND
) -> SurroundingGrid:
    """Lay a grid of about `coarse` mm around another one, `reach` mm further on every side."""
    axes = []
    for n, length in zip(shape, voxel_size, strict=True):
        step = max(round(coarse / length), 1)
        inner = math.ceil(n / step)
        margin = math.ceil(reach / (step * length))
        # where the grid is no whole number of steps, the last one reaches over its end and the middles differ
        axes.append((inner + 2 * margin, step * length, step, margin, (inner * step - n) / 2 * length))
    return SurroundingGrid(*((x, y, z) for x, y, z in zip(*axes, strict=True)))


def rotation_matrix(angles: Sequence[float]) -> Tensor:
    """Matrix of turns [rad] about x, then y, then z."""
    matrix = torch.eye(3, dtype=torch.float64)
    for axis, angle in enumerate(angles):
        i, j = [other for other in range(3) if other != axis]
        turn = torch.eye(3, dtype=torch.float64)
        sine = math.sin(angle) * (-1 if axis == 1 else 1)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -sine, sine
        matrix = turn @ matrix
    return matrix.float()


def rotation_angles(matrix: Tensor) -> Triple:
    """Angles [rad] for which `rotation_matrix` gives this rotation (3, 3)."""
    m = matrix.double()
    x, z = torch.atan2(m[2, 1], m[2, 2]), torch.atan2(m[1, 0], m[0, 0])
    return float(x), float(torch.asin(-m[2, 0].clamp(-1, 1))), float(z)


def angles_for_b0(b0_direction: Sequence[float]) -> Triple:
    """Angles [rad] of a grid, for `rotation_matrix`, in whose voxel axes B0, the scanner's z, has this direction.

    Raises:
        ValueError: The direction has no length.
    """
    x, y, z = unit_vector(b0_direction)
    return math.atan2(y, z), math.asin(max(-1.0, min(1.0, -x))), 0.0


def check_grid(shape: Shape, voxel_size: Triple, head_scale: float) -> None:
    """Refuse a grid on which no head can be made.

    Raises:
        InputError: Says what is wrong with it.
    """
    if len(shape) != 3 or min(shape) < 4:
        raise InputError(f"the grid is {tuple(shape)}, needed three sizes of at least 4 voxels")
    if len(voxel_size) != 3 or not all(0.2 <= size <= 12 for size in voxel_size):
        raise InputError(f"the voxel size is {tuple(voxel_size)}, needed three lengths from 0.2 to 12 mm")
    if not 0.5 <= head_scale <= 1.5:
        raise InputError(f"the head's scale is {head_scale:g}, needed a factor from 0.5 to 1.5")


@dataclass(frozen=True)
class _Placement:
    """From scanner to atlas coordinates and back."""

    rotation: Tensor
    shift: Triple
    scale: float
    warp: Grid

    def to_atlas(self, scanner: Tensor) -> Tensor:
        """(3, n) scanner [mm] to atlas [mm]."""
        straight = self.rotation.T @ (scanner - torch.tensor(self.shift)[:, None]) / self.scale
        straight += torch.tensor(CENTRE)[:, None]
        return straight + BEND * self.warp.at(straight)

    def to_scanner(self, atlas: Tensor) -> Tensor:
        """(3, n) atlas [mm] to scanner [mm]."""
        straight = atlas
        for _ in range(4):  # the bend is slow, so this converges within a tenth of a mm
            straight = atlas - BEND * self.warp.at(straight)
        return (
            self.rotation @ (straight - torch.tensor(CENTRE)[:, None]) * self.scale + torch.tensor(self.shift)[:, None]
        )


def _evaluate(
    person: Person,
    lines: list[Vein],
    place: _Placement,
    turn: Tensor,
    shape: Sequence[int],
    size: Sequence[float],
    middle: Sequence[float] = (0.0, 0.0, 0.0),
) -> tuple[Tensor, Tensor, Tensor]:
    """chi, m0 and m0 R2* (3, x, y, z), labels (x, y, z) and share of brain (x, y, z) on a grid.

    `middle` is where its middle lies [mm], along its axes from the isocentre.
    """
    axes = [(torch.arange(n) - (n - 1) / 2) * d + m for n, d, m in zip(shape, size, middle, strict=True)]
    scanner = turn @ torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    points = place.to_atlas(scanner)
    del scanner
    canvas = Canvas(points, math.prod(size) ** (1 / 3) / place.scale, shape[2])
    brain = paint_head(canvas, person)
    if lines:
        first = torch.tensor([float(axis[0]) for axis in axes])
        drawn = place.to_scanner(torch.cat([line.points for line in lines]).T)
        drawn = ((turn.T @ drawn).T - first) / torch.tensor(size)
        radii = torch.cat([line.radii for line in lines]) * place.scale
        grid = ((shape[0], shape[1], shape[2]), (float(size[0]), float(size[1]), float(size[2])))
        canvas.paint("blood", vein_share(drawn, radii, *grid).flatten())
    chi, m0, r2star, variation = canvas.values
    varied = variation.nonzero()[:, 0]
    noise = torch.zeros(len(varied))
    some = points[:, varied]
    for grid in person.texture:
        noise += grid.at(some)[0]
    chi[varied] += variation[varied] * noise
    # iron and myelin go with R2*, water content against it
    r2star[varied] *= 1 + 0.08 * noise.clamp(-3, 3)
    m0[varied] *= 1 - 0.025 * noise.clamp(-3, 3)
    values = torch.stack([chi, m0, m0 * r2star]).reshape(3, *shape)
    return values, canvas.labels.reshape(*shape), brain.reshape(*shape)


def blocks(volume: Tensor, factors: Sequence[int]) -> Tensor:
    """The finer voxels of each voxel, last: from (x * fx, y * fy, z * fz) to (x, y, z, fx * fy * fz)."""
    x, y, z = (n // factor for n, factor in zip(volume.shape, factors, strict=True))
    split = volume.reshape(x, factors[0], y, factors[1], z, factors[2]).permute(0, 2, 4, 1, 3, 5)
    return split.reshape(x, y, z, -1)
