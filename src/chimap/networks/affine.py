"""The network of AFTER-QSM: the field is turned until B0 is along z, inverted, turned back, and the blur taken away."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, relu

from chimap.linalg import shortest_turns
from chimap.networks.unet import UNet, UNetShape


@dataclass(frozen=True)
class AffineShape:
    """What makes one network of this family another one.

    Attributes:
        base: Channels of the U-Net's first level.
        levels: Its resolutions.
        width: Channels of the refinement.
        growth: Channels that each of its layers adds.
        blocks: Residual dense blocks.
        layers: Of a block.
    """

    kind: Literal["affine"] = "affine"
    base: int = 16
    levels: int = 5
    width: int = 128
    growth: int = 64
    blocks: int = 4
    layers: int = 3


AFTER_QSM = AffineShape()
"""AFTER-QSM at its paper's sizes (Xiong et al. 2023, doi:10.1016/j.neuroimage.2022.119842)."""


class DenseBlock(nn.Module):
    """Layers that each see what all before them gave, and what went in added at the end."""

    def __init__(self, width: int, growth: int, layers: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv3d(width + i * growth, growth, 3, padding=1) for i in range(layers))
        self.fuse = nn.Conv3d(width + layers * growth, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, x, y, z) to the same."""
        seen = x
        for conv in self.convs:
            seen = torch.cat([seen, relu(conv(seen))], dim=1)
        return self.fuse(seen) + x


class AffineNet(nn.Module):
    """chi of a local field of any direction of B0. Takes field and mask, gives chi before and after the refinement.

    The grid is as large as it was: what a turn carries beyond its corners is not seen. Voxels stay as they are but for
    the turn; the authors go to 0.6 mm in the same step.

    Args:
        shape: Its architecture.
    """

    channels = "field and mask"

    def __init__(self, shape: AffineShape):
        super().__init__()
        self.shape = shape
        self.invert = UNet(UNetShape(base=shape.base, levels=shape.levels, convolutions=2, norm=True, slope=0.0))
        self.enter = nn.Conv3d(1, shape.width, 3, padding=1)
        self.blocks = nn.ModuleList(DenseBlock(shape.width, shape.growth, shape.layers) for _ in range(shape.blocks))
        self.fuse = nn.Conv3d(shape.blocks * shape.width, shape.width, 1)
        self.leave = nn.Conv3d(shape.width, 1, 3, padding=1)

    def forward(self, channels: Tensor, b0_direction: Tensor, voxel_size: Tensor) -> Tensor:
        """(batch, 2, x, y, z), (batch, 3) and (batch, 3) to (batch, 2, x, y, z)."""
        field, mask = channels[:, :1], channels[:, 1:]
        turns = shortest_turns(b0_direction)
        found = self.invert(resampled(field, turns, voxel_size)).float()
        rough = resampled(found, turns.transpose(1, 2), voxel_size) * mask
        features = first = self.enter(rough)
        seen = []
        for block in self.blocks:
            features = block(features)
            seen.append(features)
        fine = rough + self.leave(self.fuse(torch.cat(seen, dim=1)) + first).float()
        return torch.cat([rough, fine], dim=1)


def resampled(volumes: Tensor, turns: Tensor, voxel_size: Tensor) -> Tensor:
    """The volumes (batch, channels, x, y, z) at turn @ place [mm] about their middle, linear, zero beyond the grid."""
    half = voxel_size * torch.tensor([n / 2 for n in volumes.shape[-3:]], device=volumes.device)
    matrix = turns * half[:, None, :] / half[:, :, None]  # grids run from -1 to 1 from face to face
    matrix = matrix.flip(1, 2)  # and are indexed z, y, x
    theta = torch.cat([matrix, matrix.new_zeros(len(matrix), 3, 1)], dim=2)
    shape = [len(volumes), 1, *volumes.shape[-3:]]
    grid = nn.functional.affine_grid(theta, shape, align_corners=False)
    return grid_sample(volumes.float(), grid, mode="bilinear", align_corners=False)
