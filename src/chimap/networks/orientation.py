"""OA-LFE: convolutions that know the direction of B0.

A few numbers made of the direction edit the kernel and the bias of a convolution. One embedding serves a network, and
each convolution has two small heads, so any network becomes orientation-adaptive by wrapping its convolutions.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv3d

CODE = 5
"""Numbers that the embedding makes of a direction."""

Coding = Literal["vector", "tensor"]


class OrientationCode(nn.Module):
    """The embedding of a direction.

    Args:
        coding: "vector" embeds the unit vector p, as published. "tensor" embeds p p^T - 1/3, the six numbers that the
            dipole model depends on: p and -p are one direction, and to the network too.

    References:
        Gao et al. 2024, iQSM+, doi:10.1016/j.media.2024.103160.
    """

    def __init__(self, coding: Coding):
        super().__init__()
        self.coding = coding
        n = 3 if coding == "vector" else 6
        self.layers = _begun(nn.Sequential(nn.Linear(n, n), nn.GELU(), nn.Linear(n, CODE)))

    def forward(self, b0_direction: Tensor) -> Tensor:
        """(batch, 3) to (batch, CODE)."""
        if self.coding == "vector":
            return self.layers(b0_direction)
        x, y, z = b0_direction.unbind(dim=-1)
        third = 1 / 3
        squares = torch.stack([x * x - third, y * y - third, z * z - third, x * y, x * z, y * z], dim=-1)
        return self.layers(squares)


class OrientedConv(nn.Module):
    """A convolution with an OA-LFE module beside it: conv(x) + v1 (k * mean over channels of x) + v2.

    Kernel k (27 numbers) and vectors v1, v2 (one number a channel) follow from the direction. Printed, the module
    comes after the convolution and keeps the channels of what it convolves; the published networks have it as here,
    and so it is nothing but an edit of the convolution's own weights, which costs no time. They sum over the channels;
    the mean is the same with another scale of v1, and leaves the convolution the larger part at first.

    Args:
        conv: Any 3D convolution that keeps the size, of edge 3 or more.
        kernel: Whether there is a k; without, it is the identity.
        vectors: Whether there are v1 and v2; without, they are 1 and 0.

    References:
        Gao et al. 2024, iQSM+, doi:10.1016/j.media.2024.103160.
    """

    def __init__(self, conv: nn.Conv3d, *, kernel: bool = True, vectors: bool = True):
        super().__init__()
        self.conv = conv
        self.kernel_head = _head(27) if kernel else None
        self.vector_head = _head(2 * conv.out_channels) if vectors else None

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Features (batch, channels, x, y, z) and codes (batch, CODE)."""
        kernels, scales, shifts = self.edits(code)
        if len(x) == 1 or x.device.type == "cpu":  # there, what convolutions read and write is what takes time
            parts = zip(x.split(1), kernels, scales, shifts, strict=True)
            found = [self._edited(*part) for part in parts]
            return found[0] if len(found) == 1 else torch.cat(found)
        mean = x.mean(dim=1)[None]
        edited = conv3d(mean, kernels[:, None], padding=1, groups=len(x))[0, :, None]
        scales, shifts = (vector[..., None, None, None] for vector in (scales, shifts))
        return self.conv(x) + scales * edited + shifts

    def _edited(self, x: Tensor, kernel: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """The convolution of one sample with its weights edited."""
        weight, bias = self.edited(kernel, scale, shift)
        weight = weight.contiguous(memory_format=torch.channels_last_3d)
        return conv3d(x, weight, bias, padding=self.conv.padding)  # pyright: ignore[reportArgumentType]

    def edited(self, kernel: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution that is the same as this one and the module beside it."""
        weight, bias = self.conv.weight, self.conv.bias
        room = (weight.shape[-1] - 3) // 2
        edit = nn.functional.pad(kernel, (room,) * 6) / weight.shape[1]
        return weight + scale.reshape(-1, 1, 1, 1, 1) * edit, shift if bias is None else bias + shift

    def edits(self, code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """k (batch, 3, 3, 3), v1 and v2 (batch, channels)."""
        n = self.conv.out_channels
        if self.kernel_head is None:
            kernels = code.new_zeros(len(code), 27)
            kernels[:, 13] = 1
        else:
            kernels = self.kernel_head(code)
        if self.vector_head is None:
            return kernels.reshape(-1, 3, 3, 3), code.new_ones(len(code), n), code.new_zeros(len(code), n)
        scales, shifts = self.vector_head(code).chunk(2, dim=-1)
        return kernels.reshape(-1, 3, 3, 3), scales, shifts


def _head(outputs: int) -> nn.Sequential:
    return _begun(nn.Sequential(nn.SiLU(), nn.Linear(CODE, 10), nn.SiLU(), nn.Linear(10, outputs)))


def _begun(layers: nn.Sequential) -> nn.Sequential:
    """Weights that pass the direction on: with the usual ones, a hundredth of its differences would be left."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return layers


class ConvUnit(nn.Module):
    """Convolution of edge 3, batch normalisation and ReLU; orientation-adaptive where it is asked for.

    Args:
        inputs: Channels.
        outputs: Channels.
        oriented: With an OA-LFE module.
        kernel: Of it.
        vectors: Of it.
    """

    def __init__(self, inputs: int, outputs: int, *, oriented: bool, kernel: bool = True, vectors: bool = True):
        super().__init__()
        conv = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.conv = OrientedConv(conv, kernel=kernel, vectors=vectors) if oriented else conv
        self.norm: nn.Module = nn.BatchNorm3d(outputs)

    def forward(self, x: Tensor, code: Tensor | None) -> Tensor:
        """Features (batch, channels, x, y, z) and, for an oriented one, codes."""
        found = self.conv(x) if code is None else self.conv(x, code)
        return nn.functional.relu(self.norm(found), inplace=True)
