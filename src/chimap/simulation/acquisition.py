"""A head in a scanner: from susceptibility to the phase and magnitude of a gradient-echo acquisition."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chimap.arrays import Mask, Shape, Triple, Volume
from chimap.errors import InputError
from chimap.physics.dipole import DipoleModel, GreenTensor, padded_shape
from chimap.physics.shim import centred_positions, shim_field
from chimap.physics.signal import add_noise, gradient_echo_signal, intravoxel_dephasing
from chimap.physics.units import radians_per_ppm
from chimap.scan import Scan
from chimap.simulation.field_error import field_error as structured_error
from chimap.simulation.head import Head, surrounding_grid
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
        field_error: What the scan's field has on top of `total_field` [ppm]; no dipole model explains it.
        field_noise: SD [ppm] of the field that the best combination of the echoes finds.
        mask: Brain.
    """

    chi: Volume
    total_field: Volume
    local_field: Volume
    field_error: Volume
    field_noise: Volume
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
    field_error: float = 0.0,
    seed: int = 0,
) -> tuple[Scan, Truth]:
    """Simulate a multi-echo gradient-echo acquisition of a head.

    The field is the sum of the exact fields of magnetised boxes, one per voxel, on a grid that is more than
    doubled; face and neck beyond the grid come on a coarser one. A reconstruction that samples the dipole
    kernel in k-space on the scan's own grid therefore does not repeat these sums. chi is, though, constant
    within a voxel. Fat has no chemical shift and blood does not flow.

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
        field_error: Structured error of the field that obeys no dipole model, as a share of the local field's SD; see
            `field_error.field_error`. On people it is about a half.
        seed: Of noise, offset, bias and field error.

    Returns:
        The scan, without a mask, and the truth.

    Raises:
        InputError: A parameter that cannot be used, or a head without brain.
    """
    if not echo_times or any(not 0 < time <= 0.5 for time in echo_times) or sorted(set(echo_times)) != [*echo_times]:
        raise InputError(f"echo times are {tuple(echo_times)}, needed seconds from 0 to 0.5, in ascending order")
    if not snr > 0:
        raise InputError(f"the SNR is {snr}, needed a number above 0")
    if not head.mask.any():
        raise InputError("the head's brain mask is empty: does the grid reach the brain?")
    if not 0 <= field_error <= 2:
        raise InputError(f"the field error is {field_error:g}, needed a share of the local field's SD from 0 to 2")
    generator = torch.Generator(head.chi.device).manual_seed(seed)
    total_field, local_field = fields_of(head)
    if shim:
        total_field = total_field - shim_field(total_field, head.mask.to(total_field), head.voxel_size)
    total_field = total_field - total_field[head.mask].mean()
    error = torch.zeros_like(total_field)
    if field_error > 0:
        arguments = (head.labels, head.mask, head.voxel_size, head.b0_direction)
        error = structured_error(*arguments, share=field_error, local_field=local_field, generator=generator)
    signal, noise = measure(
        head,
        total_field + error,
        echo_times=echo_times,
        field_strength=field_strength,
        snr=snr,
        phase_offset=phase_offset,
        receive_bias=receive_bias,
        dephasing=dephasing,
        generator=generator,
    )
    sentence = f"Simulated, SNR {snr:g} at the first echo, field error {100 * field_error:g} %, seed {seed}."
    scan = Scan(
        phase=signal.angle(),
        magnitude=signal.abs(),
        echo_times=tuple(float(time) for time in echo_times),
        field_strength=field_strength,
        voxel_size=head.voxel_size,
        b0_direction=head.b0_direction,
        affine=head.affine,
        notes=(sentence,),
    )
    truth = Truth(
        chi=head.chi * head.mask,
        total_field=total_field,
        local_field=local_field,
        field_error=error,
        field_noise=noise,
        mask=head.mask,
    )
    return scan, truth


def measure(
    head: Head,
    field: Volume,
    *,
    echo_times: Sequence[float],
    field_strength: float,
    snr: float,
    phase_offset: bool = True,
    receive_bias: float = 0.25,
    dephasing: bool = True,
    generator: torch.Generator,
) -> tuple[Tensor, Volume]:
    """The noisy complex signal of a head in a field.

    Args:
        head: On the generator's device.
        field: [ppm], on the head's grid.
        generator: Of offset, bias and noise; the other arguments are those of `acquire`.

    Returns:
        Signal, complex, shape (echo, x, y, z), and the standard deviation [ppm] of the field that the best
        combination of the echoes finds.
    """
    bias = torch.exp(_smooth(head.shape, head.voxel_size, generator, bowl=1.0) * receive_bias)
    offset = _smooth(head.shape, head.voxel_size, generator) + 0.7 if phase_offset else None
    decay = head.r2star * (field_strength / 3)
    signal = gradient_echo_signal(head.m0 * bias, decay, field, echo_times, field_strength, phase_offset=offset)
    if dephasing:
        signal *= intravoxel_dephasing(field, head.voxel_size, echo_times, field_strength)
    magnitude = signal.abs()
    sigma = float(magnitude[0][head.mask].mean()) / snr
    turns = magnitude.new_tensor([radians_per_ppm(time, field_strength) for time in echo_times]).reshape(-1, 1, 1, 1)
    noise = sigma / (turns * magnitude).square().sum(dim=0).sqrt().clamp_min(1e-12)
    return add_noise(signal, sigma=sigma, generator=generator), noise


@dataclass(frozen=True)
class FieldKernels:
    """What the fields of many heads on one grid share: see `field_kernels`."""

    near: GreenTensor
    far: GreenTensor


def field_kernels(shape: Shape, voxel_size: Triple, *, device: torch.device | None = None) -> FieldKernels:
    """Kernels for `fields_of` heads on a grid, for any direction of B0: worth their time for three heads or more.

    Args:
        shape: Grid of the heads.
        voxel_size: [mm].
        device: Of the heads.
    """
    around = surrounding_grid(shape, voxel_size)
    near = _near_shape(shape, around.step)
    return FieldKernels(
        GreenTensor(padded_shape(near, _near_padding(near, around.step)), voxel_size, device=device),
        GreenTensor(padded_shape(around.shape, None), around.voxel_size, device=device),
    )


def fields_of(
    head: Head, *, whole_brain: bool = False, total: bool = True, kernels: FieldKernels | None = None
) -> tuple[Volume, Volume]:
    """Total field of the head and local field, of the sources inside its brain mask, both [ppm].

    chi counts from air for the total field, so the empty space around the head is zero and needs no grid. A constant
    has no field, so this changes it by nothing; the local field counts from water.

    Args:
        head: On any device.
        whole_brain: The local field is also that of the brain beyond the grid: for a grid that shows a part of what
            was scanned. Otherwise what lies beyond is background.
        total: False to save the time of the total field; the local one stands in its place.
        kernels: From `field_kernels` for this grid, made here if None.
    """
    sources = [(head.chi * head.mask, head.brain_around if whole_brain else None)]
    if total:
        sources.insert(0, (head.chi - AIR_CHI, head.surroundings - AIR_CHI))
    shape, k, m = head.shape, head.step, head.margin
    inner = [-(-n // step) for n, step in zip(shape, k, strict=True)]
    # the fine grid goes on for one coarse voxel and more, so that what is coarse keeps away from the voxels
    near = tuple(slice(begin - 1, begin + n + 1) for begin, n in zip(m, inner, strict=True))
    grid = tuple(slice(step, step + n) for step, n in zip(k, shape, strict=True))
    extent = _near_shape(shape, k)
    dipole = DipoleModel(
        extent,
        head.voxel_size,
        head.b0_direction,
        padding=_near_padding(extent, k),
        kernel="green" if kernels is None else kernels.near,
    ).to(head.chi.device)
    fields = []
    for chi, around in sources:
        fine = chi.new_zeros(extent)
        if around is not None:
            coarse = around[near]
            for axis in range(3):
                coarse = coarse.repeat_interleave(k[axis], dim=axis)
            fine += coarse
        fine[grid] = chi
        fields.append(dipole(fine)[grid].clone())
    del dipole
    distant = [(field, around) for field, (_, around) in zip(fields, sources, strict=True) if around is not None]
    if distant:
        far = torch.stack([around for _, around in distant])
        far[:, *near] = 0
        for (field, _), more in zip(distant, _far_fields(far, head, near, kernels), strict=True):
            field += more
    return fields[0], fields[-1]


def local_field_of(head: Head, *, whole_brain: bool = False, kernels: FieldKernels | None = None) -> Volume:
    """The local field alone; see `fields_of`."""
    return fields_of(head, whole_brain=whole_brain, total=False, kernels=kernels)[1]


def _far_fields(sources: Tensor, head: Head, near: tuple[slice, ...], kernels: FieldKernels | None) -> Sequence[Volume]:
    """Fields [ppm] on the head's grid of sources (n, x, y, z) on the coarse grid."""
    sx, sy, sz = (step * length for step, length in zip(head.step, head.voxel_size, strict=True))
    kernel = "green" if kernels is None else kernels.far
    dipole = DipoleModel(sources.shape[1:], (sx, sy, sz), head.b0_direction, kernel=kernel).to(sources.device)
    field = dipole(sources)[:, *near]
    # both grids share their corners here, so voxel centres fall where interpolate puts them
    wide = [n * step for n, step in zip(field.shape[1:], head.step, strict=True)]
    field = torch.nn.functional.interpolate(field[None], size=wide, mode="trilinear", align_corners=False)
    x, y, z = (slice(step, step + n) for step, n in zip(head.step, head.shape, strict=True))
    return field[0, :, x, y, z].unbind()


def _near_shape(shape: Sequence[int], step: Sequence[int]) -> Shape:
    x, y, z = (-(-n // k) * k + 2 * k for n, k in zip(shape, step, strict=True))
    return x, y, z


def _near_padding(near: Sequence[int], step: Sequence[int]) -> list[int]:
    """No image of a source reaches the head's grid, which begins one step after that of the sources."""
    return [n - 2 * k for n, k in zip(near, step, strict=True)]


def _smooth(shape: Shape, voxel_size: Triple, generator: torch.Generator, *, bowl: float = 0.0) -> Volume:
    """A random polynomial of second order, about 1 at a head's edge; `bowl` adds growth from the middle."""
    result = torch.zeros(shape, device=generator.device)
    x, y, z = centred_positions(result, voxel_size)
    draw = torch.randn(9, generator=generator, device=generator.device).tolist()
    terms = [x, y, z, x * y, x * z, y * z, x**2, y**2, z**2]
    for weight, term in zip(draw, terms, strict=True):
        result += 0.6 * weight * term
    return result + bowl * (x**2 + y**2 + z**2 - 0.5)
