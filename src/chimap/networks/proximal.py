"""The network of LPCNN: steps towards the data, each followed by a network that stands for a proximal map."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout3d, relu

from chimap.physics.dipole import applied_to_each, dipole_models


@dataclass(frozen=True)
class ProximalShape:
    """What makes one network of this family another one.

    Attributes:
        steps: That share the network.
        base: Channels.
        blocks: Residual ones, of two convolutions each.
        dropout: Share of the channels left out between these, while it learns.
        start: Step size before training; beyond 4.5 a step would overshoot, as the kernel is -2/3 at most.
        padding: Least zeros [voxels] around the grid for the dipole model.
    """

    kind: Literal["proximal"] = "proximal"
    steps: int = 3
    base: int = 32
    blocks: int = 8
    dropout: float = 0.5
    start: float = 4.0
    padding: int = 8


LPCNN = ProximalShape()
"""LPCNN as published (Lai et al. 2020, doi:10.1007/978-3-030-59713-9_13)."""


class ResidualBlock(nn.Module):
    """Two convolutions of edge 3, and what went in."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.convs = nn.ModuleList(nn.Conv3d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm3d(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, x, y, z) to the same."""
        found = dropout3d(relu(self.norms[0](self.convs[0](x))), self.dropout, self.training)
        return relu(self.norms[1](self.convs[1](found)) + x)


class ProximalNet(nn.Module):
    """chi of a local field: x <- P(x + a A^T m (f - A x)), A the dipole model, P a residual network.

    Takes two channels, the local field and the mask, and gives one in the unit of the field.

    Args:
        shape: Its architecture.
    """

    channels = "field and mask"

    def __init__(self, shape: ProximalShape):
        super().__init__()
        self.shape = shape
        width = shape.base
        self.step = nn.Parameter(torch.tensor(shape.start))
        self.first = nn.Conv3d(1, width, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(ResidualBlock(width, shape.dropout) for _ in range(shape.blocks)))
        self.last = nn.Sequential(
            nn.Conv3d(width, width, 1, bias=False),
            nn.ReLU(),
            nn.Conv3d(width, width, 1, bias=False),
            nn.ReLU(),
            nn.Conv3d(width, 1, 1, bias=False),
        )

    def forward(self, channels: Tensor, b0_direction: Tensor, voxel_size: Tensor) -> Tensor:
        """(batch, 2, x, y, z), (batch, 3) and (batch, 3) to (batch, 1, x, y, z)."""
        field, mask = channels[:, :1], channels[:, 1:]
        x, y, z = field.shape[-3:]
        dipoles = dipole_models((x, y, z), voxel_size, b0_direction, padding=self.shape.padding)
        chi = torch.zeros_like(field)
        for _ in range(self.shape.steps):
            misfit = (field - applied_to_each(dipoles, chi)) * mask
            chi = (chi + self.step * applied_to_each(dipoles, misfit)) * mask
            chi = self.last(self.blocks(relu(self.first(chi)))).float() * mask
        return chi
