"""Architectures by the record that describes them."""

from typing import Any

from torch import nn

from chimap.networks.affine import AffineNet, AffineShape
from chimap.networks.laplacian import InstantNet, InstantShape
from chimap.networks.octave import OctaveNet, OctaveShape
from chimap.networks.proximal import ProximalNet, ProximalShape
from chimap.networks.unet import UNet, UNetShape
from chimap.networks.variational import VariationalNet, VariationalShape

NetworkShape = UNetShape | InstantShape | OctaveShape | VariationalShape | ProximalShape | AffineShape
_KINDS: dict[str, tuple[type, type[nn.Module]]] = {
    "unet": (UNetShape, UNet),
    "instant": (InstantShape, InstantNet),
    "octave": (OctaveShape, OctaveNet),
    "variational": (VariationalShape, VariationalNet),
    "proximal": (ProximalShape, ProximalNet),
    "affine": (AffineShape, AffineNet),
}


def build(shape: NetworkShape) -> nn.Module:
    """A network with random weights. Called with channels (batch, n, x, y, z), directions of B0 (batch, 3) and voxel
    sizes (batch, 3), it gives (batch, outputs, x, y, z); which channels, its attribute `channels` says.
    """
    return _KINDS[shape.kind][1](shape)


def shape_of(content: dict[str, Any]) -> NetworkShape:
    """The record of what JSON holds; one without a kind is a U-Net."""
    return _KINDS[content.get("kind", "unet")][0](**content)
