"""Regions of the brain from magnitude and chi by a small network: region values without anybody's segmentation.

The network sees the head in the scanner's axes (right, front, up) with voxels of 1.25 mm, so it need not be told how
the scan lies. It has learned from simulated heads alone, see `training.recipes.segment`.
"""

import math
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import grid_sample

from chimap.arrays import Echoes, Mask, Shape, Triple, Volume
from chimap.errors import InputError
from chimap.inversion.learned import trained_by
from chimap.linalg import block_mean, bounding_box
from chimap.segmentation import Segmentation
from chimap.simulation.tissues import TISSUES

REGIONS: dict[str, tuple[str, ...]] = {
    "caudate": ("caudate",),
    "pallidum": ("pallidum",),
    "putamen": ("putamen",),
    "red nucleus": ("red nucleus",),
    "dentate nucleus": ("dentate nucleus",),
    "substantia nigra": ("substantia nigra",),
    "thalamus": ("thalamus",),
    "white matter": ("white matter", "internal capsule"),
    "grey matter": ("grey matter",),
    "csf": ("csf",),
    "brain stem": ("brain stem",),
    "hippocampus": ("hippocampus",),
    "cerebellar white matter": ("cerebellar white matter",),
    "cerebellar cortex": ("cerebellar cortex",),
}
"""The network's classes from 1 on, and the tissues of each; 0 is all else, such as veins, amygdala and subthalamic
nucleus. White and grey matter are those of the cerebrum; csf holds ventricles and sulci."""
NAMES: dict[int, str] = {TISSUES[tissues[0]].label: name for name, tissues in REGIONS.items()}
"""{number in a segmentation: region}: those of `simulation.tissues`, up to 10 the 2019 challenge's."""

HARDLY = 50.0
"""[mm^3]: a tenth to a fifth of the smallest regions, red nucleus and substantia nigra, in a grown-up's head."""

SPREAD = frozenset({"white matter", "grey matter", "csf", "cerebellar white matter", "cerebellar cortex"})
"""Regions of many parts."""
LEAST_PART = 0.2

UNIT = 0.1
"""What chi is divided by for the network [ppm]."""
MARGIN = 4
"""Voxels around the mask that it sees."""
LEAST_HALF = 48.0
"""What reaches less far from its middle to a face of its box [mm] is not the whole of an adult's brain."""
AT_ONCE = 2**19
"""Voxels of the scan that are looked up at a time."""


def segment(
    magnitude: Echoes | None,
    chi: Volume,
    mask: Mask,
    voxel_size: Triple,
    affine: np.ndarray | None = None,
    *,
    weights: str | Path = "segment",
    bf16: bool = False,
) -> Segmentation:
    """Regions of the brain.

    Args:
        magnitude: Of all echoes, any unit, shape (echo, x, y, z); None where there is none, which costs some accuracy.
        chi: [ppm], shape (x, y, z), up to a constant.
        mask: Where chi is valid, same shape.
        voxel_size: [mm].
        affine: Voxel index to scanner coordinates, 4 x 4, whose axes are right, front and up; only directions matter.
            Without one the voxel axes are taken for these.
        weights: Name of those in the package, or the best.safetensors of a training.
        bf16: Convolutions in bfloat16.

    Returns:
        On the scan's grid, 0 outside the mask and in what is none of `REGIONS`.

    Raises:
        InputError: The mask is empty, or there are no such weights.
    """
    trained = trained_by(weights, "magnitude and chi")
    edge = trained.voxel_sizes[0][0]
    axes = np.eye(3) if affine is None else affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    matrix = torch.from_numpy(axes * np.asarray(voxel_size)).float().to(chi.device)  # scan voxel to scanner [mm]
    box = bounding_box(mask)
    inside = mask[box]
    # around the brain, not around the scan's box: the more is empty, the further norms are from what was learned
    brain = matrix @ inside.nonzero().T.float()
    low = brain.amin(dim=1) - MARGIN * edge
    x, y, z = ((brain.amax(dim=1) - low) / edge).ceil().int().tolist()
    shape = (x + 1 + MARGIN, y + 1 + MARGIN, z + 1 + MARGIN)

    volumes = [chi[box]]
    if magnitude is not None:
        volumes.append(magnitude[:, *box].square().mean(dim=0).sqrt())
    found_chi, *found_magnitude, there = _into(torch.stack(volumes), inside, voxel_size, matrix, low, shape, edge)
    there = there > 0.5
    places = _places(there, edge)
    channels = channels_of(found_magnitude[0][None] if found_magnitude else None, found_chi[None], there[None], places)
    network = trained.network.to(chi.device)
    with torch.no_grad(), torch.autocast(chi.device.type, torch.bfloat16, enabled=bf16):
        shares = network(channels).float().softmax(dim=1)

    numbers = torch.tensor([0, *NAMES], device=chi.device)
    found = torch.zeros(brain.shape[1], dtype=torch.int64, device=chi.device)
    for begin in range(0, len(found), AT_ONCE):
        some = slice(begin, begin + AT_ONCE)
        where = (brain[:, some] - low[:, None]) / edge
        found[some] = numbers[_at(shares[0], where).argmax(dim=0)]
    labels = torch.zeros(mask.shape, dtype=torch.int64, device=chi.device)
    labels[box][inside] = found
    _drop_islands(labels[box])
    return Segmentation(labels, dict(NAMES), "network")


def hardly_found(segmentation: Segmentation, voxel_size: Triple) -> list[str]:
    """Regions of which there is less than `HARDLY`: every one of them is larger in every head."""
    names = dict.fromkeys(segmentation.names.values())
    volume = math.prod(voxel_size)
    return [
        name
        for name in names
        if volume * sum(int((segmentation.labels == n).sum()) for n, own in segmentation.names.items() if own == name)
        < HARDLY
    ]


def channels_of(magnitude: Tensor | None, chi: Tensor, mask: Tensor, places: Tensor | None) -> Tensor:
    """What the network sees, (batch, 5, x, y, z): magnitude over its median in the mask, chi in `UNIT` relative to its
    mean there, and the place in the brain; zero outside.

    Args:
        magnitude: (batch, x, y, z); None where there is none: its channel is zero then.
        chi: [ppm], same shape.
        mask: Same shape.
        places: From `places_of`; None where they are not known: zero then.

    Raises:
        InputError: A mask is empty.
    """
    if not mask.flatten(1).any(dim=1).all():
        raise InputError("the mask is empty")
    seen = [torch.zeros_like(chi)]
    if magnitude is not None:
        middles = torch.stack([one[inside].median() for one, inside in zip(magnitude, mask, strict=True)])
        seen = [(magnitude / middles.clamp_min(1e-12).reshape(-1, 1, 1, 1)).clamp(0, 4)]
    means = torch.stack([one[inside].mean() for one, inside in zip(chi, mask, strict=True)])
    seen.append(((chi - means.reshape(-1, 1, 1, 1)) / UNIT).clamp(-8, 8))
    where = chi.new_zeros(len(chi), 3, *chi.shape[1:]) if places is None else places
    return torch.cat([torch.stack(seen, dim=1), where], dim=1) * mask[:, None]


def places_of(box: Tensor, shape: Shape, voxel_size: Triple) -> Tensor:
    """Where each voxel lies in the brain, (batch, 3, x, y, z): from -1 to 1 between the faces of the brain's box.

    Args:
        box: Middle, from that of the grid, and half size of the box of each brain [mm], (batch, 2, 3).
        shape: Grid.
        voxel_size: [mm].
    """
    places = []
    for axis, (n, size) in enumerate(zip(shape, voxel_size, strict=True)):
        at = (torch.arange(n, device=box.device) - (n - 1) / 2) * size
        share = (at - box[:, 0, axis, None]) / box[:, 1, axis, None]
        view = [len(box), 1, 1, 1]
        view[axis + 1] = n
        places.append(share.clamp(-1.5, 1.5).reshape(view).expand(len(box), *shape))
    return torch.stack(places, dim=1)


def classes_of(labels: Tensor) -> Tensor:
    """The network's classes, 0 to len(REGIONS), of numbers of `tissues.TISSUES`."""
    table = torch.zeros(64, dtype=torch.int64, device=labels.device)
    for index, tissues in enumerate(REGIONS.values(), start=1):
        table[[TISSUES[tissue].label for tissue in tissues]] = index
    return table[labels.long()]


def _drop_islands(labels: Tensor) -> None:
    """Take from compact regions what is neither of their sides: parts below `LEAST_PART` of the largest become 0."""
    numbers = labels.numpy(force=True)
    for number, name in NAMES.items():
        if name in SPREAD:
            continue
        parts, count = ndimage.label(numbers == number)  # pyright: ignore[reportGeneralTypeIssues]
        if count < 2:
            continue
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        islands = (parts > 0) & (sizes < LEAST_PART * sizes.max())[parts]
        labels[torch.from_numpy(islands).to(labels.device)] = 0


def _places(mask: Mask, edge: float) -> Tensor | None:
    """`places_of` a brain's mask in the network's frame; None for a slab, whose box is not the brain's."""
    sides = list(zip(bounding_box(mask), mask.shape, strict=True))
    middle = [((side.start + side.stop - 1) / 2 - (n - 1) / 2) * edge for side, n in sides]
    half = [(side.stop - side.start) / 2 * edge for side, _ in sides]
    if min(half) < LEAST_HALF:
        return None
    box = torch.tensor([[middle, half]], device=mask.device)
    return places_of(box, (mask.shape[0], mask.shape[1], mask.shape[2]), (edge, edge, edge))


def _into(
    volumes: Tensor, mask: Mask, voxel_size: Triple, matrix: Tensor, low: Tensor, shape: Shape, edge: float
) -> Tensor:
    """Volumes (n, x, y, z) in the network's frame, and the share of the mask there: (n + 1, *shape).

    Voxels much smaller than the frame's are averaged first.
    """
    i, j, k = (max(int(edge / size + 0.1), 1) for size in voxel_size)
    share = block_mean(mask.float(), (i, j, k))
    means = torch.cat([block_mean(volumes * mask, (i, j, k)), share[None]])
    axes = [torch.arange(n, device=mask.device) * edge + float(first) for n, first in zip(shape, low, strict=True)]
    scanner = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    step = torch.tensor([[i], [j], [k]], device=mask.device)
    # a block's middle lies (step - 1) / 2 voxels after its first one
    where = (torch.linalg.solve(matrix, scanner) - (step - 1) / 2) / step
    found = _at(means, where).reshape(-1, *shape)
    found[:-1] /= found[-1].clamp_min(1e-3)
    return found


def _at(volumes: Tensor, where: Tensor) -> Tensor:
    """Volumes (n, x, y, z) between the voxels of indices (3, m), zero beyond the grid: (n, m)."""
    size = torch.tensor(volumes.shape[1:], device=where.device)[:, None]
    grid = (2 * where / (size - 1).clamp_min(1) - 1).flip(0).T.reshape(1, 1, 1, -1, 3)
    found = grid_sample(volumes[None], grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return found.reshape(len(volumes), -1)
