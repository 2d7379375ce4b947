"""A head in a scanner: from susceptibility to the phase and magnitude of a gradient-echo acquisition."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from chimap.arrays import Mask, Shape, Triple, Volume
from chimap.errors import InputError
from chimap.physics.dipole import DipoleModel
from chimap.physics.shim import centred_positions, shim_field
from chimap.physics.signal import add_noise, gradient_echo_signal, intravoxel_dephasing
from chimap.scan import Scan
from chimap.simulation.head import Head
from chimap.simulation.tissues import AIR_CHI

ECHO_TIMES = (0.004, 0.010, 0.016, 0.022, 0.028)
"""Default echo times [s]."""


@dataclass(frozen=True)
class Truth:
    """What a reconstruction of a simulated scan should find. Volumes (x, y, z).

    Attributes:
        chi: Susceptibility [ppm] relative to water in `mask`, zero outside. A method finds it up to
            a constant.
        total_field: Field of everything [ppm], as it is after shimming, mean zero in `mask`.
        local_field: Field [ppm] of the sources inside `mask`, that is of `chi` as it stands here; not cut off
            outside.
        mask: Brain.
    """

    chi: Volume
    total_field: Volume
    local_field: Volume
    mask: Mask


def acquire(
    head: Head,
    *,
    echo_times: Sequence[float] = ECHO_TIMES,
    field_strength: float = 3.0,
    snr: float = 50.0,
    phase_offset: bool = True,
    receive_bias: float = 0.25,
    dephasing: bool = True,
    shim: bool = True,
    seed: int = 0,
) -> tuple[Scan, Truth]:
    """Simulate a multi-echo gradient-echo acquisition of a head.

    The field is the sum of the exact fields of magnetised boxes, one per voxel, on a grid that is more than
    doubled; face and neck beyond the grid come on a coarser one. A reconstruction that samples the dipole
    kernel in k-space on the scan's own grid therefore does not repeat these sums. chi is, though, constant
    within a voxel. Fat has no chemical shift, blood does not flow and chi is no tensor.

    Args:
        head: Its affine decides the direction of B0.
        echo_times: [s], ascending.
        field_strength: B0 [T]; R2* grows in proportion to it.
        snr: Mean magnitude of the brain at the first echo over the noise of the real or the imaginary part;
            infinite for none.
        phase_offset: Add a smooth phase [rad] at TE = 0, as a receive coil has.
        receive_bias: Strength of the smooth variation of magnitude over the head: 0.25 is about a quarter.
        dephasing: Lose signal where the field varies within a voxel.
        shim: Take off the fields of first and second order that fit the total field in the brain best.
        seed: Of noise, offset and bias.

    Returns:
        The scan, without a mask, and the truth.

    Raises:
        InputError: A parameter that cannot be used, or a head without brain.
    """
    if not echo_times or any(not time > 0 for time in echo_times):
        raise InputError(f"echo times are {tuple(echo_times)}, needed seconds above 0")
    if not snr > 0:
        raise InputError(f"the SNR is {snr}, needed a number above 0")
    if not head.mask.any():
        raise InputError("the head's brain mask is empty: does the grid reach the brain?")
    generator = torch.Generator().manual_seed(seed)
    total_field, local_field = fields_of(head)
    if shim:
        total_field = total_field - shim_field(total_field, head.mask.to(total_field), head.voxel_size)
    total_field = total_field - total_field[head.mask].mean()

    bias = torch.exp(_smooth(head.shape, head.voxel_size, generator, bowl=1.0) * receive_bias)
    offset = _smooth(head.shape, head.voxel_size, generator) + 0.7 if phase_offset else None
    decay = head.r2star * (field_strength / 3)
    signal = gradient_echo_signal(head.m0 * bias, decay, total_field, echo_times, field_strength, phase_offset=offset)
    if dephasing:
        signal *= intravoxel_dephasing(total_field, head.voxel_size, echo_times, field_strength)
    sigma = float(signal[0].abs()[head.mask].mean()) / snr
    signal = add_noise(signal, sigma=sigma, generator=generator)
    scan = Scan(
        phase=signal.angle(),
        magnitude=signal.abs(),
        echo_times=tuple(float(time) for time in echo_times),
        field_strength=field_strength,
        voxel_size=head.voxel_size,
        b0_direction=head.b0_direction,
        affine=head.affine,
        notes=(f"Simulated from a built-in head, SNR {snr:g} at the first echo, seed {seed}.",),
    )
    truth = Truth(chi=head.chi * head.mask, total_field=total_field, local_field=local_field, mask=head.mask)
    return scan, truth


def fields_of(head: Head) -> tuple[Volume, Volume]:
    """Total field of the head and local field, of the sources inside its brain mask, both [ppm].

    chi counts from air here, so the empty space around the head is zero and needs no grid. A constant has no
    field, so this changes the total field by nothing, and the local field counts from water.
    """
    shape, k, m = head.shape, head.step, head.margin
    inner = [-(-n // step) for n, step in zip(shape, k, strict=True)]
    # the fine grid goes on for one coarse voxel and more, so that what is coarse keeps away from the voxels
    near = tuple(slice(around - 1, around + n + 1) for around, n in zip(m, inner, strict=True))
    fine = head.surroundings[near] - AIR_CHI
    for axis in range(3):
        fine = fine.repeat_interleave(k[axis], dim=axis)
    grid = tuple(slice(step, step + n) for step, n in zip(k, shape, strict=True))
    fine[grid] = head.chi - AIR_CHI
    padding = [n + step for n, step in zip(shape, k, strict=True)]
    dipole = DipoleModel(fine.shape, head.voxel_size, head.b0_direction, padding=padding, kernel="green")
    total_field = dipole(fine)[grid].clone()
    fine.zero_()
    fine[grid] = head.chi * head.mask
    local_field = dipole(fine)[grid].clone()
    del dipole, fine
    return total_field + _far_field(head, near), local_field


def _far_field(head: Head, near: tuple[slice, ...]) -> Volume:
    """Field [ppm] on the head's grid of the surroundings without the voxels `near` it."""
    far = head.surroundings - AIR_CHI
    far[near] = 0
    sx, sy, sz = (step * length for step, length in zip(head.step, head.voxel_size, strict=True))
    dipole = DipoleModel(far.shape, (sx, sy, sz), head.b0_direction, kernel="green")
    field = dipole(far)[near]
    # both grids share their corners here, so voxel centres fall where interpolate puts them
    wide = [n * step for n, step in zip(field.shape, head.step, strict=True)]
    field = torch.nn.functional.interpolate(field[None, None], size=wide, mode="trilinear", align_corners=False)
    x, y, z = (slice(step, step + n) for step, n in zip(head.step, head.shape, strict=True))
    return field[0, 0, x, y, z]


def _smooth(shape: Shape, voxel_size: Triple, generator: torch.Generator, *, bowl: float = 0.0) -> Volume:
    """A random polynomial of second order, about 1 at a head's edge; `bowl` adds growth from the middle."""
    result = torch.zeros(shape)
    x, y, z = centred_positions(result, voxel_size)
    draw = torch.randn(9, generator=generator).tolist()
    terms = [x, y, z, x * y, x * z, y * z, x**2, y**2, z**2]
    for weight, term in zip(draw, terms, strict=True):
        result += 0.6 * weight * term
    return result + bowl * (x**2 + y**2 + z**2 - 0.5)
