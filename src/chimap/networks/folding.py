"""Batch normalisation of a network that has learned is an affine map: folded into the convolution before it."""

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from chimap.networks.orientation import ConvUnit, OrientedConv


@torch.no_grad()
def fold(network: nn.Module) -> None:
    """Fold what can be folded, in place; the network gives the same, and passes over its features less often.

    Args:
        network: In evaluation mode.
    """
    for module in network.modules():
        if isinstance(module, ConvUnit):
            if isinstance(module.conv, OrientedConv):
                _fold_oriented(module)
            elif isinstance(module.conv, nn.Conv3d) and isinstance(module.norm, nn.BatchNorm3d):
                module.conv = fuse_conv_bn_eval(module.conv, module.norm)
                module.norm = nn.Identity()
        elif isinstance(module, nn.Sequential):
            for index in range(len(module) - 1):
                conv, norm = module[index], module[index + 1]
                if isinstance(conv, nn.Conv3d | nn.ConvTranspose3d) and isinstance(norm, nn.BatchNorm3d):
                    module[index] = fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose3d))
                    module[index + 1] = nn.Identity()


def _fold_oriented(unit: ConvUnit) -> None:
    """The vectors beside the convolution are scaled with it; without them there is nothing to scale."""
    oriented, norm = unit.conv, unit.norm
    assert isinstance(oriented, OrientedConv)
    if oriented.vector_head is None or not isinstance(norm, nn.BatchNorm3d):
        return
    last = oriented.vector_head[-1]
    assert isinstance(last, nn.Linear) and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    oriented.conv = fuse_conv_bn_eval(oriented.conv, norm)
    last.weight.mul_(scale.repeat(2)[:, None])
    last.bias.mul_(scale.repeat(2))
    unit.norm = nn.Identity()
