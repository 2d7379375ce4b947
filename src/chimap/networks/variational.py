"""The network of NeXtQSM: a U-Net removes the background field, a variational network inverts what is left."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv3d, conv_transpose3d, leaky_relu, pad

from chimap.linalg import block_mean, from_blocks
from chimap.networks.sizes import cropped, padded
from chimap.physics.dipole import applied_to_each, dipole_models

WIDEST = 512
"""Channels that no level exceeds."""
COARSE = 2.0
"""Voxels [mm] on which a background is smooth enough."""

_AT_ONCE = 2**15
"""Voxels whose 27 products lie in memory together."""


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
        penalty: Of what the regulariser's U-Net R gives: sum of "squares" or of "absolute" values, whose gradient is
            gone down; or "none", and R gives the step itself, which then belongs to no energy but learns sooner.
        slope: Of the leaky ReLU, 0 for ReLU.
        residual: Whether the first U-Net finds the background field, which is subtracted, or the local field itself.
        begun: Whether the first U-Net is given a local field to begin with, such as that of PDF and TV in turns, and
            finds what is to be added. That is smooth, and found on voxels of about `COARSE`.
        padding: Least zeros [voxels] around the grid for the dipole model.
    """

    kind: Literal["variational"] = "variational"
    levels: int = 6
    base: int = 16
    prior_levels: int = 2
    prior_base: int = 16
    steps: int = 6
    start: float = 3.0
    penalty: Literal["squares", "absolute", "none"] = "squares"
    slope: float = 0.01
    residual: bool = False
    begun: bool = False
    padding: int = 8


NEXTQSM = VariationalShape()
"""NeXtQSM at its paper's sizes (Cognolato et al. 2023, doi:10.1016/j.media.2022.102700)."""
NEXTQSM_RELEASED = VariationalShape(levels=7, prior_levels=6)
"""NeXtQSM at the sizes of its published weights."""


class StridedUNet(nn.Module):
    """A U-Net whose convolutions halve the size, and whose transposed ones double it; none follows a joint.

    Args:
        inputs: Channels that it takes; it gives one.
        levels: Resolutions.
        base: Channels of the first.
        slope: Of the leaky ReLU.
    """

    def __init__(self, inputs: int, levels: int, base: int, slope: float):
        super().__init__()
        widths = [min(base * 2**level, WIDEST) for level in range(levels)]
        self.slope = slope
        self.down = nn.ModuleList(
            nn.Conv3d(a, b, 3, stride=2 if index else 1, padding=1)
            for index, (a, b) in enumerate(zip([inputs, *widths], widths, strict=False))
        )
        wide = [widths[-1], *(2 * width for width in widths[-2:0:-1])]
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(a, b, 3, stride=2, padding=1, output_padding=1)
            for a, b in zip(wide, widths[-2::-1], strict=True)
        )
        self.last = nn.Conv3d(2 * widths[0], 1, 3, padding=1)
        self._multiple = 2 ** (levels - 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, x, y, z) to (batch, 1, x, y, z)."""
        x, placed = padded(x, self._multiple)
        skips, rising = self._features(x)
        return cropped(self._last(rising[-1], skips[0]), placed)

    def gradient(self, x: Tensor, penalty: Literal["squares", "absolute"]) -> Tensor:
        """Gradient at x of half the sum of squares, or of the sum of absolute values, of what the network gives.

        It is the network's transpose applied to what it gives, written out: to learn through it takes no second
        derivatives of convolutions, which are slow.
        """
        x, placed = padded(x, self._multiple)
        skips, rising = self._features(x)
        found, _ = padded(cropped(self._last(rising[-1], skips[0]), placed), self._multiple)
        slope = found if penalty == "squares" else found.sign()
        width = skips[0].shape[1]
        to_rising, to_skip = (
            _of_few_channels(slope, _turned_round(weight)) for weight in self.last.weight.split(width, dim=1)
        )
        to_skips = [to_skip]  # from the finest level downwards
        for index in range(len(self.up) - 1, -1, -1):
            passed = self._through(to_rising, rising[index])
            below = conv3d(passed, self.up[index].weight, stride=2, padding=1)  # pyright: ignore
            if index:
                to_rising, to_skip = below.split(below.shape[1] // 2, dim=1)
                to_skips.append(to_skip)
            else:
                to_skips.append(below)
        slope = to_skips.pop()
        for level in range(len(self.down) - 1, 0, -1):
            weight = self.down[level].weight
            passed = self._through(slope, skips[level])
            above = conv_transpose3d(passed, weight, stride=2, padding=1, output_padding=1)  # pyright: ignore
            slope = to_skips.pop() + above
        slope = self._through(slope, skips[0])
        slope = conv3d(slope, _turned_round(self.down[0].weight), padding=1)  # pyright: ignore[reportArgumentType]
        return cropped(slope, placed)

    def _features(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Of the way down and of the way up, level by level."""
        skips, rising = [], []
        in_place = not torch.is_grad_enabled()
        for conv in self.down:
            found = conv(x) if skips else _of_few_channels(x, conv.weight, conv.bias)  # pyright: ignore
            x = leaky_relu(found, self.slope, inplace=in_place)
            skips.append(x)
        for conv, skip in zip(self.up, skips[-2::-1], strict=True):
            rising.append(leaky_relu(conv(x), self.slope, inplace=in_place))
            if skip is not skips[0]:
                x = torch.cat([rising[-1], skip], dim=1)
        return skips, rising

    def _last(self, rising: Tensor, skip: Tensor) -> Tensor:
        """The last convolution, of both halves of its channels: to join them first would copy the largest features."""
        one, other = self.last.weight.split(skip.shape[1], dim=1)
        if rising.device.type == "cpu" and not torch.is_grad_enabled() and rising.dtype == one.dtype:
            return _to_one_channel((rising, skip), (one, other), self.last.bias)  # pyright: ignore[reportArgumentType]
        return conv3d(rising, one, self.last.bias, padding=1) + conv3d(skip, other, padding=1)

    def _through(self, slope: Tensor, activation: Tensor) -> Tensor:
        """A gradient through the leaky ReLU that gave an activation."""
        return torch.ops.aten.leaky_relu_backward(slope, activation, self.slope, False)


def _turned_round(weight: Tensor) -> Tensor:
    """Of a convolution that keeps the size: the weight of its transpose."""
    return weight.flip(2, 3, 4).transpose(0, 1)


def _of_few_channels(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution; one of less than four channels is twice as fast on a CPU beside zeros, and so is what follows."""
    if x.device.type == "cpu" and x.shape[1] < 4:
        x, weight = (pad(tensor, (0,) * 7 + (4 - x.shape[1],)) for tensor in (x, weight))
        x = x.contiguous(memory_format=torch.channels_last_3d)
    return conv3d(x, weight, bias, padding=1)


def _to_one_channel(parts: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> Tensor:
    """Sum of convolutions of edge 3 whose output is one channel.

    On a CPU a convolution to one channel takes the time of sixteen. Here a product of matrices gives what each of the
    27 weights makes of all voxels of some slices, and these are added up, shifted: a quarter of the time.
    """
    n, _, x, y, z = parts[0].shape
    matrices = [weight[0].reshape(-1, 27).T for weight in weights]
    slices = max(1, _AT_ONCE // (y * z))
    found = bias.new_zeros(n, 1, x + 2, y + 2, z + 2)
    for index, first in product(range(n), range(0, x, slices)):
        last = min(first + slices, x)
        of_each = bias.new_zeros(27, (last - first) * y * z)
        for part, matrix in zip(parts, matrices, strict=True):
            seen = part[index, :, first:last].movedim(0, -1)
            of_each.addmm_(matrix, seen.reshape(-1, matrix.shape[1]).T)
        for (i, j, k), one in zip(product(range(3), repeat=3), of_each, strict=True):
            # voxel v adds to the output at v + 1 - (i, j, k), which the margin of one moves to v + 2 - (i, j, k)
            room = found[index, 0, first + 2 - i : last + 2 - i, 2 - j : 2 - j + y, 2 - k : 2 - k + z]
            room += one.reshape(room.shape)
    return found[..., 1:-1, 1:-1, 1:-1] + bias


class VariationalNet(nn.Module):
    """Local field and chi of a total field, by a U-Net and steps down the gradient of an energy.

    A step is x <- m (x - w_i A^T m (A x - f) - d/dx P(R(x))), f the local field that the first U-Net found, A the
    dipole model, R the regulariser's U-Net; without a penalty P, R(x) takes the place of the gradient. Both terms are
    sums over voxels, so a step is the same on any grid.

    Takes two channels, the total field and the mask, and gives two, the local field and chi, both in the unit of the
    total field. A further channel is the local field to begin with, where the shape says so; with yet another one, chi
    is that of this one.

    Args:
        shape: Its architecture.
    """

    channels = "field and mask"

    def __init__(self, shape: VariationalShape):
        super().__init__()
        self.shape = shape
        self.background = StridedUNet(3 if shape.begun else 1, shape.levels, shape.base, shape.slope)
        if shape.begun:  # nothing is added at first
            nn.init.zeros_(self.background.last.weight)
            nn.init.zeros_(self.background.last.bias)  # pyright: ignore[reportArgumentType]
        self.prior = StridedUNet(1, shape.prior_levels, shape.prior_base, shape.slope)
        if shape.penalty == "none":  # the data alone at first
            nn.init.zeros_(self.prior.last.weight)
            nn.init.zeros_(self.prior.last.bias)  # pyright: ignore[reportArgumentType]
        self.data_weights = nn.Parameter(torch.full((shape.steps,), shape.start))

    def forward(
        self, channels: Tensor, b0_direction: Tensor, voxel_size: Tensor, *, local_only: bool = False
    ) -> Tensor:
        """(batch, 2 to 4, x, y, z), (batch, 3) and (batch, 3) to (batch, 2, x, y, z), or (batch, 1, …) without chi."""
        field, mask, *more = channels.split(1, dim=1)
        local = self._local_field(field, mask, voxel_size, more.pop(0) if self.shape.begun else None) * mask
        if local_only:
            return local
        given = more[0] if more else local
        x, y, z = field.shape[-3:]
        dipoles = dipole_models((x, y, z), voxel_size, b0_direction, padding=self.shape.padding)
        chi = given
        for weight in self.data_weights:
            penalty = self.shape.penalty
            slope = (self.prior(chi) if penalty == "none" else self.prior.gradient(chi, penalty)).float()
            misfit = mask * (applied_to_each(dipoles, chi) - given)
            chi = (chi - weight.clamp_min(0) * applied_to_each(dipoles, misfit) - slope) * mask
        return torch.cat([local, chi], dim=1)

    def _local_field(self, field: Tensor, mask: Tensor, voxel_size: Tensor, begun: Tensor | None) -> Tensor:
        """What the first U-Net leaves of a total field."""
        if begun is not None:
            x, y, z = (max(round(COARSE / length), 1) for length in voxel_size[0].tolist())
            seen = block_mean(torch.cat([field / 10, begun, mask], dim=1), (x, y, z))
            return begun + from_blocks(self.background(seen).float(), (x, y, z), field.shape[-3:])
        # the background is a hundred times as strong as what is wanted: half of the digits would leave nothing of it
        with torch.autocast(field.device.type, enabled=False):
            found = self.background(field.float())
        return field - found if self.shape.residual else found
