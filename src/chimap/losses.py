"""Losses of the papers as functions, shared by training and by refinement on one scan.

All take chi and fields in ppm, shape (batch, x, y, z), and give a scalar. A factor `radians` turns ppm into the phase
that a nonlinear loss compares: the scan's own radians per ppm, or a fixed number.
"""

import torch
from torch import Tensor

from chimap.arrays import Mask, Scalar, Triple, Volume
from chimap.linalg import SPACE
from chimap.physics.dipole import DipoleModel


def nonlinear_field_loss(
    chi: Volume, field: Volume, mask: Mask, weight: Volume, dipole: DipoleModel, *, radians: float
) -> Scalar:
    """NDI: mean |W m (exp(i r A chi) - exp(i r f))|^2. No reference chi is needed, and no unwrapped field.

    Args:
        chi: [ppm].
        field: f, local field [ppm].
        mask: m.
        weight: W, the magnitude scaled to 0..1 or the inverse noise.
        dipole: A.
        radians: r, phase per ppm.

    References:
        Liu and Koch 2020, doi:10.48550/arXiv.2004.06259; Polak et al. 2020, doi:10.1002/nbm.4271.
    """
    # |exp(i a) - exp(i b)|^2 = 2 - 2 cos(a - b)
    angle = radians * (dipole(chi) - field)
    return (2 * (1 - torch.cos(angle)) * (weight * mask).square()).mean()


def weighted_field_loss(
    chi: Volume, field: Volume, mask: Mask, weight: Volume, dipole: DipoleModel, *, radians: float
) -> Scalar:
    """WLDI: mean (W m r (A chi - f))^2, the linear form of `nonlinear_field_loss`; LDI is that with W = 1."""
    return (radians * weight * mask * (dipole(chi) - field)).square().mean()


def total_variation_loss(chi: Volume, voxel_size: Triple | None = None) -> Scalar:
    """Sum over the axes of mean |forward difference|.

    Args:
        chi: Any unit.
        voxel_size: Differences per mm; None for differences per voxel, as the papers have them.
    """
    terms = []
    for axis, size in zip(SPACE, voxel_size or (1.0, 1.0, 1.0), strict=True):
        terms.append(chi.diff(dim=axis).abs().mean() / size)
    return terms[0] + terms[1] + terms[2]


def consistency_losses(
    chi: Volume, perturbed: Volume, source: Volume, inside: Mask, mask: Mask
) -> tuple[Scalar, Scalar]:
    """uQSM+: a source that was added to the field has to come back in chi, and nothing else may change.

    Args:
        chi: Of the field [ppm].
        perturbed: Of the field with that of the source added [ppm].
        source: Its chi [ppm].
        inside: Where it lies.
        mask: Brain.

    Returns:
        Mean |(perturbed - chi) - source| within the source, and mean |perturbed - chi| in the rest of the mask, both
        as shares of the whole grid. The paper writes L2; its code has these means.

    References:
        Liu, Improved Model-based Learning with Data Augmentation for QSM, equations 5 and 6.
    """
    change = perturbed - chi
    at_source = ((change - source) * (inside & mask)).abs().mean()
    elsewhere = (change * (mask & ~inside)).abs().mean()
    return at_source, elsewhere


def consistency_weight(progress: float, *, peak: float = 1.5, rest: float = 0.1) -> float:
    """Weight of `consistency_losses` over a training: up to its peak over two fifths, down over the next two, a rest.

    The published code changes it once an epoch, in 15 epochs; this is the line through those steps.

    Args:
        progress: Share of the training that is done, 0 to 1.
        peak: Largest weight.
        rest: Of the last fifth.
    """
    if progress < 0.4:
        return peak * progress / 0.4
    return max(peak * (0.8 - progress) / 0.4, rest)


def masked_l1(chi: Volume, truth: Volume, mask: Mask) -> Scalar:
    """Mean |chi - truth| inside the mask of each sample, and of those over the batch [ppm]."""
    return _mean((chi - truth).abs(), mask)


def masked_l2(chi: Volume, truth: Volume, mask: Mask) -> Scalar:
    """As `masked_l1`, mean (chi - truth)^2 [ppm^2]."""
    return _mean((chi - truth).square(), mask)


def gradient_l1(chi: Volume, truth: Volume, mask: Mask) -> Scalar:
    """QSMnet's gradient loss as printed: mean ||d chi| - |d truth||, summed over the axes, inside the mask.

    Differences are forward, per voxel; a pair of voxels counts where both are inside.

    References:
        Yoon et al. 2018, doi:10.1016/j.neuroimage.2018.06.030.
    """
    total = chi.new_zeros(())
    for axis in SPACE:
        n = chi.shape[axis] - 1
        both = mask.narrow(axis, 0, n) & mask.narrow(axis, 1, n)
        difference = chi.diff(dim=axis).abs() - truth.diff(dim=axis).abs()
        total = total + _mean(difference.abs(), both)
    return total


def _mean(volume: Tensor, mask: Tensor) -> Scalar:
    """Of each sample inside its mask, then over the batch: no sample weighs more for its larger mask."""
    return ((volume * mask).sum(dim=SPACE) / mask.sum(dim=SPACE).clamp_min(1)).mean()


def neighbour_l1(chi: Volume, truth: Volume) -> Scalar:
    """QSMnet's gradient loss as published in code: per voxel, the sum over its 26 neighbours of the rise to each over
    the distance to it, in voxels; mean absolute difference of that between chi and truth.
    """
    return (_rises(chi) - _rises(truth)).abs().mean()


def _rises(volume: Volume) -> Tensor:
    padded = torch.nn.functional.pad(volume, (1,) * 6, mode="replicate")
    total = torch.zeros_like(volume)
    x, y, z = volume.shape[-3:]
    for i in range(3):
        for j in range(3):
            for k in range(3):
                distance = ((i - 1) ** 2 + (j - 1) ** 2 + (k - 1) ** 2) ** 0.5
                if distance:
                    neighbour = padded[..., i : i + x, j : j + y, k : k + z]
                    total = total + (neighbour - volume).clamp_min(0) / distance
    return total
