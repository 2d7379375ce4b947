"""From the phase of several echoes to one field: the offset they share, and the fit over echo time."""

import torch
from scipy.ndimage import gaussian_filter

from chimap.arrays import Echoes, Mask, Triple, Volume
from chimap.fields.unwrap import unwrap_quality_guided, wrap
from chimap.linalg import bounding_box
from chimap.physics.units import radians_per_ppm


def phase_offset(
    phase: Echoes,
    magnitude: Echoes | None,
    mask: Mask,
    echo_times: tuple[float, ...],
    voxel_size: Triple,
    *,
    smoothing: float = 7.0,
) -> Volume:
    """Phase at echo time zero, as receive coils leave it: the same for all echoes, smooth, not field.

    The difference of the first two echoes is free of it; unwrapped and scaled to the first echo time it is
    subtracted from the first echo. What remains is smoothed as a complex number, weighted by magnitude.

    Args:
        phase: Wrapped [rad], shape (echo, x, y, z).
        magnitude: Same shape, or None.
        mask: Where the phase is meaningful.
        echo_times: [s].
        voxel_size: [mm].
        smoothing: Standard deviation of the Gaussian [mm].

    Returns:
        Offset [rad], shape (x, y, z), zero outside the mask; zero everywhere for a single echo.

    References:
        Eckstein et al. 2018, doi:10.1002/mrm.26963.
    """
    offset = torch.zeros_like(phase[0])
    if len(echo_times) < 2:
        return offset
    box = bounding_box(mask)
    inside = mask[box]
    first, second = phase[0][box], phase[1][box]
    weight = inside.to(phase.dtype)
    if magnitude is not None:
        weight = weight * magnitude[0][box] * magnitude[1][box]
    between = echo_times[1] - echo_times[0]
    difference = unwrap_quality_guided(
        wrap(second - first)[None], weight.sqrt()[None], inside, (between,), voxel_size
    )[0]
    rough = first - difference * (echo_times[0] / between)
    sigma = [smoothing / size for size in voxel_size]
    real, imaginary = (
        torch.from_numpy(gaussian_filter((weight * part).cpu().numpy(), sigma, mode="constant", truncate=3.0))
        for part in (rough.cos(), rough.sin())
    )
    offset[box] = torch.atan2(imaginary, real).to(offset) * inside
    return offset


def combine_echoes(
    unwrapped: Echoes,
    magnitude: Echoes | None,
    mask: Mask,
    echo_times: tuple[float, ...],
    field_strength: float,
) -> tuple[Volume, Volume]:
    """Weighted least squares of phase = field * (rad per ppm at TE), through the origin.

    The noise of phase is that of the signal over its magnitude m, so each echo counts by m^2, and the field's
    variance is 1 / sum(m^2 (rad per ppm)^2). A whole turn that is missing in all voxels and echoes alike is a
    constant field; background removal takes it out.

    Args:
        unwrapped: [rad], shape (echo, x, y, z), without the offset common to all echoes.
        magnitude: Same shape; None weighs all echoes and voxels alike.
        mask: Where the phase is meaningful.
        echo_times: [s].
        field_strength: [T].

    Returns:
        Total field [ppm], zero outside the mask, and its noise [ppm, up to one common factor: the noise of the
        magnitude image], infinite outside the mask and where nothing was measured.

    References:
        Liu et al. 2013, doi:10.1002/mrm.24272 (weights); Wu et al. 2012, doi:10.1002/mrm.23000.
    """
    slopes = torch.tensor([radians_per_ppm(time, field_strength) for time in echo_times]).to(unwrapped)
    weight = torch.ones_like(unwrapped) if magnitude is None else magnitude.square()
    slopes = slopes.reshape(-1, 1, 1, 1)
    information = (weight * slopes.square()).sum(dim=0)
    known = mask & (information > 0)
    fitted = (weight * slopes * unwrapped).sum(dim=0) / information.clamp_min(1e-30)
    # where no echo has signal the plain mean is as good as anything, and its infinite noise says so
    plain = (slopes * unwrapped).sum(dim=0) / slopes.square().sum()
    field = torch.where(known, fitted, plain) * mask
    noise = torch.where(known, information.clamp_min(1e-30).rsqrt(), torch.inf)
    return field, noise
