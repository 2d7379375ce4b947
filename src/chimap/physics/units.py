"""Phase, frequency and field in each other's units. No other module converts.

phase [rad] = 2 pi * gamma_bar [Hz/T] * B0 [T] * field [ppm] * 1e-6 * TE [s], so a stronger field turns the
phase forwards.
"""

import math

GAMMA_BAR = 42.577478461e6
"""Proton gyromagnetic ratio over 2 pi [Hz/T]. CODATA 2022."""


def hz_per_ppm(field_strength: float) -> float:
    """Frequency [Hz] of a field of 1 ppm at `field_strength` [T]."""
    return GAMMA_BAR * field_strength * 1e-6


def radians_per_ppm(echo_time: float, field_strength: float) -> float:
    """Phase [rad] that a field of 1 ppm gains in `echo_time` [s] at `field_strength` [T]."""
    return 2 * math.pi * hz_per_ppm(field_strength) * echo_time
