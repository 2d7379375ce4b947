"""The U-Nets of uQSM, uQSM+, QSMnet and QSMnet+: architecture only, no units, no files."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from chimap.networks.sizes import cropped, padded


@dataclass(frozen=True)
class UNetShape:
    """What makes one U-Net another one.

    Attributes:
        inputs: Input channels.
        base: Channels of the first level; every level below has twice as many.
        levels: Resolutions, each half of the one above.
        convolutions: Per level, on the way down and on the way up.
        kernel: Their edge.
        norm: Batch normalisation after each.
        slope: Of the leaky ReLU after each, 0 for ReLU.
        up: "nearest" repeats voxels; "deconvolution" is a transposed convolution of edge 2 that halves the channels.
        last_kernel: Edge of the linear convolution at the end.
        bias: Of the convolutions; without it, and without norm, the network is homogeneous: twice the input, twice
            the output.
        outputs: Output channels.
        instance: The normalisation is that of each volume by itself, learning and in use.
    """

    kind: Literal["unet"] = "unet"
    inputs: int = 1
    base: int = 24
    levels: int = 5
    convolutions: int = 1
    kernel: int = 3
    norm: bool = False
    slope: float = 0.1
    up: Literal["nearest", "deconvolution"] = "nearest"
    last_kernel: int = 1
    bias: bool = True
    outputs: int = 1
    instance: bool = False


UQSM = UNetShape(inputs=2, norm=True, slope=0.0, last_kernel=3)
"""uQSM as its paper has it (Liu and Koch 2020, doi:10.48550/arXiv.2004.06259): field and mask in."""
UQSM_CODE = UNetShape(slope=0.01)
"""uQSM as its authors published it: field only, no normalisation."""
UQSM_PLUS = UNetShape(inputs=2)
"""uQSM+ (Liu, Improved Model-based Learning with Data Augmentation for QSM): field and mask in, no normalisation."""
QSMNET = UNetShape(base=32, convolutions=2, kernel=5, norm=True, up="deconvolution")
"""QSMnet (Yoon et al. 2018, doi:10.1016/j.neuroimage.2018.06.030) and QSMnet+ (Jung et al. 2020,
doi:10.1016/j.neuroimage.2020.116619)."""
SEGMENT = UNetShape(
    inputs=5, base=16, levels=4, convolutions=2, norm=True, up="deconvolution", outputs=15, instance=True
)
"""Magnitude, chi and place in the brain in, a score for each region of `parcellation.REGIONS` and for the rest out."""
DEEPQSM = UNetShape(base=16, convolutions=2, slope=0.0, up="deconvolution")
"""DeepQSM (Bollmann et al. 2019, doi:10.1016/j.neuroimage.2019.03.060) and SHARQnet (Bollmann et al. 2019,
doi:10.1016/j.zemedi.2019.01.001), as far as their papers tell: neither was published as code."""


class UNet(nn.Module):
    """A 3D U-Net for volumes of any size: padded by zeros to whole multiples inside, and cropped again.

    Args:
        shape: Its architecture.
    """

    def __init__(self, shape: UNetShape):
        super().__init__()
        self.shape = shape
        self.channels = "field and mask" if shape.inputs == 2 else "field"
        widths = [shape.base * 2**level for level in range(shape.levels)]
        self.down = nn.ModuleList(
            _level(before, width, shape) for before, width in zip([shape.inputs, *widths], widths, strict=False)
        )
        below = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # from the coarsest level upwards
        if shape.up == "deconvolution":
            self.upsample = nn.ModuleList(nn.ConvTranspose3d(wide, width, 2, stride=2) for wide, width in below)
            self.up = nn.ModuleList(_level(2 * width, width, shape) for _, width in below)
        else:
            self.upsample = nn.ModuleList(nn.Identity() for _ in below)
            self.up = nn.ModuleList(_level(wide + width, width, shape) for wide, width in below)
        self.last = nn.Conv3d(
            widths[0], shape.outputs, shape.last_kernel, padding=shape.last_kernel // 2, bias=shape.bias
        )

    def forward(self, volumes: Tensor, b0_direction: Tensor | None = None, voxel_size: Tensor | None = None) -> Tensor:
        """(batch, inputs, x, y, z) to (batch, outputs, x, y, z); it has no use for direction and voxel size."""
        x, placed = padded(volumes, 2 ** (self.shape.levels - 1))
        skips: list[Tensor] = []
        for index, level in enumerate(self.down):
            if index:
                x = nn.functional.max_pool3d(x, 2)
            x = level(x)
            skips.append(x)
        skips.pop()
        for upsample, level in zip(self.upsample, self.up, strict=True):
            skip = skips.pop()
            x = upsample(x) if self.shape.up == "deconvolution" else interpolate(x, scale_factor=2, mode="nearest")
            x = level(torch.cat([skip, x], dim=1))
        return cropped(self.last(x), placed)


class _InstanceNorm(nn.InstanceNorm3d):
    """Of one volume that of a batch of one, which is the same and leaves the order of its memory as it is."""

    def forward(self, input: Tensor) -> Tensor:
        if len(input) > 1:
            return super().forward(input)
        return nn.functional.batch_norm(input, None, None, self.weight, self.bias, training=True, eps=self.eps)


def _level(inputs: int, width: int, shape: UNetShape) -> nn.Sequential:
    """Convolutions of one level, each with its normalisation and activation."""
    layers: list[nn.Module] = []
    for index in range(shape.convolutions):
        before = width if index else inputs
        layers.append(nn.Conv3d(before, width, shape.kernel, padding=shape.kernel // 2, bias=shape.bias))
        if shape.norm:
            # QSMnet's own: eps 1e-3, running decay 0.99
            batch = nn.BatchNorm3d(width, eps=1e-3, momentum=0.01)
            layers.append(_InstanceNorm(width, affine=True) if shape.instance else batch)
        layers.append(nn.LeakyReLU(shape.slope, inplace=True) if shape.slope else nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
