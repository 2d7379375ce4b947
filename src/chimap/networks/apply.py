"""From a field in ppm to chi in ppm: scales and masks around a network."""

import torch
from torch import nn

from chimap.arrays import Mask, Volume
from chimap.networks.unet import UNet


def predict(network: nn.Module, field: Volume, mask: Mask, *, input_scale: float, output_scale: float) -> Volume:
    """chi [ppm] of a local field [ppm].

    Args:
        network: A `UNet`, or one wrapped for several processes, of one input (field) or two (field and mask).
        field: Shape (batch, x, y, z).
        mask: Same shape.
        input_scale: What the field is multiplied by [1/ppm].
        output_scale: What the network gives is multiplied by [ppm].

    Returns:
        Same shape, zero outside the mask, float32.
    """
    channels = [field * mask * input_scale]
    if _inputs(network) == 2:
        channels.append(mask.to(field))
    found = network(torch.stack(channels, dim=1))[:, 0]
    return found.float() * output_scale * mask


def _inputs(network: nn.Module) -> int:
    inner = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    assert isinstance(inner, UNet)
    return inner.shape.inputs
