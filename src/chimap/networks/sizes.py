"""Volumes of any size for networks that halve it: padded by zeros to whole multiples, and cropped again."""

from torch import Tensor
from torch.nn.functional import pad

Placed = tuple[slice, slice, slice]


def padded(volumes: Tensor, multiple: int) -> tuple[Tensor, Placed]:
    """Zeros on both sides of (..., x, y, z) until each size is a multiple, and where the volumes then lie."""
    size = volumes.shape[-3:]
    missing = [-n % multiple for n in size]
    x, y, z = (slice(m // 2, m // 2 + n) for m, n in zip(missing, size, strict=True))
    if any(missing):
        volumes = pad(volumes, [side for n in reversed(missing) for side in (n // 2, n - n // 2)])
    return volumes, (x, y, z)


def cropped(volumes: Tensor, placed: Placed) -> Tensor:
    """What `padded` was given."""
    return volumes[(..., *placed)]
