"""Background field removal: from the field of all sources to that of the sources inside the mask.

All share one signature: (total field, field noise, mask, dipole model) -> (local field, mask where it is valid).
They work on the mask's bounding box, so a large empty image costs nothing.
"""

import torch
from torch import Tensor

from chimap.arrays import Mask, Shape, Volume
from chimap.errors import InputError
from chimap.linalg import (
    bounding_box,
    conjugate_gradient,
    crop,
    divergence,
    fast_shape,
    gradient,
    irfft,
    laplacian_spectrum,
    rfft,
)
from chimap.physics.dipole import DipoleModel
from chimap.physics.mean_value import harmonic_inside, sharp_field, sphere_mean, where_whole
from chimap.physics.shim import shim_field
from chimap.physics.sources_around import SourcesAround


def vsharp(
    total_field: Volume,
    field_noise: Volume | None,
    mask: Mask,
    dipole: DipoleModel,
    *,
    largest_radius: float = 12.0,
    smallest_radius: float = 2.0,
    radii: int = 11,
    threshold: float = 0.05,
) -> tuple[Volume, Mask]:
    """V-SHARP: a harmonic field equals its mean over any sphere, so the difference from the mean is local.

    Every voxel takes the largest sphere around it that lies in the mask; the result is deconvolved with the kernel
    of the largest sphere, frequencies below `threshold` left out.

    Args:
        total_field: [ppm], shape (x, y, z).
        field_noise: Not used; part of the shared signature.
        mask: Where the total field is valid.
        dipole: For the grid's voxel size.
        largest_radius: [mm].
        smallest_radius: [mm]; never less than the largest side of a voxel.
        radii: Number of spheres, evenly spaced between the two.
        threshold: Smallest value of the deconvolution kernel (delta minus sphere) that is divided by.

    Returns:
        Local field [ppm], zero outside the second result, the mask of the voxels in whose smallest sphere every
        field value was known.

    Raises:
        InputError: No sphere fits into the mask.

    References:
        Wu et al. 2012, doi:10.1002/mrm.23000; SHARP: Schweser et al. 2011, doi:10.1016/j.neuroimage.2010.10.070.
    """
    voxel_size = dipole.voxel_size
    smallest = max(smallest_radius, max(voxel_size))
    steps = torch.linspace(max(largest_radius, smallest), smallest, max(radii, 1)).tolist()
    box = bounding_box(mask)
    local, covered = sharp_field(total_field[box] * mask[box], mask[box], voxel_size, steps, threshold=threshold)
    return _place(local, box, total_field), _place(covered, box, mask)


def sharp(
    total_field: Volume,
    field_noise: Volume | None,
    mask: Mask,
    dipole: DipoleModel,
    *,
    radius: float = 4.0,
    threshold: float = 0.05,
) -> tuple[Volume, Mask]:
    """SHARP: as V-SHARP, with spheres of one radius, so that the rim is given up to that depth.

    Args:
        total_field: [ppm], shape (x, y, z).
        field_noise: Not used; part of the shared signature.
        mask: Where the total field is valid.
        dipole: For the grid's voxel size.
        radius: Of the spheres [mm]; never less than the largest side of a voxel.
        threshold: Smallest value of the deconvolution kernel (delta minus sphere) that is divided by.

    Returns:
        Local field [ppm], zero outside the second result: the voxels whose whole sphere lies in `mask`.

    Raises:
        InputError: The sphere fits nowhere into the mask.

    References:
        Schweser et al. 2011, doi:10.1016/j.neuroimage.2010.10.070.
    """
    single = {"largest_radius": radius, "smallest_radius": radius, "radii": 1}
    return vsharp(total_field, field_noise, mask, dipole, **single, threshold=threshold)


def ismv(
    total_field: Volume,
    field_noise: Volume | None,
    mask: Mask,
    dipole: DipoleModel,
    *,
    radius: float = 3.0,
    iterations: int = 200,
    tolerance: float = 1e-4,
) -> tuple[Volume, Mask]:
    """iSMV: the background equals its own mean over spheres, and the total field at the rim; the rest is local.

    The published iteration, means over spheres again and again, is taken to its end by conjugate gradients: see
    `physics.mean_value.harmonic_inside`.

    Args:
        total_field: [ppm], shape (x, y, z).
        field_noise: Not used; part of the shared signature.
        mask: Where the total field is valid.
        dipole: For the grid's voxel size.
        radius: Of the spheres [mm]; never less than the largest side of a voxel.
        iterations: Most conjugate-gradient steps.
        tolerance: Stop once the residual has shrunk by this factor.

    Returns:
        Local field [ppm], zero outside the second result: the voxels whose whole sphere lies in `mask`.

    Raises:
        InputError: The sphere fits nowhere into the mask.

    References:
        Wen et al. 2014, doi:10.1002/mrm.24998.
    """
    radius = max(radius, max(dipole.voxel_size))
    box = bounding_box(mask)
    field = total_field[box] * mask[box]
    background, valid = harmonic_inside(
        field, mask[box], dipole.voxel_size, radius, iterations=iterations, tolerance=tolerance
    )
    return _place((field - background) * valid, box, total_field), _place(valid, box, mask)


def lbv(
    total_field: Volume,
    field_noise: Volume | None,
    mask: Mask,
    dipole: DipoleModel,
    *,
    iterations: int = 100,
    tolerance: float = 1e-4,
) -> tuple[Volume, Mask]:
    """LBV: the background solves Laplace's equation with the total field as its boundary values.

    At the rim the local field is taken to be zero: it is small there, but not nothing. The 7-point Laplacian is
    inverted by conjugate gradients, preconditioned by the same on the whole grid.

    Args:
        total_field: [ppm], shape (x, y, z).
        field_noise: Not used; part of the shared signature.
        mask: Where the total field is valid.
        dipole: For the grid's voxel size.
        iterations: Most conjugate-gradient steps.
        tolerance: Stop once the residual has shrunk by this factor.

    Returns:
        Local field [ppm], zero outside the second result: the voxels whose six neighbours lie in `mask`.

    Raises:
        InputError: There is no such voxel.

    References:
        Zhou et al. 2014, doi:10.1002/nbm.3064.
    """
    size = dipole.voxel_size
    box = bounding_box(mask)
    inside, field = mask[box], total_field[box] * mask[box]
    shape = fast_shape([n + 2 for n in field.shape])  # a voxel of zeros between the faces, where differences wrap
    inside, field = _embedded(inside, shape), _embedded(field, shape)
    valid = inside.clone()
    for axis in range(3):
        valid &= inside.roll(1, axis) & inside.roll(-1, axis)
    if not valid.any():
        raise InputError(f"no voxel of the mask of {int(mask.sum())} voxels has its six neighbours in it")
    spectrum = laplacian_spectrum(shape, size, device=field.device)
    inverse = 1 / (spectrum + float(spectrum[1, 0, 0]))

    def laplacian(volume: Volume) -> Volume:
        return -divergence(gradient(volume, size), size)

    background = conjugate_gradient(
        lambda volume: valid * laplacian(volume),
        valid * -laplacian(field * ~valid),
        start=field * valid,
        precondition=lambda volume: valid * irfft(rfft(volume) * inverse, shape),
        iterations=iterations,
        tolerance=tolerance,
    )
    local = crop((field - background) * valid, mask[box].shape)
    return _place(local, box, total_field), _place(crop(valid, mask[box].shape), box, mask)


def resharp(
    total_field: Volume,
    field_noise: Volume | None,
    mask: Mask,
    dipole: DipoleModel,
    *,
    radius: float = 4.0,
    regularisation: float = 1e-3,
    iterations: int = 100,
    tolerance: float = 1e-3,
) -> tuple[Volume, Mask]:
    """Minimise |M S (f - l)|^2 + lambda |l|^2 over the local field l; S is delta minus the mean over a sphere.

    Args:
        total_field: f [ppm], shape (x, y, z).
        field_noise: Not used; part of the shared signature.
        mask: Where the total field is valid.
        dipole: For the grid's voxel size.
        radius: Of the sphere [mm]; never less than the largest side of a voxel.
        regularisation: lambda, no unit.
        iterations: Most conjugate-gradient steps.
        tolerance: Stop once the residual has shrunk by this factor.

    Returns:
        Local field [ppm], zero outside the second result, M: the voxels whose whole sphere lies in `mask`.

    Raises:
        InputError: The sphere fits nowhere into the mask.

    References:
        Sun and Wilman 2014, doi:10.1002/mrm.24765.
    """
    radius = max(radius, max(dipole.voxel_size))
    box = bounding_box(mask)
    field = total_field[box] * mask[box]
    mean = sphere_mean(field, dipole.voxel_size, radius)
    valid = where_whole(mean, mask[box], radius)

    def filtered(volume: Volume) -> Volume:
        return volume - mean(volume)

    local = conjugate_gradient(
        lambda volume: filtered(valid * filtered(volume)) + regularisation * volume,
        filtered(valid * filtered(field)),
        iterations=iterations,
        tolerance=tolerance,
    )
    return _place(local * valid, box, total_field), _place(valid, box, mask)


def pdf(
    total_field: Volume,
    field_noise: Volume | None,
    mask: Mask,
    dipole: DipoleModel,
    *,
    margin: float = 30.0,
    iterations: int = 60,
    tolerance: float = 1e-3,
) -> tuple[Volume, Mask]:
    """Projection onto dipole fields: minimise |W M (f - D chi)|^2 over sources chi outside the mask, subtract D chi.

    What the scanner's shims make, harmonic polynomials up to second order, is fitted and subtracted first: it has
    no sources near the head, and the constant none at all.

    Args:
        total_field: f [ppm], shape (x, y, z).
        field_noise: Its inverse is W, scaled to a median of 1 and kept within 0.5 and 2, because sources right
            behind a rim that counts for nothing may take any value; None weighs all voxels alike.
        mask: M, where the total field is valid.
        dipole: Voxel size and B0 direction.
        margin: Sources may lie this far [mm] around the mask's bounding box, also beyond the image.
        iterations: Most conjugate-gradient steps on the normal equations.
        tolerance: Stop once the residual has shrunk by this factor.

    Returns:
        Local field [ppm], zero outside the mask; the same mask.

    References:
        Liu et al. 2011, doi:10.1002/nbm.1670.
    """
    size = dipole.voxel_size
    box = bounding_box(mask)
    inside, field = mask[box], total_field[box] * mask[box]
    weight = inside.to(field.dtype) if field_noise is None else _relative_weight(field_noise, mask, box)
    square = weight.square()
    target = field - shim_field(field, square, size) * inside
    around = SourcesAround(inside, square, size, dipole.b0_direction, reach=margin)
    local = (target - around.fitted(target, iterations=iterations, tolerance=tolerance)) * inside
    return _place(local, box, total_field), mask.clone()


def _embedded(volume: Tensor, shape: Shape) -> Tensor:
    """The volume at the beginning of a larger grid of zeros."""
    large = volume.new_zeros(shape)
    x, y, z = volume.shape
    large[:x, :y, :z] = volume
    return large


def _relative_weight(field_noise: Volume, mask: Mask, box: tuple[slice, slice, slice]) -> Tensor:
    weight = torch.where(mask, 1 / field_noise, 0)[box]
    return (weight / weight[mask[box]].median()).clamp(0.5, 2) * mask[box]


def _place(part: Tensor, box: tuple[slice, slice, slice], like: Tensor) -> Tensor:
    whole = torch.zeros_like(like)
    whole[box] = part.to(like.dtype)
    return whole
