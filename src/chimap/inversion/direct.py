"""Inversions in closed form: one multiplication in k-space.

All take the local field to be zero outside the mask and return chi that is zero there; the mean of chi over the
whole grid is not determined by the field and stays zero.
"""

import torch
from torch import Tensor

from chimap.arrays import Mask, Volume
from chimap.linalg import irfft, laplacian_spectrum, rfft
from chimap.physics.dipole import DipoleModel


def tkd(
    local_field: Volume,
    mask: Mask,
    dipole: DipoleModel,
    *,
    threshold: float = 0.15,
    correct_underestimation: bool = False,
) -> Volume:
    """Thresholded k-space division: chi(k) = f(k) / D(k), with D replaced by sign(D) threshold where it is smaller.

    Args:
        local_field: f [ppm], shape (*batch, x, y, z).
        mask: Where f is valid, same shape.
        dipole: D, for the same grid.
        threshold: Smallest |D| that is divided by, no unit.
        correct_underestimation: Divide by the point spread function's value at the origin, which is below 1
            because the field near the cone is divided by too much.

    Returns:
        chi [ppm], zero outside the mask.

    References:
        Shmueli et al. 2009, doi:10.1002/mrm.22135; correction: Schweser et al. 2013, doi:10.1002/mrm.24405.
    """
    d = dipole.spectrum
    bounded = torch.where(d.abs() > threshold, d, d.sign() * threshold)
    # Points that lie exactly on the cone (and k = 0) have no sign, only rounding: they stay out.
    inverse = torch.where(d.abs() > 1e-6, bounded.reciprocal(), 0)
    if correct_underestimation:
        inverse = inverse / _mean_over_full_spectrum(d * inverse, dipole)
    return _filter(local_field, mask, dipole, inverse)


def tsvd(
    local_field: Volume,
    mask: Mask,
    dipole: DipoleModel,
    *,
    threshold: float = 0.15,
    correct_underestimation: bool = False,
) -> Volume:
    """Truncated division: chi(k) = f(k) / D(k) where |D| exceeds the threshold, else 0.

    Arguments, result and correction as for `tkd`.

    References:
        Wharton et al. 2010, doi:10.1002/mrm.22334.
    """
    d = dipole.spectrum
    inverse = torch.where(d.abs() > threshold, d.reciprocal(), 0)
    if correct_underestimation:
        inverse = inverse / _mean_over_full_spectrum(d * inverse, dipole)
    return _filter(local_field, mask, dipole, inverse)


def tikhonov(local_field: Volume, mask: Mask, dipole: DipoleModel, *, regularisation: float = 1e-2) -> Volume:
    """Minimise |D chi - f|^2 + lambda |chi|^2 in closed form: chi(k) = D f / (D^2 + lambda).

    Args:
        local_field: f [ppm], shape (*batch, x, y, z).
        mask: Where f is valid, same shape.
        dipole: D, for the same grid.
        regularisation: lambda, no unit.

    Returns:
        chi [ppm], zero outside the mask.

    References:
        Bilgic et al. 2014, doi:10.1002/mrm.25029; Kressler et al. 2010, doi:10.1109/TMI.2009.2023787.
    """
    d = dipole.spectrum
    return _filter(local_field, mask, dipole, d / (d.square() + regularisation))


def l2_gradient(local_field: Volume, mask: Mask, dipole: DipoleModel, *, regularisation: float = 3e-2) -> Volume:
    """Minimise |D chi - f|^2 + lambda |grad chi|^2 in closed form: chi(k) = D f / (D^2 + lambda |G|^2).

    Args:
        local_field: f [ppm], shape (*batch, x, y, z).
        mask: Where f is valid, same shape.
        dipole: D, for the same grid.
        regularisation: lambda [mm^2]; grad in 1/mm.

    Returns:
        chi [ppm], zero outside the mask.

    References:
        Bilgic et al. 2014, doi:10.1002/mrm.25029.
    """
    d = dipole.spectrum
    g = laplacian_spectrum(dipole.padded_shape, dipole.voxel_size, device=d.device)
    penalised = d.square() + regularisation * g
    penalised[0, 0, 0] = 1  # D is 0 there too, and so is the result
    return _filter(local_field, mask, dipole, d / penalised)


def _filter(local_field: Volume, mask: Mask, dipole: DipoleModel, inverse: Tensor) -> Volume:
    spectrum = rfft(local_field * mask, dipole.padded_shape)
    spectrum *= inverse
    return irfft(spectrum, dipole.padded_shape, dipole.shape) * mask


def _mean_over_full_spectrum(half: Tensor, dipole: DipoleModel) -> Tensor:
    """Mean over all frequencies of a quantity that is even in k and known on the half spectrum."""
    z = dipole.padded_shape[2]
    total = 2 * half.double().sum() - half[..., 0].double().sum()
    if z % 2 == 0:
        total = total - half[..., -1].double().sum()
    x, y, _ = dipole.padded_shape
    return (total / (x * y * z)).float()
