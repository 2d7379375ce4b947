"""What a network that has learned does at every call, done once: put into the weights of its convolutions."""

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from chimap.networks.orientation import ConvUnit, OrientationCode, OrientedConv
from chimap.networks.symmetry import direction_in, standard_turns, turned_back


@torch.no_grad()
def fold(network: nn.Module) -> None:
    """Fold batch normalisation, an affine map, into the convolution before it, in place.

    The network gives the same, and passes over its features less often.

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


@torch.no_grad()
def at_direction(network: nn.Module, b0_direction: Tensor) -> dict[str, Tensor]:
    """Weights of the same network without OA-LFE that does on scans of one direction what this one does.

    An edit by a direction that does not change is a change of the weights, and so is another frame of axes.

    Args:
        network: With OA-LFE: it has a `code`, and a `shape` that says whether axes are exchanged.
        b0_direction: Unit vector, (3,).
    """
    assert isinstance(network.code, OrientationCode)
    turn = standard_turns(b0_direction)[0] if network.shape.standard_frame else ([0, 1, 2], [])  # pyright: ignore
    code = network.code(direction_in(turn, b0_direction)[None])
    weights = {name: value.clone() for name, value in network.state_dict().items() if not name.startswith("code.")}
    for name, module in network.named_modules():
        if isinstance(module, OrientedConv):
            weights = {key: value for key, value in weights.items() if not key.startswith(f"{name}.")}
            kernel, scale, shift = (part[0] for part in module.edits(code))
            weights[f"{name}.weight"], weights[f"{name}.bias"] = module.edited(kernel, scale, shift)
    return {
        name: turned_back(value.flatten(0, 1), turn).reshape(value.shape) if value.ndim == 5 else value
        for name, value in weights.items()
    }
