"""Sources around a mask whose field fits another one: what explains a background field."""

import math

import torch

from chimap.arrays import Mask, Triple, Volume
from chimap.linalg import conjugate_gradient, fast_shape
from chimap.physics.dipole import DipoleModel


class SourcesAround:
    """Sources around a mask, kept from one fit to the next.

    Args:
        mask: Shape (x, y, z); no source lies in it.
        weight: Of the squared misfit, zero outside the mask.
        voxel_size: [mm].
        b0: Direction.
        reach: Sources lie up to so far [mm] around the grid.
    """

    def __init__(self, mask: Mask, weight: Volume, voxel_size: Triple, b0: Triple, *, reach: float):
        border = [math.ceil(reach / length) for length in voxel_size]
        shape = fast_shape([n + 2 * extra for n, extra in zip(mask.shape, border, strict=True)])
        self.place = tuple(slice(extra, extra + n) for n, extra in zip(mask.shape, border, strict=True))
        self.model = DipoleModel(shape, voxel_size, b0, padding=0).to(weight.device)
        self.sources = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.outside = torch.ones_like(self.sources)
        self.outside[self.place] = (~mask).to(weight.dtype)
        self.weight = torch.zeros_like(self.sources)
        self.weight[self.place] = weight

    def fitted(self, field: Volume, *, iterations: int, tolerance: float = 1e-3) -> Volume:
        """The field [ppm] of sources whose field is closest to the given one, on its grid.

        Args:
            field: [ppm], of the mask's shape.
            iterations: Most conjugate-gradient steps on the normal equations.
            tolerance: Stop once the residual has shrunk by this factor.
        """
        goal = torch.zeros_like(self.sources)
        goal[self.place] = field
        self.sources = conjugate_gradient(
            lambda chi: self.outside * self.model(self.weight * self.model(self.outside * chi)),
            self.outside * self.model(self.weight * goal),
            start=self.sources,
            iterations=iterations,
            tolerance=tolerance,
        )
        return self.model(self.sources)[self.place]
