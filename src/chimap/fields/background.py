"""Background field removal: from the field of all sources to that of the sources inside the mask.

All share one signature: (total field, field noise, mask, dipole model) -> (local field, mask where it is valid).
They work on the mask's bounding box, so a large empty image costs nothing.
"""

import math

import torch
from torch import Tensor

from chimap.arrays import Mask, Triple, Volume
from chimap.errors import InputError
from chimap.linalg import bounding_box, conjugate_gradient, crop, fast_shape, irfft, rfft
from chimap.physics.dipole import DipoleModel
from chimap.physics.shim import shim_field


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
    box, shape = _box(mask, voxel_size, steps[0])
    inside, field = mask[box], total_field[box] * mask[box]
    grid = field.shape
    field_spectrum, mask_spectrum = rfft(field, shape), rfft(inside.to(field.dtype), shape)

    filtered = torch.zeros_like(field)
    covered = torch.zeros_like(inside)
    largest_kernel = None
    for radius in steps:
        sphere = sphere_spectrum(shape, voxel_size, radius, like=field)
        fits = crop(irfft(mask_spectrum * sphere, shape), grid) > 1 - 1e-4
        fits &= inside & ~covered
        if not fits.any():
            continue
        # The deconvolution must undo the sphere of the voxels deep inside: the largest that fits anywhere.
        largest_kernel = 1 - sphere if largest_kernel is None else largest_kernel
        local = field - crop(irfft(field_spectrum * sphere, shape), grid)
        filtered = torch.where(fits, local, filtered)
        covered |= fits
    if largest_kernel is None:
        raise InputError(f"no sphere of {smallest:g} mm fits into the mask of {int(mask.sum())} voxels")
    inverse = torch.where(largest_kernel.abs() > threshold, largest_kernel.reciprocal(), 0)
    local = crop(irfft(rfft(filtered, shape) * inverse, shape), grid) * covered
    return _place(local, box, total_field), _place(covered, box, mask)


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
    box, shape = _box(mask, dipole.voxel_size, radius)
    inside, field = mask[box], total_field[box] * mask[box]
    sphere = sphere_spectrum(shape, dipole.voxel_size, radius, like=field)
    valid = crop(irfft(rfft(inside.to(field.dtype), shape) * sphere, shape), field.shape) > 1 - 1e-4
    valid &= inside
    if not valid.any():
        raise InputError(f"no sphere of {radius:g} mm fits into the mask of {int(mask.sum())} voxels")

    def filtered(volume: Volume) -> Volume:
        return crop(irfft(rfft(volume, shape) * (1 - sphere), shape), field.shape)

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
    border = [math.ceil(margin / length) for length in size]
    shape = fast_shape([n + 2 * extra for n, extra in zip(field.shape, border, strict=True)])
    place = tuple(slice(extra, extra + n) for n, extra in zip(field.shape, border, strict=True))
    model = DipoleModel(shape, size, dipole.b0_direction, padding=0).to(field.device)
    weight = torch.zeros(shape, dtype=field.dtype, device=field.device)
    weight[place] = _relative_weight(field_noise, mask, box) if field_noise is not None else inside.to(field.dtype)
    square = weight.square()
    outside = torch.ones_like(weight)
    outside[place] = (~inside).to(field.dtype)
    target = torch.zeros_like(weight)
    target[place] = field - shim_field(field, square[place], size) * inside

    sources = conjugate_gradient(
        lambda chi: outside * model(square * model(outside * chi)),
        outside * model(square * target),
        iterations=iterations,
        tolerance=tolerance,
    )
    local = (target - model(sources))[place] * inside
    return _place(local, box, total_field), mask.clone()


def sphere_spectrum(shape: tuple[int, int, int], voxel_size: Triple, radius: float, *, like: Tensor) -> Tensor:
    """Transform of a sphere whose voxels sum to 1, centred on the first voxel; real, on the half spectrum.

    A voxel counts by the share of it that lies inside, so that small spheres and voxels that are not cubes keep
    the mean-value property (binary spheres are visibly not round there).

    Args:
        shape: Grid (x, y, z).
        voxel_size: [mm].
        radius: [mm].
        like: Gives device and type.
    """
    samples = 4
    sub = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples - 0.5
    reach = [min(math.ceil(radius / size + 0.5), (n - 1) // 2) for size, n in zip(voxel_size, shape, strict=True)]
    squares = []
    for axis, (extent, size) in enumerate(zip(reach, voxel_size, strict=True)):
        centre = torch.arange(-extent, extent + 1, dtype=torch.float64)
        view = [1] * 6
        view[axis], view[axis + 3] = 2 * extent + 1, samples
        squares.append(((centre[:, None] + sub) * size).square().reshape(view))
    share = (squares[0] + squares[1] + squares[2] <= radius**2).double().mean(dim=(3, 4, 5))
    sphere = torch.zeros(shape, dtype=like.dtype, device=like.device)
    sphere[: share.shape[0], : share.shape[1], : share.shape[2]] = (share / share.sum()).to(like)
    return rfft(sphere.roll([-extent for extent in reach], (0, 1, 2))).real.contiguous()


def _relative_weight(field_noise: Volume, mask: Mask, box: tuple[slice, slice, slice]) -> Tensor:
    weight = torch.where(mask, 1 / field_noise, 0)[box]
    return (weight / weight[mask[box]].median()).clamp(0.5, 2) * mask[box]


def _box(mask: Mask, voxel_size: Triple, padding: float) -> tuple[tuple[slice, slice, slice], tuple[int, int, int]]:
    """Bounding box and a fast grid with at least `padding` [mm] of zeros behind it."""
    box = bounding_box(mask)
    sides = [part.stop - part.start for part in box]
    return box, fast_shape([n + math.ceil(padding / size) + 1 for n, size in zip(sides, voxel_size, strict=True)])


def _place(part: Tensor, box: tuple[slice, slice, slice], like: Tensor) -> Tensor:
    whole = torch.zeros_like(like)
    whole[box] = part.to(like.dtype)
    return whole
