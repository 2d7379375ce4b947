"""The network of NeXtQSM: a U-Net removes the background field, a variational network inverts what is left."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from chimap.networks.sizes import cropped, padded
from chimap.physics.dipole import applied_to_each, dipole_models

WIDEST = 512
"""Channels that no level exceeds."""


@dataclass(frozen=True)
class VariationalShape:
    """What makes one network of this family another one.

    Attributes:
        levels: Resolutions of the U-Net that removes the background field.
        base: Channels of its first level; every level below has twice as many, up to `WIDEST`.
        prior_levels: Resolutions of the learned regulariser's U-Net.
        prior_base: Channels of its first level.
        steps: Gradient steps; they share the regulariser, and each has its weight of the data.
        start: That weight before training; beyond 4.5 a step would overshoot, as the kernel is -2/3 at most.
        penalty: Of what the regulariser's U-Net R gives: sum of "squares" or of "absolute" values.
        slope: Of the leaky ReLU, 0 for ReLU.
        residual: Whether the first U-Net finds the background field, which is subtracted, or the local field itself.
        padding: Least zeros [voxels] around the grid for the dipole model.
    """

    kind: Literal["variational"] = "variational"
    levels: int = 6
    base: int = 16
    prior_levels: int = 2
    prior_base: int = 16
    steps: int = 6
    start: float = 3.0
    penalty: Literal["squares", "absolute"] = "squares"
    slope: float = 0.01
    residual: bool = False
    padding: int = 8


NEXTQSM = VariationalShape()
"""NeXtQSM at its paper's sizes (Cognolato et al. 2023, doi:10.1016/j.media.2022.102700)."""
NEXTQSM_RELEASED = VariationalShape(levels=7, prior_levels=6)
"""NeXtQSM at the sizes of its published weights."""


class StridedUNet(nn.Module):
    """A U-Net whose convolutions halve the size, and whose transposed ones double it; none follows a joint.

    Takes one channel and gives one.

    Args:
        levels: Resolutions.
        base: Channels of the first.
        slope: Of the leaky ReLU.
    """

    def __init__(self, levels: int, base: int, slope: float):
        super().__init__()
        widths = [min(base * 2**level, WIDEST) for level in range(levels)]
        self.slope = slope
        self.down = nn.ModuleList(
            nn.Conv3d(a, b, 3, stride=2 if index else 1, padding=1)
            for index, (a, b) in enumerate(zip([1, *widths], widths, strict=False))
        )
        wide = [widths[-1], *(2 * width for width in widths[-2:0:-1])]
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(a, b, 3, stride=2, padding=1, output_padding=1)
            for a, b in zip(wide, widths[-2::-1], strict=True)
        )
        self.last = nn.Conv3d(2 * widths[0], 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1, x, y, z) to the same."""
        x, placed = padded(x, 2 ** (len(self.down) - 1))
        skips = []
        for conv in self.down:
            x = leaky_relu(conv(x), self.slope)
            skips.append(x)
        skips.pop()
        for conv in self.up:
            x = torch.cat([leaky_relu(conv(x), self.slope), skips.pop()], dim=1)
        return cropped(self.last(x), placed)


class VariationalNet(nn.Module):
    """Local field and chi of a total field, by a U-Net and steps down the gradient of an energy.

    A step is x <- m (x - w_i A^T m (A x - f) - d/dx P(R(x))), f the local field that the first U-Net found, A the
    dipole model, R the regulariser's U-Net. Both terms are sums over voxels, so a step is the same on any grid.

    Takes two channels, the total field and the mask, and gives two, the local field and chi, both in the unit of the
    total field. With the local field as a third channel, chi is that of this one.

    Args:
        shape: Its architecture.
    """

    channels = "field and mask"

    def __init__(self, shape: VariationalShape):
        super().__init__()
        self.shape = shape
        self.background = StridedUNet(shape.levels, shape.base, shape.slope)
        self.prior = StridedUNet(shape.prior_levels, shape.prior_base, shape.slope)
        self.data_weights = nn.Parameter(torch.full((shape.steps,), shape.start))

    def forward(self, channels: Tensor, b0_direction: Tensor, voxel_size: Tensor) -> Tensor:
        """(batch, 2 or 3, x, y, z), (batch, 3) and (batch, 3) to (batch, 2, x, y, z)."""
        field, mask = channels[:, :1], channels[:, 1:2]
        found = self.background(field).float()
        local = (field - found if self.shape.residual else found) * mask
        given = channels[:, 2:] if channels.shape[1] > 2 else local
        x, y, z = field.shape[-3:]
        dipoles = dipole_models((x, y, z), voxel_size, b0_direction, padding=self.shape.padding)
        learning = torch.is_grad_enabled()
        chi = given
        for weight in self.data_weights:
            slope = self._slope(chi, keep=learning)
            misfit = mask * (applied_to_each(dipoles, chi) - given)
            chi = (chi - weight.clamp_min(0) * applied_to_each(dipoles, misfit) - slope) * mask
        return torch.cat([local, chi], dim=1)

    def _slope(self, x: Tensor, *, keep: bool) -> Tensor:
        """Gradient of the regulariser at x; `keep` it differentiable."""
        with torch.enable_grad():
            if not keep:
                x = x.detach()
            if not x.requires_grad:
                x = x.requires_grad_()
            found = self.prior(x).float()
            energy = found.square().sum() / 2 if self.shape.penalty == "squares" else found.abs().sum()
            (slope,) = torch.autograd.grad(energy, x, create_graph=keep)
        return slope.float()
