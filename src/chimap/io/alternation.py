"""Slices whose phase alternates by half a turn, as in images of GE's 3D scans.

k = 0 lies in the middle of the samples along the slices. A Fourier transform that takes it for the first sample gives
slice n times (-1)^n, which magnitude does not show. All echoes have it alike.
"""

import numpy as np

ENOUGH = 0.5
"""How negative the agreement of neighbours must be along one axis, as a share of the best agreement along any."""


def agreement(phase: np.ndarray, magnitude: np.ndarray | None) -> tuple[float, ...]:
    """Along each axis, the mean cosine of the phase difference of neighbouring voxels.

    sum Re(conj(s_k) s_k+1) / sum |s_k| |s_k+1| with s = m exp(i phi): near 1 where phase is smooth, 0 for noise.

    Args:
        phase: phi [rad], shape (x, y, z), wrapped or not.
        magnitude: m, same shape; 1 everywhere if None.
    """
    signal = np.exp(1j * phase.astype(np.float32))
    if magnitude is not None:
        signal = signal * magnitude
    found = []
    for axis in range(3):
        along = np.moveaxis(signal, axis, 0)
        product = along[:-1].conj() * along[1:]
        found.append(float(np.real(product).sum() / max(float(np.abs(product).sum()), 1e-30)))
    return tuple(found)


def alternating_axis(phase: np.ndarray, magnitude: np.ndarray | None) -> int | None:
    """The axis along which every second slice is half a turn off; None where there is none.

    A field would have to change the phase by about half a turn per slice over the whole volume to look alike.
    """
    along = agreement(phase, magnitude)
    worst = int(np.argmin(along))
    return worst if max(along) > 0.1 and along[worst] < -ENOUGH * max(along) else None


def without_alternation(phase: np.ndarray, axis: int) -> np.ndarray:
    """Phase [rad] in -pi..pi, with every second slice along an axis turned by half a turn.

    Args:
        phase: [rad] in -pi..pi, shape (..., x, y, z).
        axis: 0, 1 or 2 for x, y or z.
    """
    odd = tuple(slice(1, None, 2) if axis == place else slice(None) for place in range(3))
    fixed = phase.copy()
    some = fixed[(..., *odd)]
    fixed[(..., *odd)] = np.where(some > 0, some - np.float32(np.pi), some + np.float32(np.pi))
    return fixed
