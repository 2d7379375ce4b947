"""From what was measured to what a network finds: scales, channels and masks around it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from chimap.arrays import Mask, Volume
from chimap.networks.symmetry import standard_turns


def predict(
    network: nn.Module,
    volume: Tensor,
    mask: Mask,
    *,
    input_scale: float,
    output_scale: float,
    b0_direction: Tensor | None = None,
    voxel_size: Tensor | None = None,
    radians_per_ppm: Tensor | None = None,
    shares: Tensor | None = None,
    images: Sequence[int] = (0,),
) -> Volume:
    """What a network finds [ppm], such as chi of a local field.

    Args:
        network: From `networks.build`, or one wrapped for several processes.
        volume: Local or total field [ppm] or wrapped phase [rad], as it has learned, (batch, x, y, z); the phase of
            several echoes (batch, echo, x, y, z).
        mask: (batch, x, y, z).
        input_scale: What a field is multiplied by [1/ppm]; of a phase, its Laplacian.
        output_scale: What the network gives is multiplied by [ppm].
        b0_direction: Unit vectors, (batch, 3); for networks that know of it.
        voxel_size: [mm], (batch, 3); likewise.
        radians_per_ppm: Of the phase, (batch,), or of each echo, (batch, echo).
        shares: How much each echo counts, as the phase; of sum 1.
        images: Which mirror images of the volume it is shown, see `mirror_images`: the mean of what it finds in them.

    Returns:
        (batch, x, y, z), zero outside the mask, float32. What the last of several outputs holds.
    """
    found = [
        outputs(
            network,
            volume,
            mask,
            input_scale=input_scale,
            output_scale=output_scale,
            b0_direction=b0_direction,
            voxel_size=voxel_size,
            radians_per_ppm=radians_per_ppm,
            shares=shares,
            image=image,
        )[:, -1]
        for image in images
    ]
    return torch.stack(found).mean(dim=0)


def mirror_images(network: nn.Module, b0_direction: Sequence[float], most: int) -> int:
    """How many mirror images of a scan a network is shown that is told the direction (x, y, z) of B0: up to `most`.

    What it finds differs from image to image by how well it has learned, so a mean of them is better. A network without
    a standard frame has not been asked to know any, which makes one.
    """
    if not getattr(getattr(network, "shape", None), "standard_frame", False):
        return 1
    return max(1, min(most, len(standard_turns(torch.tensor(b0_direction)))))


def outputs(
    network: nn.Module,
    volume: Tensor,
    mask: Mask,
    *,
    input_scale: float,
    output_scale: float,
    b0_direction: Tensor | None = None,
    voxel_size: Tensor | None = None,
    radians_per_ppm: Tensor | None = None,
    shares: Tensor | None = None,
    begun: Volume | None = None,
    local_field: Volume | None = None,
    local_only: bool = False,
    image: int = 0,
) -> Tensor:
    """As `predict`, all that a network finds in one image of the volume: (batch, outputs, x, y, z).

    A network that finds the local field [ppm] first can be given one to begin with, another one to go on with, or stop
    there.
    """
    n, inside = len(volume), mask.to(volume)
    inner = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    if inner.channels == "phase":
        assert radians_per_ppm is not None
        gain = inside[:, None] * (input_scale / radians_per_ppm).reshape(n, -1, 1, 1, 1)
        gain = gain if shares is None else gain * shares
        channels = torch.cat([volume.reshape(gain.shape), gain], dim=1)
    else:
        parts = [volume * inside * input_scale]
        if inner.channels == "field and mask":
            parts.append(inside)
        parts += [given * inside * input_scale for given in (begun, local_field) if given is not None]
        channels = torch.stack(parts, dim=1)
    b0 = volume.new_tensor([[0.0, 0.0, 1.0]]).expand(n, 3) if b0_direction is None else b0_direction
    size = volume.new_ones(n, 3) if voxel_size is None else voxel_size
    more: dict[str, int] = {"local_only": True} if local_only else {}
    more |= {"image": image} if image else {}
    found = network(channels, b0, size, **more)
    return found.float() * output_scale * inside[:, None]
