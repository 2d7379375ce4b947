"""Where the fluid of the ventricles is: chi's zero, for those who want one that people share."""

import numpy as np
import torch
from scipy import ndimage

from chimap.arrays import Mask, Triple, Volume
from chimap.errors import InputError


def ventricles(
    r2star: Volume, mask: Mask, voxel_size: Triple, *, most: float = 5.0, reach: float = 30.0, share: float = 0.1
) -> Mask:
    """Cerebrospinal fluid (CSF) in the middle of the brain, by its slow decay.

    Args:
        r2star: R2* [1/s], shape (x, y, z), such as `r2star_map` gives it.
        mask: Where it is known.
        voxel_size: [mm].
        most: R2* of fluid is below this [1/s].
        reach: Fluid farther than this [mm] from the mask's centre of mass does not count: in the sulci it shares its
            voxels with cortex and veins.
        share: Connected parts (by faces) count from this share of the largest one's volume on; smaller ones are noise.

    Returns:
        Same shape, within the mask.

    Raises:
        InputError: There is none.

    References:
        The threshold and where it applies: Liu et al. 2018, doi:10.1002/mrm.26946.
    """
    inside = mask.numpy(force=True)
    positions = [np.arange(n) * size for n, size in zip(inside.shape, voxel_size, strict=True)]
    x, y, z = np.ix_(*positions)
    a, b, c = (at * size for at, size in zip(ndimage.center_of_mass(inside), voxel_size, strict=True))
    near = (x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2 <= reach**2
    parts, _ = ndimage.label(inside & near & (r2star.numpy(force=True) < most))  # pyright: ignore
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    if not sizes.any():
        raise InputError(
            f"no fluid was found in the middle of the brain: R2* is nowhere below {most:g} /s within {reach:g} mm of it"
        )
    return torch.from_numpy((sizes >= share * sizes.max())[parts] & (parts > 0)).to(mask.device)
