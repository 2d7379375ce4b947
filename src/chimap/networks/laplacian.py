"""The networks of iQSM and iQSM+: from wrapped phase through its Laplacian to chi in one step."""

from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv3d, max_pool3d

from chimap.networks.orientation import Coding, ConvUnit, OrientationCode
from chimap.networks.sizes import cropped, padded
from chimap.networks.symmetry import in_standard_frame

LAPLACIAN = (-44 / 13, 3 / 13, 3 / 26, 1 / 13)
"""The 27-point stencil: centre, 6 faces, 12 edges, 8 corners. Per voxel, whatever its size."""


@dataclass(frozen=True)
class InstantShape:
    """What makes one network of this family another one.

    Attributes:
        base: Channels of the first level.
        pools: Times that the size is halved.
        kernels: Laplacians, each with a stencil that is learned.
        fixed_first: Whether the first stays as it begins, as iQSM has it; in iQSM+ all are learned.
        stem: Whether a convolution comes before the first level, as in iQSM+.
        oriented: With OA-LFE modules.
        coding: Of the direction.
        edit_kernel: Whether these modules have their kernel,
        edit_vectors: and their vectors; for an ablation.
        standard_frame: Whether axes are exchanged and mirrored until B0 is near z.
    """

    kind: Literal["instant"] = "instant"
    base: int = 16
    pools: int = 4
    kernels: int = 16
    fixed_first: bool = True
    stem: bool = False
    oriented: bool = False
    coding: Coding = "vector"
    edit_kernel: bool = True
    edit_vectors: bool = True
    standard_frame: bool = False


IQSM = InstantShape()
"""iQSM with learned stencils (Gao et al. 2022, doi:10.1016/j.neuroimage.2022.119410); iQFM is the same network."""
IQSM_PLUS = InstantShape(fixed_first=False, stem=True, oriented=True)
"""iQSM+ as released (Gao et al. 2024, doi:10.1016/j.media.2024.103160)."""


class LaplacianOfPhase(nn.Module):
    """LoT: cos(phase) (k * sin(phase)) - sin(phase) (k * cos(phase)), which wraps do not touch.

    Args:
        kernels: k, so many; all begin as the Laplacian.
        fixed_first: Whether the first remains it.
    """

    def __init__(self, kernels: int, *, fixed_first: bool):
        super().__init__()
        stencil = laplacian_stencil()
        free = stencil.expand(kernels - fixed_first, 1, 3, 3, 3).clone()
        self.kernels = nn.Parameter(free)
        self.register_buffer("first", stencil[None, None] if fixed_first else stencil.new_zeros(0, 1, 3, 3, 3))

    def forward(self, phase: Tensor) -> Tensor:
        """(batch, 1, x, y, z) [rad] to (batch, kernels, x, y, z) [rad per voxel squared], in float32.

        The outermost voxels of the grid have no neighbours on one side; what they get is not to be used.
        """
        # differences of neighbours: half of the digits would leave none
        with torch.autocast(phase.device.type, enabled=False):
            kernels = torch.cat([self.first, self.kernels])  # pyright: ignore[reportCallIssue, reportArgumentType]
            sine, cosine = phase.float().sin(), phase.float().cos()
            return cosine * conv3d(sine, kernels, padding=1) - sine * conv3d(cosine, kernels, padding=1)


@torch.no_grad()
def interior(mask: Tensor) -> Tensor:
    """1 where a voxel's 26 neighbours lie in the mask (batch, 1, x, y, z) and in the grid, 0 elsewhere."""
    return 1 - max_pool3d(1 - nn.functional.pad(mask.float(), (1,) * 6), 3, stride=1)


def laplacian_stencil() -> Tensor:
    """`LAPLACIAN` as (3, 3, 3)."""
    away = torch.tensor([1, 0, 1])
    steps = away[:, None, None] + away[None, :, None] + away[None, None, :]
    return torch.tensor(LAPLACIAN)[steps]


class InstantNet(nn.Module):
    """Laplacians of the phase, a U-Net, and the first Laplacian added to what it gives; a quarter of that comes out.

    Takes two channels for each echo: first their wrapped phases [rad], then as many masks times the gain for the
    Laplacians, which are summed over the echoes. Those of voxels with a neighbour outside the mask are left out, so
    nothing beyond the mask is seen.

    Args:
        shape: Its architecture.
    """

    channels = "phase"

    def __init__(self, shape: InstantShape):
        super().__init__()
        self.shape = shape
        widths = [shape.base * 2**level for level in range(shape.pools)]

        def unit(inputs: int, outputs: int) -> ConvUnit:
            return ConvUnit(
                inputs, outputs, oriented=shape.oriented, kernel=shape.edit_kernel, vectors=shape.edit_vectors
            )

        self.laplacian = LaplacianOfPhase(shape.kernels, fixed_first=shape.fixed_first)
        self.code = OrientationCode(shape.coding) if shape.oriented else None
        self.stem = unit(shape.kernels, shape.kernels) if shape.stem else None
        before = [shape.kernels, *widths]
        self.down = nn.ModuleList(nn.ModuleList([unit(a, b), unit(b, b)]) for a, b in zip(before, widths, strict=False))
        bottom = widths[-1]
        self.middle = nn.ModuleList([unit(bottom, 2 * bottom), unit(2 * bottom, bottom)])
        upward = widths[::-1]
        self.upsample = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose3d(n, n, 2, stride=2), nn.BatchNorm3d(n), nn.ReLU(inplace=True))
            for n in upward
        )
        after = [*upward[1:], upward[-1]]
        self.up = nn.ModuleList(nn.ModuleList([unit(2 * a, a), unit(a, b)]) for a, b in zip(upward, after, strict=True))
        self.last = nn.Conv3d(upward[-1], 1, 1)

    def forward(self, channels: Tensor, b0_direction: Tensor, voxel_size: Tensor, image: int = 0) -> Tensor:
        """(batch, 2 echoes, x, y, z), (batch, 3) and (batch, 3) to (batch, 1, x, y, z); see `in_standard_frame`."""
        if self.shape.standard_frame:
            return in_standard_frame(self._found, channels, b0_direction, voxel_size, image)
        return self._found(channels, b0_direction, voxel_size)

    def _found(self, channels: Tensor, b0_direction: Tensor, voxel_size: Tensor) -> Tensor:
        phases, gains = channels.chunk(2, dim=1)
        echoes = zip(phases.split(1, dim=1), gains.split(1, dim=1), strict=True)
        laplacians = reduce(torch.add, (self.laplacian(phase) * gain for phase, gain in echoes))
        laplacians = laplacians * interior(gains.sum(dim=1, keepdim=True) > 0)
        x, placed = padded(laplacians, 2**self.shape.pools)
        code = None if self.code is None else self.code(b0_direction)
        if self.stem is not None:
            x = self.stem(x, code)
        skips = []
        for level in self.down:
            for unit in level:  # pyright: ignore[reportGeneralTypeIssues]
                x = unit(x, code)
            skips.append(x)
            x = max_pool3d(x, 2)
        for unit in self.middle:
            x = unit(x, code)
        for upsample, level in zip(self.upsample, self.up, strict=True):
            x = torch.cat([upsample(x), skips.pop()], dim=1)
            for unit in level:  # pyright: ignore[reportGeneralTypeIssues]
                x = unit(x, code)
        return (cropped(self.last(x), placed) + laplacians[:, :1]) / 4
