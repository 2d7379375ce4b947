"""From what was measured to what a network finds: scales, channels and masks around it."""

import torch
from torch import Tensor, nn

from chimap.arrays import Mask, Volume


def predict(
    network: nn.Module,
    volume: Volume,
    mask: Mask,
    *,
    input_scale: float,
    output_scale: float,
    b0_direction: Tensor | None = None,
    voxel_size: Tensor | None = None,
    radians_per_ppm: Tensor | None = None,
) -> Volume:
    """What a network finds [ppm], such as chi of a local field.

    Args:
        network: From `networks.build`, or one wrapped for several processes.
        volume: Local or total field [ppm] or wrapped phase [rad], as it has learned, (batch, x, y, z).
        mask: Same shape.
        input_scale: What a field is multiplied by [1/ppm]; of a phase, its Laplacian.
        output_scale: What the network gives is multiplied by [ppm].
        b0_direction: Unit vectors, (batch, 3); for networks that know of it.
        voxel_size: [mm], (batch, 3); likewise.
        radians_per_ppm: Of the phase, (batch,).

    Returns:
        Same shape, zero outside the mask, float32. What the last of several outputs holds.
    """
    return outputs(
        network,
        volume,
        mask,
        input_scale=input_scale,
        output_scale=output_scale,
        b0_direction=b0_direction,
        voxel_size=voxel_size,
        radians_per_ppm=radians_per_ppm,
    )[:, -1]


def outputs(
    network: nn.Module,
    volume: Volume,
    mask: Mask,
    *,
    input_scale: float,
    output_scale: float,
    b0_direction: Tensor | None = None,
    voxel_size: Tensor | None = None,
    radians_per_ppm: Tensor | None = None,
    begun: Volume | None = None,
    local_field: Volume | None = None,
    local_only: bool = False,
) -> Tensor:
    """As `predict`, all that a network finds: (batch, outputs, x, y, z).

    A network that finds the local field [ppm] first can be given one to begin with, another one to go on with, or stop
    there.
    """
    inside = mask.to(volume)
    inner = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    if inner.channels == "phase":
        assert radians_per_ppm is not None
        channels = [volume, inside * (input_scale / radians_per_ppm).reshape(-1, 1, 1, 1)]
    else:
        channels = [volume * inside * input_scale]
        if inner.channels == "field and mask":
            channels.append(inside)
        channels += [given * inside * input_scale for given in (begun, local_field) if given is not None]
    n = len(volume)
    b0 = volume.new_tensor([[0.0, 0.0, 1.0]]).expand(n, 3) if b0_direction is None else b0_direction
    size = volume.new_ones(n, 3) if voxel_size is None else voxel_size
    more = {"local_only": True} if local_only else {}
    found = network(torch.stack(channels, dim=1), b0, size, **more)
    return found.float() * output_scale * inside[:, None]
