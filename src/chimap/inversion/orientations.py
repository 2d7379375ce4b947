"""COSMOS: one susceptibility map from scans of one head in several orientations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chimap.arrays import Triple, Volume
from chimap.errors import InputError
from chimap.linalg import conjugate_gradient, irfft, rfft
from chimap.physics.dipole import DipoleModel, unit_vector

ALIKE = 5.0
"""Scans whose directions of B0 all lie within this angle [degrees] are as good as one."""
WEAK = 2.5e-3
"""Where the mean of D^2 over the scans is smaller, |D| below 0.05, k-space counts as hardly measured."""
NEVER = 1e-6
"""Where it is smaller than this, only rounding is left."""


def cosmos(
    local_field: Tensor,
    mask: Tensor,
    dipoles: Sequence[DipoleModel],
    weight: Tensor | None = None,
    *,
    iterations: int = 30,
    tolerance: float = 3e-3,
) -> Volume:
    r"""Minimise sum_i |W_i (D_i chi - f_i)|^2 over chi inside the masks, for scans i with other directions of B0.

    Conjugate gradients begin at the published solution, chi(k) = sum_i D_i f_i / sum_i D_i^2, for which fields count
    as zero outside the mask; 0 iterations leave it at that.

    Args:
        local_field: f [ppm], one volume for each scan, all in one frame of the head, shape (scan, x, y, z).
        mask: Where each f is valid, same shape.
        dipoles: D of each scan, with B0 in the axes of that frame.
        weight: W, no unit, about 1 where the field is good; same shape. It counts as zero outside the mask, and as 1
            inside if None.
        iterations: Most conjugate-gradient steps.
        tolerance: Stop once the residual has shrunk by this factor.

    Returns:
        chi [ppm], shape (x, y, z), zero outside all masks.

    Raises:
        InputError: Fewer scans than two, or not as many directions as fields.

    References:
        Liu et al. 2009, doi:10.1002/mrm.21828.
    """
    scans, shape = len(dipoles), dipoles[0].padded_shape
    if scans < 2 or len(local_field) != scans:
        raise InputError(f"got {len(local_field)} fields and {scans} directions of B0, needed two or more of both")
    squared = torch.stack([dipole.spectrum for dipole in dipoles]).square().mean(dim=0)
    inside = mask.any(dim=0)

    def filtered(volume: Tensor, inverse: Tensor) -> Tensor:
        return irfft(rfft(volume, shape) * inverse, shape, dipoles[0].shape) * inside

    def back(fields: Tensor, trust: Tensor) -> Tensor:
        total = torch.zeros_like(fields[0])
        for dipole, part, field in zip(dipoles, trust, fields, strict=True):
            total += dipole.adjoint(part * field)
        return total / scans

    inverse = torch.where(squared > NEVER, squared.reciprocal(), 0)
    start = filtered(back(local_field, mask.to(local_field)), inverse)
    if iterations == 0:
        return start
    trust = (mask.to(local_field) if weight is None else weight * mask).square()
    # where hardly anything was measured, the inverse would amplify what masks and weights mix into it
    eased = (squared + WEAK).reciprocal()
    return conjugate_gradient(
        lambda chi: back(torch.stack([dipole(chi) for dipole in dipoles]), trust) * inside,
        back(local_field, trust) * inside,
        start=start,
        precondition=lambda residual: filtered(residual, eased),
        iterations=iterations,
        tolerance=tolerance,
    )


@dataclass(frozen=True)
class Conditioning:
    """How well several directions of B0 determine chi. D^2 is a mean over the scans, k any direction in k-space.

    Attributes:
        angles: Between every two directions [degrees], B0 up and down being the same: (1, 2), (1, 3), ... (2, 3) ...
        smallest: D^2 in the direction that is measured worst; 4/9 at most anywhere.
        percentile: D^2 that 1 % of the directions fall below.
        condition_number: sqrt of the largest over the smallest D^2.
        noise_gain: Noise of chi over that of each field.
    """

    angles: tuple[float, ...]
    smallest: float
    percentile: float
    condition_number: float
    noise_gain: float

    @property
    def doubt(self) -> str | None:
        """Why chi may be poor, in one sentence; None where it is well determined."""
        if self.smallest >= WEAK:
            return None
        listed = ", ".join(f"{angle:.0f}" for angle in self.angles)
        many = "the cones of two directions always meet" if len(self.angles) == 1 else "their cones meet or nearly so"
        return (
            f"the directions of B0 in the head, {listed} degrees apart, leave a part of k-space unmeasured ({many}; "
            f"smallest mean of D^2 {self.smallest:.2g}, condition number {self.condition_number:.0f}): expect streaks; "
            "best are three scans 60 degrees apart about one axis, or tilts of 20 degrees and more about two axes"
        )


def conditioning(b0_directions: Sequence[Triple], *, samples: int = 20_000) -> Conditioning:
    """How well chi is determined by scans with these directions of B0 in the head.

    D depends on the direction of k alone, so `samples` of those tell everything, whatever the grid.

    Raises:
        InputError: The directions are as good as one.

    References:
        Liu et al. 2009, doi:10.1002/mrm.21828.
    """
    b = torch.tensor([unit_vector(direction) for direction in b0_directions], dtype=torch.float64)
    cosines = (b @ b.T).abs().clamp(max=1)
    first, second = torch.triu_indices(len(b), len(b), 1)
    angles = tuple(torch.rad2deg(torch.acos(cosines[first, second])).tolist())
    if not angles or max(angles) < ALIKE:
        found = f"by {max(angles):.1f} degrees at most" if angles else "not at all, as there is one scan"
        raise InputError(
            f"the directions of B0 in the head differ {found}: COSMOS needs the head, not the slab, turned between "
            f"scans, by {ALIKE:g} degrees at the least and better by 20 and more"
        )
    # a spiral from the pole to the equator, every sample for the same area
    index = torch.arange(samples, dtype=torch.float64) + 0.5
    z = 1 - index / samples
    turn = math.pi * (1 + math.sqrt(5)) * index
    k = torch.stack([(1 - z**2).sqrt() * turn.cos(), (1 - z**2).sqrt() * turn.sin(), z])
    squared = (1 / 3 - (b @ k) ** 2).square().mean(dim=0)
    smallest = float(squared.min())
    return Conditioning(
        angles=angles,
        smallest=smallest,
        percentile=float(squared.quantile(0.01)),
        condition_number=math.sqrt(float(squared.max()) / smallest),
        noise_gain=math.sqrt(float(squared.reciprocal().mean()) / len(b)),
    )
