"""What separates a measured local field from the dipole field of any chi map.

A network or a parameter that is tuned on exact dipole fields trusts the field too much: a person's field differs
from that of the best chi map by about half its SD. The parts below make that difference, one for each cause.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from chimap.arrays import Mask, Shape, Triple, Volume
from chimap.errors import InputError
from chimap.linalg import SPACE
from chimap.physics.dipole import unit_vector
from chimap.simulation.smooth_noise import gaussian_blur, smooth_noise
from chimap.simulation.tissues import TISSUES

PARTS = ("region", "microstructure", "background", "texture")
"""Names of the parts of `field_error`."""

FIBRES: dict[str, float] = {
    "white matter": 1.0,
    "internal capsule": 1.0,
    "cerebellar white matter": 1.0,
    "brain stem": 0.7,
    "thalamus": 0.4,
}
"""Share of aligned myelin per tissue: round values; bundles of the brain stem cross, the thalamus holds few."""

RIM = ((30.0, 12.0), (15.0, 6.0))
"""Residual background: how far its patches are apart [mm] and how far they reach in from the rim [mm]. A harmonic
field decays the faster the finer it is."""


def field_error(
    labels: Tensor,
    mask: Mask,
    voxel_size: Triple,
    b0_direction: Triple,
    *,
    share: float,
    local_field: Volume,
    generator: torch.Generator,
    parts: Mapping[str, float] | None = None,
) -> Volume:
    """Draw an error of a local field, to be added to it.

    A sum of four parts, each of mean 0 and SD 1 in the mask before it is weighted:

    - "region": an offset per label, half of its variance varying slowly within the label; at borders softened over
      a voxel. chi is a tensor, so a tissue's apparent chi and field depend on how it lies, and exchange of water
      with macromolecules shifts a tissue's frequency without any dipole field (Liu 2010, doi:10.1002/mrm.22482;
      Zhong et al. 2008, NeuroImage 40:1561).
    - "microstructure": where `FIBRES` are, an offset proportional to sin^2(theta) - 2/3, theta between B0 and a
      fibre direction that varies smoothly at random. Myelin sheaths are hollow cylinders, whose own water does not
      see the field of a homogeneous tissue; turning B0 changes it (Wharton and Bowtell 2012,
      doi:10.1073/pnas.1211075109; He and Yablonskiy 2009, doi:10.1073/pnas.0904899106; Lee et al. 2010,
      doi:10.1073/pnas.0910222107).
    - "background": what background removal leaves: smooth patches at the mask's rim, the finer the shallower as
      harmonic fields are, and a slow field over the whole mask (Schweser et al. 2017, doi:10.1002/nbm.3604).
    - "texture": grain of 2 to 4 mm, or of a voxel where that is larger, stronger in patches and threefold at the
      rim: unwrapping, flow, motion and Gibbs ringing, which obey no dipole model.

    Tensor, sheaths and harmonic fields are here in their look only: no tensor is drawn and no Laplace equation is
    solved. The same generator state gives the same error but for its "microstructure" under another B0 direction.

    Args:
        labels: Tissue numbers, of an integer type, shape (x, y, z); "microstructure" knows those of `TISSUES`.
        mask: Where the field is known, shape (x, y, z).
        voxel_size: [mm].
        b0_direction: B0 in voxel axes; normalised here.
        share: SD of the error over the SD of `local_field`, both in the mask; 0.5 is typical, 0.1 to 0.9 the range.
        local_field: [ppm], shape (x, y, z).
        generator: On the device of the volumes.
        parts: Share of the variance for each part, up to a factor; a part that is not named has none. None draws
            the shares evenly from all that are possible. A part without variation in the mask, as
            "microstructure" where there is no white matter, drops out.

    Returns:
        [ppm], shape (x, y, z), mean 0 in the mask, 0 outside it.

    Raises:
        InputError: Shapes that differ, an empty mask, labels that are no numbers of tissues, a share below 0,
            unknown parts, or parts that all drop out.
    """
    _check(labels, mask, local_field, share, parts)
    inside, number = mask.to(local_field), labels.long()
    drawn = torch.empty(len(PARTS), device=mask.device).exponential_(generator=generator)  # made a Dirichlet below
    shares = drawn if parts is None else drawn.new_tensor([float(parts.get(name, 0.0)) for name in PARTS])
    # about 1 at the rim of something large, 0 far inside
    rims = [2 * (1 - gaussian_blur(inside, voxel_size, reach)) for _, reach in RIM]
    made = {
        "region": lambda: _region(number, voxel_size, generator),
        "microstructure": lambda: _microstructure(number, voxel_size, b0_direction, generator),
        "background": lambda: _background(rims, voxel_size, generator),
        "texture": lambda: _texture(rims[-1], voxel_size, generator),
    }
    error = torch.zeros_like(local_field)
    for name, part_share in zip(PARTS, shares.tolist(), strict=True):
        if part_share > 0:
            part, spread = _centred(made[name]().to(local_field), inside)
            error.add_(part * torch.where(spread > 0, math.sqrt(part_share) / spread, 0.0))
    error, spread = _centred(error, inside)
    if share > 0 and not spread > 0:
        raise InputError(f"no part of the field error varies in the mask: asked for {', '.join(parts or PARTS)}")
    _, wanted = _centred(local_field, inside)
    return error.mul_(torch.where(spread > 0, share * wanted / spread, 0.0))


def _region(number: Tensor, voxel_size: Triple, generator: torch.Generator) -> Volume:
    """An offset per label and two slow fields, mixed differently in each label."""
    table = torch.randn(3, int(number.max()) + 1, generator=generator, device=number.device)
    slow = smooth_noise(_shape(number), voxel_size, 25.0, generator=generator, channels=2)
    offset = _look_up(table[0], number)
    for field, weights in zip(slow, table[1:], strict=True):
        offset.addcmul_(field, _look_up(weights, number), value=math.sqrt(0.5))
    return _soften(offset)


def _microstructure(number: Tensor, voxel_size: Triple, b0_direction: Triple, generator: torch.Generator) -> Volume:
    """sin^2(theta) - 2/3, weighted by the share of fibres."""
    last = max(int(number.max()), *(TISSUES[name].label for name in FIBRES))
    table = torch.zeros(last + 1, device=number.device)
    for name, weight in FIBRES.items():
        table[TISSUES[name].label] = weight
    fibre = smooth_noise(_shape(number), voxel_size, 15.0, generator=generator, channels=3)
    x, y, z = unit_vector(b0_direction)
    along = (x * fibre[0]).add_(fibre[1], alpha=y).add_(fibre[2], alpha=z)
    length = fibre.square_()[0].add_(fibre[1]).add_(fibre[2])
    squared_cosine = along.square_().div_(length.clamp_min_(1e-12))
    return _soften(_look_up(table, number).mul_(squared_cosine.neg_().add_(1 / 3)))


def _background(rims: Sequence[Volume], voxel_size: Triple, generator: torch.Generator) -> Volume:
    """A slow field, and patches that fade from the rim inwards."""
    shape = _shape(rims[0])
    field = 0.5 * smooth_noise(shape, voxel_size, 60.0, generator=generator)
    for rim, (spacing, _) in zip(rims, RIM, strict=True):
        field.addcmul_(rim, smooth_noise(shape, voxel_size, spacing, generator=generator))
    return field


def _texture(rim: Volume, voxel_size: Triple, generator: torch.Generator) -> Volume:
    """Grain whose autocorrelation is 2 to 4 mm wide at half its height."""
    width = 2 + 2 * float(torch.rand((), generator=generator, device=rim.device))
    grain = smooth_noise(_shape(rim), voxel_size, width / 2, generator=generator)
    strength = smooth_noise(_shape(rim), voxel_size, 30.0, generator=generator).mul_(0.3).exp_()
    return grain.mul_(strength).mul_(rim + 0.5)


def _shape(volume: Tensor) -> Shape:
    x, y, z = volume.shape
    return x, y, z


def _look_up(table: Tensor, number: Tensor) -> Volume:
    return table.index_select(0, number.flatten()).reshape(number.shape)  # several times faster than table[number]


def _soften(volume: Volume) -> Volume:
    """Weights 1/4, 1/2, 1/4 along each axis; what lies at a face of the grid stays along its axis."""
    result = volume.clone()
    for axis in SPACE:
        n = result.shape[axis]
        if n > 2:
            between = result.narrow(axis, 1, n - 1) + result.narrow(axis, 0, n - 1)
            middle = between.narrow(axis, 1, n - 2) + between.narrow(axis, 0, n - 2)
            torch.mul(middle, 0.25, out=result.narrow(axis, 1, n - 2))
    return result


def _centred(volume: Volume, inside: Volume) -> tuple[Volume, Tensor]:
    """The volume with mean 0 in the mask and 0 outside, and its SD there, 0 where that is but rounding."""
    count = inside.sum()
    known = volume * inside
    most = known.abs().amax()
    known.sub_(inside * (known.sum() / count))
    spread = torch.linalg.vector_norm(known) / count.sqrt()
    return known, torch.where(spread > 1e-6 * most, spread, 0.0)


def _check(labels: Tensor, mask: Tensor, local_field: Tensor, share: float, parts: Mapping[str, float] | None) -> None:
    if labels.dim() != 3 or not labels.shape == mask.shape == local_field.shape:
        raise InputError(
            f"labels, mask and local field have the shapes {tuple(labels.shape)}, {tuple(mask.shape)} and "
            f"{tuple(local_field.shape)}, needed one shape (x, y, z)"
        )
    if labels.is_floating_point() or labels.is_complex() or int(labels.min()) < 0:
        raise InputError(f"the labels are of type {labels.dtype} or below 0, needed whole numbers from 0")
    if not mask.any():
        raise InputError("the mask is empty")
    if not (share >= 0 and math.isfinite(share)):
        raise InputError(f"the field error's share is {share}, needed a number from 0")
    if parts is None:
        return
    if unknown := sorted(set(parts) - set(PARTS)):
        raise InputError(f"the field error has no part {', '.join(unknown)}, only {', '.join(PARTS)}")
    if not all(value >= 0 and math.isfinite(value) for value in parts.values()) or not sum(parts.values()) > 0:
        raise InputError(f"the shares of the field error's parts are {dict(parts)}, needed numbers from 0, one above")
