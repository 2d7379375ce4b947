"""How fast the signal decays over the echoes: R2*."""

import torch
from torch import Tensor

from chimap.arrays import Echoes, Mask, Volume
from chimap.errors import InputError
from chimap.fields.echoes import check_echoes

TINY = 1e-12
DEVIATION = 0.6745
"""Median of |x| for Gaussian noise of standard deviation 1."""


def r2star_map(magnitude: Echoes, mask: Mask, echo_times: tuple[float, ...], *, steps: int = 6) -> Volume:
    r"""R2* by the squared magnitude: A^2 exp(-2 TE R2*) + 2 sigma^2 fitted to m^2 in every voxel.

    The mean of m^2 is exactly that, whatever the signal is, while the mean of m stops falling at the noise floor and
    feigns a slower decay. The variance of m^2 is 4 sigma^2 (A^2 exp(-2 TE R2*) + sigma^2), and its inverse, at the
    fitted signal, is the weight: Gauss-Newton steps from a weighted line through the logarithms. Any echo times will
    do. sigma comes from `noise_level`; two echoes leave nothing to find it from, and keep the floor. Signal that is
    lost because the field varies within a voxel, above the sinuses, counts as decay.

    Args:
        magnitude: m, shape (echo, x, y, z), any unit; two echoes or more.
        mask: Where to fit.
        echo_times: [s], ascending.
        steps: Of the fit.

    Returns:
        R2* [1/s], zero outside the mask, between 0 and 3 over the distance of the first two echoes: there the second
        has a twentieth of the first's signal, and more cannot be told.

    Raises:
        InputError: One echo, or shapes that do not belong together.

    References:
        The power of magnitude images: Miller and Joseph 1993, doi:10.1016/0730-725X(93)90225-3.
    """
    check_echoes(magnitude, None, mask, echo_times, "magnitude")
    if len(echo_times) < 2:
        raise InputError("R2* needs two echoes or more, got one")
    result = torch.zeros_like(magnitude[0])
    measured = magnitude[:, mask]
    unit = float(measured[0].mean())
    if not unit > 0:
        return result
    power = (measured / unit).square()
    times = power.new_tensor(echo_times)[:, None]
    most = 3 / (echo_times[1] - echo_times[0])
    level, rate = _line(power, 0.5 * power.clamp_min(TINY).log(), times)
    rate = rate.clamp(0, most)
    noise = noise_level(power.sqrt() - (level - rate * times).exp(), mask) ** 2
    for _ in range(steps):
        signal = (2 * (level - rate * times)).exp().clamp_min(TINY)
        off = (power - 2 * noise - signal) / (2 * signal)
        higher, faster = _line(signal.square() / (signal + noise), off, times)
        level = level + higher.clamp(-0.5, 0.5)
        rate = (rate + faster.clamp(-most / 5, most / 5)).clamp(0, most)
    result[mask] = torch.where(power[0] > 0, rate, 0.0)
    return result


def noise_level(misfit: Tensor, mask: Mask) -> float:
    """Standard deviation of the noise, from what a decay fitted to the magnitude of the echoes leaves of it.

    The fit takes the anatomy away. Of what is left the finest diagonal wavelet coefficient counts, the difference along
    x, y and z in turn: a decay that is no exponential leaves something smooth, and its median ignores the few voxels
    that are not. Of n echoes the fit has used up the noise of two. Where an image was interpolated its finest detail is
    missing and the noise comes out too low, which only leaves some of the floor in.

    Args:
        misfit: Shape (echo, voxel), the voxels being those of the mask in order.
        mask: Shape (x, y, z).

    Returns:
        In the unit of the misfit; 0 for two echoes, and where no 2 x 2 x 2 voxels of the mask lie together.

    References:
        Coupé et al. 2010, doi:10.1016/j.media.2010.03.001, there on one image and corrected for an SNR below 3.
    """
    whole = ~_any_of_eight(~mask)
    if len(misfit) < 3 or not whole.any():
        return 0.0
    volume, variance = torch.zeros_like(mask, dtype=misfit.dtype), 0.0
    for echo in misfit:
        volume[mask] = echo
        detail = volume.diff(dim=0).diff(dim=1).diff(dim=2)[whole] / 8**0.5
        variance += (float(detail.abs().median()) / DEVIATION) ** 2
    return (variance / (len(misfit) - 2)) ** 0.5


def _any_of_eight(mask: Tensor) -> Tensor:
    """Whether any of the 2 x 2 x 2 voxels that begin at each one is in the mask; one shorter along every axis."""
    for axis in range(3):
        n = mask.shape[axis]
        mask = mask.narrow(axis, 0, n - 1) | mask.narrow(axis, 1, n - 1)
    return mask


def _line(weight: Tensor, values: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Height at time 0 and fall per second of the weighted line through values (echo, voxel)."""
    total = weight.sum(dim=0).clamp_min(TINY)
    middle = (weight * times).sum(dim=0) / total
    away = times - middle
    fall = -(weight * away * values).sum(dim=0) / (weight * away.square()).sum(dim=0).clamp_min(TINY * 1e-6)
    return (weight * values).sum(dim=0) / total + fall * middle, fall
