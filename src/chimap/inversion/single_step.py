"""Networks that start earlier in the chain: chi or local field of the total field, or of the wrapped phase."""

import math
from pathlib import Path

import torch
from torch import Tensor

from chimap.arrays import Echoes, Mask, Triple, Volume
from chimap.inversion.frame import Frame, frame_of, into, out_of, sampled
from chimap.inversion.learned import MARGIN, trained_by
from chimap.inversion.total_field import pdf_tv
from chimap.linalg import bounding_box
from chimap.networks.apply import mirror_images, outputs, predict
from chimap.networks.echoes import STEEPEST, echo_shares
from chimap.networks.laplacian import interior
from chimap.networks.precision import BF16
from chimap.networks.variational import VariationalNet
from chimap.networks.weights import Trained
from chimap.physics.dipole import DipoleModel
from chimap.physics.shim import shim_field
from chimap.physics.units import radians_per_ppm


def from_phase(
    phase: Echoes,
    magnitude: Echoes | None,
    mask: Mask,
    echo_times: tuple[float, ...],
    field_strength: float,
    voxel_size: Triple,
    b0_direction: Triple,
    *,
    weights: str | Path,
    turn: bool = True,
    images: int = 3,
    steepest: float = STEEPEST,
    bf16: bool = BF16,
) -> tuple[Volume, Mask]:
    """What a network finds in the wrapped phase of all echoes.

    Their Laplacians become one before the network sees them, weighted by (magnitude TE)^2 where they can be trusted
    (`networks.echoes`); the published code takes the mean of what it finds in each echo. A scan of other voxels than
    the network knows is brought to those as a complex signal, and what it finds back.

    Args:
        phase: Wrapped [rad], (echo, x, y, z).
        magnitude: Likewise, or None: then echoes are weighted by TE^2.
        mask: (x, y, z).
        echo_times: [s].
        field_strength: [T].
        voxel_size: [mm].
        b0_direction: In voxel axes.
        weights: Name of those that come with the package, or the best.safetensors of a training.
        turn: Whether a scan is turned where the network does not know its direction of B0: iQSM's weights are
            Affined-iQSM then, and iQSM without.
        images: A network that is told the direction of B0 is shown up to so many mirror images of the scan
            (`networks.apply.mirror_images`), and chi is the mean of what it finds.
        steepest: Echoes whose phase [rad] differs more from voxel to voxel are left out there, but for the first.
        bf16: Convolutions in bfloat16: faster where the processor has them, and a little less exact.

    Returns:
        chi, or of iQFM the local field [ppm], and where it is valid: a voxel less than the mask on every side, as the
        Laplacian needs neighbours.

    Raises:
        InputError: There are no such weights, or they take no phase.

    References:
        iQSM: Gao et al. 2022, doi:10.1016/j.neuroimage.2022.119410. iQSM+: Gao et al. 2024,
        doi:10.1016/j.media.2024.103160.
    """
    trained = trained_by(weights, "phase")
    box = bounding_box(mask, (MARGIN,) * 3)
    scan_mask = mask[box]
    x, y, z = scan_mask.shape
    tilt = trained.tilt if turn else math.pi / 2
    frame = frame_of(voxel_size, b0_direction, (x, y, z), trained.voxel_sizes, tilt)
    inside, size, b0 = scan_mask, voxel_size, b0_direction
    if frame is not None:
        size, b0 = frame.voxel_size, frame.b0_direction
        inside = sampled(scan_mask.float(), frame.matrix, frame.offset, frame.shape, order=1) > 0.5
    network = trained.network.to(phase.device)
    strength = torch.ones_like(phase) if magnitude is None else magnitude
    echoes = [_in_frame(*echo, frame) for echo in zip(phase[:, *box], strength[:, *box], strict=True)]
    wrapped, strength = (torch.stack(part) for part in zip(*echoes, strict=True))
    shares = echo_shares(wrapped, strength, inside, echo_times, steepest=steepest)
    with torch.no_grad(), torch.autocast(phase.device.type, torch.bfloat16, enabled=bf16):
        chi = predict(
            network,
            wrapped[None],
            inside[None],
            input_scale=trained.input_scale,
            output_scale=trained.output_scale,
            b0_direction=phase.new_tensor([b0]),
            voxel_size=phase.new_tensor([size]),
            radians_per_ppm=phase.new_tensor([[radians_per_ppm(time, field_strength) for time in echo_times]]),
            shares=shares[None],
            images=range(mirror_images(network, b0, images)),
        )[0]
    valid = interior(scan_mask[None, None])[0, 0] > 0
    if frame is not None:
        chi = out_of(chi, inside, frame)
    found, where = torch.zeros_like(phase[0]), torch.zeros_like(mask)
    found[box], where[box] = chi * valid, valid
    return found, where


def from_total_field(
    total_field: Volume,
    mask: Mask,
    voxel_size: Triple,
    b0_direction: Triple,
    *,
    weights: str | Path,
    bf16: bool = BF16,
) -> tuple[Volume, Volume]:
    """chi by a network that removes the background field too, and finds chi that is consistent with what is left.

    Args:
        total_field: [ppm], (x, y, z).
        mask: Same shape.
        voxel_size: [mm].
        b0_direction: In voxel axes.
        weights: Name of those that come with the package, or the best.safetensors of a training.
        bf16: Convolutions in bfloat16: faster where the processor has them, and a little less exact.

    Returns:
        chi and local field [ppm], zero outside the mask.

    Raises:
        InputError: There are no such weights, or they take no total field.

    References:
        NeXtQSM: Cognolato et al. 2023, doi:10.1016/j.media.2022.102700.
    """
    trained = trained_by(weights, "total field")
    local_field, chi = _of_total_field(total_field, mask, voxel_size, b0_direction, trained, bf16=bf16)
    assert chi is not None
    return chi, local_field


def local_from_total_field(
    total_field: Volume,
    noise: Volume | None,
    mask: Mask,
    dipole: DipoleModel,
    *,
    weights: str | Path,
    bf16: bool = False,
) -> tuple[Volume, Mask]:
    """The local field by a network that removes the background: SHARQnet, or the first of the two of NeXtQSM.

    Args:
        total_field: [ppm], (x, y, z).
        noise: Not used; part of the shared signature.
        mask: Same shape.
        dipole: Says voxel size and direction of B0.
        weights: Name of those that come with the package, or the best.safetensors of a training.
        bf16: Convolutions in bfloat16, whose eight bits are the size of the local field in a strong background.

    Returns:
        Local field [ppm], zero outside the mask, and the mask, which stays as it is.

    Raises:
        InputError: There are no such weights, or they take no total field.

    References:
        SHARQnet: Bollmann et al. 2019, doi:10.1016/j.zemedi.2019.01.001. NeXtQSM: Cognolato et al. 2023,
        doi:10.1016/j.media.2022.102700.
    """
    trained = trained_by(weights, "total field")
    arguments = (total_field, mask, dipole.voxel_size, dipole.b0_direction, trained)
    return _of_total_field(*arguments, bf16=bf16, local_only=True)[0], mask


def _of_total_field(
    total_field: Volume,
    mask: Mask,
    voxel_size: Triple,
    b0_direction: Triple,
    trained: Trained,
    *,
    bf16: bool,
    local_only: bool = False,
) -> tuple[Volume, Volume | None]:
    """Local field and, if it is not left out, chi [ppm] on the scan's grid, zero outside the mask.

    A second-order polynomial is taken off first: it is background, and spares the network the largest part. Of a
    resampled scan the background is brought back, not the local field: it is smooth, and loses nothing by that.
    """
    box = bounding_box(mask, (MARGIN,) * 3)
    scan_field = ((total_field - shim_field(total_field, mask.float(), voxel_size)) * mask)[box]
    field, inside = scan_field, mask[box]
    x, y, z = inside.shape
    frame = frame_of(voxel_size, b0_direction, (x, y, z), trained.voxel_sizes, trained.tilt)
    size, b0 = voxel_size, b0_direction
    if frame is not None:
        size, b0 = frame.voxel_size, frame.b0_direction
        field, inside = into(field, inside, frame)
    network, begun = trained.network.to(field.device), None
    if isinstance(network, VariationalNet) and network.shape.begun:
        x, y, z = field.shape
        begun = pdf_tv(field, None, inside, DipoleModel((x, y, z), size, b0, padding=0))[0][None]
    with torch.no_grad(), torch.autocast(field.device.type, torch.bfloat16, enabled=bf16):
        local, *more = outputs(
            network,
            field[None],
            inside[None],
            input_scale=trained.input_scale,
            output_scale=trained.output_scale,
            b0_direction=field.new_tensor([b0]),
            voxel_size=field.new_tensor([size]),
            begun=begun,
            local_only=local_only and isinstance(network, VariationalNet),
        )[0]
    if frame is not None:
        local = scan_field - out_of(field - local, inside, frame)
        more = [out_of(volume, inside, frame) for volume in more]

    def whole(part: Tensor) -> Volume:
        volume = torch.zeros_like(total_field)
        volume[box] = part
        return volume * mask

    return whole(local), whole(more[0]) if more else None


def _in_frame(phase: Tensor, magnitude: Tensor, frame: Frame | None) -> tuple[Tensor, Tensor]:
    """Phase and magnitude as the network knows them, by splines of the complex signal."""
    if frame is None:
        return phase, magnitude
    parts = [
        sampled(magnitude * wave, frame.matrix, frame.offset, frame.shape, order=3)
        for wave in (phase.cos(), phase.sin())
    ]
    return torch.atan2(parts[1], parts[0]), torch.hypot(*parts)
