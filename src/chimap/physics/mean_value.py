"""The mean-value property: a harmonic field equals its mean over any sphere, so what differs from the mean is local."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from chimap.arrays import Mask, Shape, Triple, Volume
from chimap.errors import InputError
from chimap.linalg import along_axis, conjugate_gradient, fast_shape, irfft, rfft

WHOLE = 1 - 1e-4
"""Share of a sphere from which on it counts as lying in a mask: transforms round."""


def sharp_field(
    field: Volume, inside: Mask, voxel_size: Triple, radii: Sequence[float], *, threshold: float = 0.05
) -> tuple[Volume, Mask]:
    """Local part of a field known inside a mask: its difference from the mean over spheres, deconvolved.

    Every voxel takes the largest of the spheres that lies in the mask. The deconvolution must undo the sphere of the
    voxels deep inside, so it takes the largest that fits anywhere.

    Args:
        field: (x, y, z), zero outside the mask.
        inside: Same shape; beyond the grid nothing is known.
        voxel_size: [mm].
        radii: Of the spheres [mm], the largest first.
        threshold: Smallest value of the deconvolution kernel (delta minus sphere) that is divided by.

    Returns:
        Same unit as the field, zero outside the second result: the voxels in whose smallest sphere every field value
        was known.

    Raises:
        InputError: No sphere fits into the mask.

    References:
        Wu et al. 2012, doi:10.1002/mrm.23000; SHARP: Schweser et al. 2011, doi:10.1016/j.neuroimage.2010.10.070.
    """
    grid = field.shape
    shape = padded_shape(grid, voxel_size, radii[0])
    spectra = rfft(torch.stack([field, inside.to(field.dtype)]), shape)
    means = torch.zeros_like(field)
    left = inside.clone()
    largest_kernel = None
    for radius in radii:
        sphere = sphere_spectrum(shape, voxel_size, radius, like=field)
        mean, share = irfft(spectra * sphere, shape, grid)
        fits = (share > WHOLE) & left
        if not fits.any():
            continue
        largest_kernel = 1 - sphere if largest_kernel is None else largest_kernel
        means = torch.where(fits, mean, means)
        left ^= fits
    covered = inside & ~left
    if largest_kernel is None:
        raise _none_fits(radii[-1], inside)
    inverse = torch.where(largest_kernel.abs() > threshold, largest_kernel.reciprocal(), 0)
    return irfft(rfft((field - means) * covered, shape) * inverse, shape, grid) * covered, covered


def harmonic_inside(
    field: Volume,
    mask: Mask,
    voxel_size: Triple,
    radius: float,
    *,
    start: Volume | None = None,
    iterations: int = 200,
    tolerance: float = 1e-4,
) -> tuple[Volume, Mask]:
    """The volume that equals a field at the rim of a mask, and its own mean over spheres inside: b = M S b + (1 - M) f.

    With u the part of b in M, (1 - M S M) u = M S (1 - M) f, which conjugate gradients solve. Spheres average the
    values at the rim, and with them its noise.

    Args:
        field: f, shape (x, y, z), zero outside the mask.
        mask: Where it is known.
        voxel_size: [mm].
        radius: Of the spheres of S [mm].
        start: First guess, the field if None.
        iterations: Most conjugate-gradient steps.
        tolerance: Stop once the residual has shrunk by this factor.

    Returns:
        b, zero outside the mask, and M: the voxels whose whole sphere lies in the mask.

    Raises:
        InputError: The sphere fits nowhere into the mask.

    References:
        Wen et al. 2014, doi:10.1002/mrm.24998.
    """
    mean = sphere_mean(field, voxel_size, radius)
    inner = where_whole(mean, mask, radius)
    harmonic = conjugate_gradient(
        lambda volume: volume - inner * mean(volume),
        inner * mean(field * ~inner),
        start=(field if start is None else start) * inner,
        iterations=iterations,
        tolerance=tolerance,
    )
    return torch.where(inner, harmonic, field), inner


def sphere_mean(like: Volume, voxel_size: Triple, radius: float) -> Callable[[Tensor], Tensor]:
    """The mean over spheres of `radius` [mm], of volumes on one grid; beyond it they are zero."""
    shape = padded_shape(like.shape, voxel_size, radius)
    sphere = sphere_spectrum(shape, voxel_size, radius, like=like)
    return lambda volume: irfft(rfft(volume.to(like), shape) * sphere, shape, like.shape)


def where_whole(mean: Callable[[Tensor], Tensor], mask: Mask, radius: float) -> Mask:
    """Voxels whose whole sphere lies in a mask, by their mean over spheres.

    Raises:
        InputError: There is none.
    """
    inner = mask & (mean(mask) > WHOLE)
    if not inner.any():
        raise _none_fits(radius, mask)
    return inner


def _none_fits(radius: float, mask: Mask) -> InputError:
    return InputError(f"no sphere of {radius:g} mm fits into the mask of {int(mask.sum())} voxels")


def padded_shape(grid: Sequence[int], voxel_size: Triple, padding: float) -> Shape:
    """A grid that is fast to transform, with at least `padding` [mm] behind the given one."""
    return fast_shape([n + math.ceil(padding / size) + 1 for n, size in zip(grid, voxel_size, strict=True)])


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
    # one octant is enough; what is off a middle plane counts for its mirror image, too
    squares, images = [], []
    for axis, (n, size) in enumerate(zip(shape, voxel_size, strict=True)):
        centre = torch.arange(min(math.ceil(radius / size + 0.5), (n - 1) // 2) + 1, dtype=torch.float64)
        view = [1] * 6
        view[axis], view[axis + 3] = len(centre), samples
        squares.append(((centre[:, None] + sub) * size).square().reshape(view))
        images.append(along_axis((centre > 0) + 1, axis))
    share = (squares[0] + squares[1] + squares[2] <= radius**2).double().mean(dim=(3, 4, 5))
    share *= images[0] * images[1] * images[2]
    spectrum = _round(share / share.sum(), voxel_size).to(like)
    # an even kernel of few voxels: three products with cosines cost less than a transform of the whole grid
    for axis, n in enumerate(shape):
        waves = torch.arange(n // 2 + 1 if axis == 2 else n, dtype=torch.float64)
        places = torch.arange(spectrum.shape[0], dtype=torch.float64)
        cosine = torch.cos(2 * math.pi / n * places[:, None] * waves).to(like)
        spectrum = torch.einsum("abc,ak->bck", spectrum, cosine)  # the axis goes, its frequencies come last
    return spectrum


def _round(sphere: Tensor, voxel_size: Triple) -> Tensor:
    """An octant of a sphere of few voxels with its second moments along the axes made equal to the smallest.

    Long voxels make it longer along their axis, and a harmonic field that grows along one axis and falls along another
    would no longer equal its mean. Weights are multiplied by exp(-a x^2), with a for each axis by Newton's method.
    """
    squares = [
        along_axis((torch.arange(n, dtype=sphere.dtype) * size).square(), axis)
        for axis, (n, size) in enumerate(zip(sphere.shape, voxel_size, strict=True))
    ]
    goal = min(float((sphere * square).sum()) for square in squares)
    for _ in range(8):
        for square in squares:
            moment, fourth = float((sphere * square).sum()), float((sphere * square.square()).sum())
            sphere = sphere * torch.exp(-(moment - goal) / (fourth - moment**2) * square)
            sphere /= sphere.sum()
    return sphere
