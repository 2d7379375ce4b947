"""The dipole kernel and the linear map from susceptibility to field."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from chimap.arrays import Shape, Triple, Volume
from chimap.linalg import PAIRS, along_axis, fast_shape, irfft, rfft


def dipole_kernel(
    shape: Sequence[int],
    voxel_size: Triple,
    b0_direction: Triple,
    *,
    half: bool = False,
    device: torch.device | None = None,
) -> Tensor:
    """D(k) = 1/3 - (k.b)^2 / |k|^2, and 0 at k = 0, in the FFT's order of frequencies.

    At an even axis' Nyquist frequency, which stands for +k and -k at once, D is the mean of both: the kernel
    then is even on the grid, so a real chi has a real field and the map is its own transpose.

    Args:
        shape: Grid (x, y, z).
        voxel_size: [mm]; frequencies are index / (n * voxel size).
        b0_direction: B0 in voxel axes; normalised here.
        half: Only the non-negative frequencies of z, as `rfftn` gives them.

    Returns:
        D, no unit, shape (x, y, z) or (x, y, z // 2 + 1), float32.

    References:
        Salomir et al. 2003, doi:10.1002/cmr.b.10083; Marques and Bowtell 2005, doi:10.1002/cmr.b.20034.
    """
    b = unit_vector(b0_direction)
    k, odd = [], []  # `odd` is k without its Nyquist entry: what survives averaging +k and -k in k_i * k_j
    for axis, (n, size) in enumerate(zip(shape, voxel_size, strict=True)):
        frequency = torch.fft.fftfreq(n, d=size, dtype=torch.float64, device=device)
        if half and axis == 2:
            frequency = frequency[: n // 2 + 1].abs()
        without = frequency.clone()
        if n % 2 == 0:
            without[n // 2] = 0
        k.append(along_axis(frequency, axis))
        odd.append(along_axis(without, axis))
    squared = k[0] ** 2 + k[1] ** 2 + k[2] ** 2
    along = sum((b[i] * k[i]) ** 2 for i in range(3)) + 2 * (
        b[0] * b[1] * odd[0] * odd[1] + b[0] * b[2] * odd[0] * odd[2] + b[1] * b[2] * odd[1] * odd[2]
    )
    squared[0, 0, 0] = 1
    kernel = 1 / 3 - along / squared
    kernel[0, 0, 0] = 0
    return kernel.float()


def green_kernel(
    shape: Sequence[int], voxel_size: Triple, b0_direction: Triple, *, device: torch.device | None = None
) -> Tensor:
    """Field of one voxel of chi = 1 at the voxel centres around it, in space.

    The voxel is a uniformly magnetised box, whose field has a closed form: unlike the point dipole it is right
    for the voxel itself and its neighbours, also where voxels are not cubes. A third of chi is added at the
    source (the Lorentz sphere), so the mean is zero as in `dipole_kernel`.

    Args:
        shape: Grid (x, y, z); offset 0 comes first and negative offsets last, as the FFT wants them.
        voxel_size: [mm].
        b0_direction: B0 in voxel axes; normalised here.

    Returns:
        Field per chi, no unit, float64, shape (x, y, z).

    References:
        Demagnetising tensor of a prism: Joseph and Schloemann 1965, doi:10.1063/1.1703091.
    """
    b = unit_vector(b0_direction)
    field = torch.zeros(tuple(shape), dtype=torch.float64, device=device)
    for (i, j), part in _box_tensor(shape, voxel_size, [pair for pair in PAIRS if b[pair[0]] * b[pair[1]]], device):
        field += b[i] * b[j] * (1 if i == j else 2) * part
    field[0, 0, 0] += 1 / 3
    return field


def _box_tensor(
    shape: Sequence[int], voxel_size: Triple, pairs: Sequence[tuple[int, int]], device: torch.device | None
) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Components (i, j) of the tensor T whose b.T.b is the field of a box magnetised along b, without Lorentz sphere:
    each with its values, float64, shape (x, y, z)."""
    # corners of the voxels at offsets 0 .. n // 2: eight voxels share one, and the other octants mirror this one
    corners = []
    for axis, (n, size) in enumerate(zip(shape, voxel_size, strict=True)):
        corner = (torch.arange(-1, n // 2 + 1, dtype=torch.float64, device=device) + 0.5) * size
        corners.append(along_axis(corner, axis))
    r = torch.sqrt(corners[0] ** 2 + corners[1] ** 2 + corners[2] ** 2)
    for i, j in pairs:
        if i == j:
            k, m = (axis for axis in range(3) if axis != i)
            primitive = -torch.atan(corners[k] * corners[m] / (corners[i] * r))
        else:
            # log(r + c) loses its digits where c is close to -r, so it is written with asinh
            across = torch.sqrt(corners[i] ** 2 + corners[j] ** 2)
            primitive = torch.asinh(corners[3 - i - j] / across)
        field = primitive.diff(dim=0).diff(dim=1).diff(dim=2)
        for axis, n in enumerate(shape):
            mirrored = field.narrow(axis, 1, (n - 1) // 2).flip(axis)
            odd = i != j and axis in (i, j)  # the field changes sign with this axis
            field = torch.cat([field, -mirrored if odd else mirrored], dim=axis)
            if odd and n % 2 == 0:
                field.select(axis, n // 2).neg_()  # fftfreq calls this offset -n / 2
        yield (i, j), field / (4 * math.pi)


class GreenTensor:
    """Spectra of `green_kernel` for every direction of B0 at once: what many fields on one grid share.

    Args:
        shape: Grid (x, y, z) that is transformed, padding included.
        voxel_size: [mm].

    Attributes:
        spectra: Of the six components, shape (6, x, y, z // 2 + 1), float32.
    """

    def __init__(self, shape: Sequence[int], voxel_size: Triple, *, device: torch.device | None = None):
        parts = [rfft(part).real.float() for _, part in _box_tensor(shape, voxel_size, PAIRS, device)]
        self.spectra = torch.stack(parts)

    def spectrum(self, b0_direction: Triple) -> Tensor:
        """Half spectrum of the kernel for one direction of B0, 0 at k = 0."""
        b = unit_vector(b0_direction)
        weights = self.spectra.new_tensor([b[i] * b[j] * (1 if i == j else 2) for i, j in PAIRS])
        spectrum = torch.einsum("c,cxyz->xyz", weights, self.spectra) + 1 / 3
        spectrum[0, 0, 0] = 0
        return spectrum


class DipoleModel(nn.Module):
    """Linear map from susceptibility to field: field = C F^-1 D F P chi, zero-padded against wrap-around.

    P appends zeros at the far end of each axis and C crops them again.

    Args:
        shape: Grid (x, y, z) of the volumes.
        voxel_size: [mm].
        b0_direction: B0 in voxel axes; normalised here.
        padding: Least number of zero voxels along each axis. None doubles the grid, after which no image of the
            object reaches the grid. 0 keeps the grid as it is: circular convolution.
        kernel: "fourier" samples the analytic D(k); "green" transforms the field of one voxel, which together
            with a doubled grid is an exact convolution. A `GreenTensor` of the padded grid is the same, made already.
    """

    spectrum: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        voxel_size: Triple,
        b0_direction: Triple = (0.0, 0.0, 1.0),
        *,
        padding: int | Sequence[int] | None = None,
        kernel: Literal["fourier", "green"] | GreenTensor = "fourier",
    ):
        super().__init__()
        self.shape: Shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.voxel_size: Triple = (float(voxel_size[0]), float(voxel_size[1]), float(voxel_size[2]))
        self.b0_direction: Triple = unit_vector(b0_direction)
        self.padded_shape: Shape = padded_shape(self.shape, padding)
        if isinstance(kernel, GreenTensor):
            spectrum = kernel.spectrum(self.b0_direction)
            if spectrum.shape[:2] != self.padded_shape[:2] or spectrum.shape[2] != self.padded_shape[2] // 2 + 1:
                raise ValueError(f"the tensor is for another grid than {self.padded_shape}")
        elif kernel == "green":
            field = green_kernel(self.padded_shape, self.voxel_size, self.b0_direction)
            spectrum = rfft(field).real.float()
            spectrum[0, 0, 0] = 0
        else:
            spectrum = dipole_kernel(self.padded_shape, self.voxel_size, self.b0_direction, half=True)
        self.register_buffer("spectrum", spectrum, persistent=False)

    def forward(self, chi: Volume) -> Volume:
        """Field [ppm] of a susceptibility map [ppm]. Same shape, (*batch, x, y, z)."""
        if tuple(chi.shape[-3:]) != self.shape:
            raise ValueError(f"the volume has shape {tuple(chi.shape)}, this dipole model is for {self.shape}")
        return irfft(rfft(chi, self.padded_shape) * self.spectrum, self.padded_shape, self.shape)

    def adjoint(self, field: Volume) -> Volume:
        """Adjoint of `forward`, [ppm] to [ppm]. D is real and even, and cropping is the adjoint of padding."""
        return self.forward(field)


def dipole_models(
    shape: Shape, voxel_size: Tensor, b0_direction: Tensor, *, padding: int | Sequence[int] | None = None
) -> list[DipoleModel]:
    """The model of each sample of a batch.

    Args:
        shape: Grid (x, y, z) of all.
        voxel_size: [mm], (batch, 3), on the device of the models.
        b0_direction: In voxel axes, (batch, 3).
        padding: As `DipoleModel` has it.
    """
    return [
        DipoleModel(shape, (a, b, c), (i, j, k), padding=padding).to(voxel_size.device)
        for (a, b, c), (i, j, k) in zip(voxel_size.tolist(), b0_direction.tolist(), strict=True)
    ]


def applied_to_each(models: Sequence[DipoleModel], volumes: Tensor) -> Tensor:
    """The model of each sample on its volumes (batch, ..., x, y, z), in float32; each is its own transpose."""
    return torch.stack([model(one.float()) for model, one in zip(models, volumes, strict=True)])


def unit_vector(direction: Sequence[float]) -> Triple:
    """The direction with length 1.

    Raises:
        ValueError: It has no length.
    """
    x, y, z = (float(component) for component in direction)
    norm = math.sqrt(x * x + y * y + z * z)
    if not norm > 0:
        raise ValueError(f"direction {tuple(direction)} has no length")
    return x / norm, y / norm, z / norm


def padded_shape(shape: Shape, padding: int | Sequence[int] | None) -> Shape:
    """Grid on which a `DipoleModel` with that padding works: fast for the FFT."""
    if padding is None:
        least = shape
    elif isinstance(padding, int):
        least = (padding,) * 3
    else:
        least = tuple(padding)
    if not any(least):
        return shape
    return fast_shape([n + extra for n, extra in zip(shape, least, strict=True)])
