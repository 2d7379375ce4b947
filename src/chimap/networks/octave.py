"""The network of xQSM and xQSM+: a U-Net whose features live on two grids, one half as fine as the other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, max_pool3d, relu

from chimap.networks.orientation import Coding, OrientationCode, OrientedConv
from chimap.networks.sizes import cropped, padded
from chimap.networks.symmetry import in_standard_frame

Pair = tuple[Tensor, Tensor]
"""Features on the fine grid and on the coarse one."""


@dataclass(frozen=True)
class OctaveShape:
    """What makes one network of this family another one.

    Attributes:
        base: Channels of the first level, half of them on the coarse grid; every level below has twice as many.
        pools: Times that the size is halved.
        oriented: With OA-LFE modules.
        coding: Of the direction.
        edit_kernel: Whether these modules have their kernel,
        edit_vectors: and their vectors; for an ablation.
        standard_frame: Whether axes are exchanged and mirrored until B0 is near z.
    """

    kind: Literal["octave"] = "octave"
    base: int = 64
    pools: int = 2
    oriented: bool = False
    coding: Coding = "vector"
    edit_kernel: bool = True
    edit_vectors: bool = True
    standard_frame: bool = False


XQSM = OctaveShape()
"""xQSM (Gao et al. 2021, doi:10.1002/nbm.4461)."""
XQSM_PLUS = OctaveShape(oriented=True)
"""xQSM+, with OA-LFE beside every convolution (Gao et al. 2024, doi:10.1016/j.media.2024.103160)."""

_Conv = Callable[[int, int], nn.Module]


class OctaveNet(nn.Module):
    """Octave convolutions in a U-Net, and its input added to what it gives. Takes one channel, the local field.

    Args:
        shape: Its architecture.
    """

    channels = "field"

    def __init__(self, shape: OctaveShape):
        super().__init__()
        self.shape = shape

        def conv(inputs: int, outputs: int) -> nn.Module:
            plain = nn.Conv3d(inputs, outputs, 3, padding=1)
            if not shape.oriented:
                return plain
            return OrientedConv(plain, kernel=shape.edit_kernel, vectors=shape.edit_vectors)

        widths = [shape.base * 2**level for level in range(shape.pools)]
        self.code = OrientationCode(shape.coding) if shape.oriented else None
        self.first = nn.ModuleList([OctaveSplit(widths[0], conv), OctaveConv(widths[0], widths[0], conv)])
        before = [widths[0], *widths]
        self.down = nn.ModuleList(
            nn.ModuleList([OctaveConv(a, b, conv), OctaveConv(b, b, conv)])
            for a, b in zip(before, widths, strict=False)
        )
        bottom = widths[-1]
        self.middle = nn.ModuleList([OctaveConv(bottom, 2 * bottom, conv), OctaveConv(2 * bottom, bottom, conv)])
        upward = widths[::-1]
        after = [*upward[1:], upward[-1]]
        self.upsample = nn.ModuleList(OctaveUp(n) for n in upward)
        self.up = nn.ModuleList(
            nn.ModuleList([OctaveConv(2 * a, a, conv), OctaveConv(a, b, conv)])
            for a, b in zip(upward, after, strict=True)
        )
        self.join = OctaveJoin(upward[-1], conv)
        self.last = nn.Conv3d(upward[-1], 1, 1)

    def forward(self, channels: Tensor, b0_direction: Tensor, voxel_size: Tensor, image: int = 0) -> Tensor:
        """(batch, 1, x, y, z), (batch, 3) and (batch, 3) to (batch, 1, x, y, z); see `in_standard_frame`."""
        if self.shape.standard_frame:
            return in_standard_frame(self._found, channels, b0_direction, voxel_size, image)
        return self._found(channels, b0_direction, voxel_size)

    def _found(self, channels: Tensor, b0_direction: Tensor, voxel_size: Tensor) -> Tensor:
        code = None if self.code is None else self.code(b0_direction)
        x, placed = padded(channels, 2 ** (self.shape.pools + 1))
        split, *more = self.first
        pair: Pair = split(x, code)
        for unit in more:
            pair = unit(pair, code)
        skips: list[Pair] = []
        for level in self.down:
            for unit in level:  # pyright: ignore[reportGeneralTypeIssues]
                pair = unit(pair, code)
            skips.append(pair)
            pair = max_pool3d(pair[0], 2), max_pool3d(pair[1], 2)
        for unit in self.middle:
            pair = unit(pair, code)
        for upsample, level in zip(self.upsample, self.up, strict=True):
            (fine, coarse), (fine_skip, coarse_skip) = upsample(pair), skips.pop()
            pair = torch.cat([fine, fine_skip], dim=1), torch.cat([coarse, coarse_skip], dim=1)
            for unit in level:  # pyright: ignore[reportGeneralTypeIssues]
                pair = unit(pair, code)
        return cropped(self.last(self.join(pair, code)), placed) + channels


class _Path(nn.Module):
    """A convolution from one grid to one grid, normalised; upwards it is repeated by a transposed convolution."""

    def __init__(self, inputs: int, outputs: int, conv: _Conv, *, upwards: bool = False):
        super().__init__()
        self.conv = conv(inputs, outputs)
        self.up = nn.ConvTranspose3d(outputs, outputs, 2, stride=2) if upwards else None
        self.norm = nn.BatchNorm3d(outputs)

    def forward(self, x: Tensor, code: Tensor | None) -> Tensor:
        found = self.conv(x) if code is None else self.conv(x, code)
        return self.norm(found if self.up is None else self.up(found))


class OctaveSplit(nn.Module):
    """From a volume to features on both grids."""

    def __init__(self, outputs: int, conv: _Conv):
        super().__init__()
        self.fine, self.coarse = _Path(1, outputs // 2, conv), _Path(1, outputs // 2, conv)

    def forward(self, x: Tensor, code: Tensor | None) -> Pair:
        return relu(self.fine(x, code)), relu(self.coarse(avg_pool3d(x, 2), code))


class OctaveConv(nn.Module):
    """Four convolutions of edge 3, from either grid to either grid."""

    def __init__(self, inputs: int, outputs: int, conv: _Conv):
        super().__init__()
        a, b = inputs // 2, outputs // 2
        self.fine_to_fine, self.fine_to_coarse = _Path(a, b, conv), _Path(a, b, conv)
        self.coarse_to_fine, self.coarse_to_coarse = _Path(a, b, conv, upwards=True), _Path(a, b, conv)

    def forward(self, pair: Pair, code: Tensor | None) -> Pair:
        fine, coarse = pair
        return (
            relu(self.fine_to_fine(fine, code) + self.coarse_to_fine(coarse, code)),
            relu(self.coarse_to_coarse(coarse, code) + self.fine_to_coarse(avg_pool3d(fine, 2), code)),
        )


class OctaveUp(nn.Module):
    """Both grids twice as fine: the coarse one's features become as fine as the fine one's were, and vice versa."""

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.fine = nn.ConvTranspose3d(half, half, 2, stride=2)
        self.coarse_to_fine = nn.ConvTranspose3d(half, half, 4, stride=4)
        self.coarse = nn.ConvTranspose3d(half, half, 2, stride=2)
        self.fine_to_coarse = nn.Conv3d(half, half, 3, padding=1)
        self.fine_norm, self.coarse_norm = nn.BatchNorm3d(half), nn.BatchNorm3d(half)

    def forward(self, pair: Pair) -> Pair:
        fine, coarse = pair
        return (
            relu(self.fine_norm(self.fine(fine) + self.coarse_to_fine(coarse))),
            relu(self.coarse_norm(self.coarse(coarse) + self.fine_to_coarse(fine))),
        )


class OctaveJoin(nn.Module):
    """From features on both grids to twice as many on the fine one."""

    def __init__(self, width: int, conv: _Conv):
        super().__init__()
        half = width // 2
        self.fine, self.coarse = _Path(half, width, conv), _Path(half, width, conv, upwards=True)

    def forward(self, pair: Pair, code: Tensor | None) -> Tensor:
        return relu(self.fine(pair[0], code) + self.coarse(pair[1], code))
