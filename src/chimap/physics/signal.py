"""The gradient-echo signal of a field, and its noise."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from chimap.arrays import Echoes, Mask, Triple, Volume
from chimap.physics.units import hz_per_ppm, radians_per_ppm

SOFT = 0.1
"""Width of the edge of what slices can hold, as a share of that: without, every step would ring."""


def gradient_echo_signal(
    m0: Volume,
    r2star: Volume,
    total_field: Volume,
    echo_times: Sequence[float],
    field_strength: float,
    *,
    phase_offset: Volume | None = None,
) -> Tensor:
    """Complex signal m0 exp(-TE R2*) exp(i (offset + 2 pi gamma_bar B0 field TE)) of every echo.

    Args:
        m0: Magnitude at TE = 0, any unit, shape (*batch, x, y, z).
        r2star: Decay rate [1/s].
        total_field: [ppm], positive = stronger field; it turns the phase forwards.
        echo_times: [s].
        field_strength: B0 [T].
        phase_offset: Phase at TE = 0 [rad], zero if None.

    Returns:
        complex64, shape (*batch, echo, x, y, z); its angle is the wrapped phase.

    References:
        Haacke et al. 2015, doi:10.1016/j.mri.2014.09.004.
    """
    echoes = []
    for echo_time in echo_times:
        angle = total_field * radians_per_ppm(echo_time, field_strength)
        if phase_offset is not None:
            angle = angle + phase_offset
        echoes.append(torch.polar(m0 * torch.exp(-echo_time * r2star), angle))
    return torch.stack(echoes, dim=-4)


def intravoxel_dephasing(
    total_field: Volume, voxel_size: Triple, echo_times: Sequence[float], field_strength: float
) -> Echoes:
    """Share of the signal that is left where the field varies across a voxel: the dropout above air.

    Across a box a linear phase averages to sinc(c), c = cycles across the voxel. exp(-(pi c)^2 / 6) agrees
    with it to second order and has no side lobes, whose sign flips a real voxel's soft edges do not show.

    Args:
        total_field: [ppm], shape (*batch, x, y, z).
        voxel_size: [mm].
        echo_times: [s].
        field_strength: B0 [T].

    Returns:
        Factor between 0 and 1, shape (*batch, echo, x, y, z).
    """
    across = torch.zeros_like(total_field)  # squared field difference from one face of the voxel to the other
    for axis in (-3, -2, -1):
        if total_field.shape[axis] > 1:
            across += torch.gradient(total_field, dim=axis)[0].square()
    factors = [
        torch.exp(across * (-((math.pi * hz_per_ppm(field_strength) * echo_time) ** 2) / 6)) for echo_time in echo_times
    ]
    return torch.stack(factors, dim=-4)


def through_slices(volume: Volume, axis: int, thickness: float) -> Volume:
    """A volume as thicker slices show it, resampled to its own voxels: averaged over a slice, and nothing finer than
    slices side by side can hold.

    Args:
        volume: Shape (x, y, z); mirrored at its ends. Its voxels are averages already.
        axis: Across the slices.
        thickness: [voxels], at least 1.
    """
    n = volume.shape[axis]
    frequency = torch.fft.rfftfreq(2 * n, device=volume.device)
    edge = 0.5 / thickness
    passed = torch.sinc(frequency * thickness) / torch.sinc(frequency)
    passed = passed * torch.sigmoid((edge - frequency) / (SOFT * edge))
    passed = (passed / passed[0]).reshape([-1 if one == axis else 1 for one in range(3)])
    spectrum = torch.fft.rfft(torch.cat([volume, volume.flip(axis)], dim=axis), dim=axis)
    return torch.fft.irfft(spectrum * passed, n=2 * n, dim=axis).narrow(axis, 0, n)


def signal_through_slices(phase: Volume, magnitude: Volume, axis: int, thickness: float) -> tuple[Volume, Volume]:
    """Phase [rad] and magnitude as thicker slices show them: the complex signal is what is averaged."""
    real, imaginary = (through_slices(magnitude * wave, axis, thickness) for wave in (phase.cos(), phase.sin()))
    return torch.atan2(imaginary, real), torch.hypot(real, imaginary)


def mean_in_slices(volume: Volume, mask: Mask, axis: int, thickness: float) -> Volume:
    """Mean over thicker slices of what lies in a mask, zero outside. A slice that hardly touches it says nothing."""
    inside = mask.to(volume)
    share = through_slices(inside, axis, thickness).clamp_min(0.1)
    return through_slices(volume * inside, axis, thickness) / share * inside


def add_noise(signal: Tensor, *, sigma: float, generator: torch.Generator) -> Tensor:
    """Signal with white Gaussian noise of standard deviation `sigma` in its real and its imaginary part.

    `sigma` has the unit of the signal: for a given SNR, pass the magnitude that the SNR refers to, divided by
    the SNR. Where the magnitude A is far above sigma, that is the noise of the magnitude, and sigma / A [rad]
    the noise of the phase.
    """
    if not sigma >= 0:
        raise ValueError(f"sigma is {sigma}, needed a number of at least 0")
    noise = torch.randn(2, *signal.shape, generator=generator, device=generator.device).to(signal.device)
    return signal + sigma * torch.complex(noise[0], noise[1])
