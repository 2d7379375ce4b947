"""What chi is relative to: a field says nothing of chi's mean, so that of some region is made zero."""

import math

import torch

from chimap.arrays import Mask, Triple, Volume
from chimap.errors import InputError
from chimap.methods import Method
from chimap.parcellation import NAMES
from chimap.plan import WHOLE_MASK
from chimap.regions import known_region, region_called
from chimap.scan import Reference, Scan
from chimap.segmentation import VENTRICLES, Segmentation, canonical, region


def is_region(reference: str) -> bool:
    """Whether the word of a plan is the name of a region."""
    return reference not in ("mask", "none", "csf")


def finds_csf(scan: Scan, reference: str, inversion: Method) -> bool:
    """Whether fluid has to be found by R2*: the inversion makes its chi zero, or no segmentation says where it is."""
    return inversion.zero_is_csf or (reference == "csf" and not _ventricles_are_given(scan))


def check_reference(scan: Scan, reference: str, inversion: Method) -> None:
    """Refuse a reference that the scan, or the method that gives chi, cannot have.

    Raises:
        InputError: Says what is needed.
    """
    decay = scan.magnitude is not None and len(scan.echo_times) > 1
    if inversion.zero_is_csf and not decay:
        raise InputError(
            f"{inversion.label} finds the fluid whose chi is zero by R2*, for which the magnitude of two echoes "
            "or more is needed: choose medi, or give `chimap invert` the local field and a mask of the fluid with --csf"
        )
    if inversion.zero_is_csf and reference not in ("mask", "csf"):
        raise InputError(f"{inversion.label} makes chi zero in the ventricles; needed no other --reference")
    if reference == "csf" and not decay and not _ventricles_are_given(scan):
        raise InputError(
            "--reference csf finds the fluid of the ventricles by R2*, for which the magnitude of two echoes or more "
            "is needed, or takes it from a segmentation that names the lateral ventricles"
        )
    if is_region(reference):
        known_region(reference, NAMES if scan.segmentation is None else scan.segmentation.names)
        if scan.segmentation is not None and not region_called(reference, scan.segmentation).any():
            raise InputError(f"chi was to be relative to {reference}, of which the segmentation has no voxel")


def referred(
    chi: Volume,
    mask: Mask,
    voxel_size: Triple,
    reference: str,
    *,
    csf: Mask | None = None,
    segmentation: Segmentation | None = None,
) -> tuple[Volume, Reference | None]:
    """chi relative to what a plan says, and that; None where chi stays as it is.

    Args:
        chi: [ppm], shape (x, y, z).
        mask: Where it is valid; elsewhere it stays as it is.
        voxel_size: [mm].
        reference: The word of the plan.
        csf: The fluid that the method or the plan wanted found; it is what chi is then relative to.
        segmentation: Where the regions are.

    Raises:
        InputError: chi is valid nowhere in the region.
    """
    if csf is None and reference == "none":
        return chi, None
    inside, name = mask, WHOLE_MASK
    if csf is not None:
        inside, name = csf, "the cerebrospinal fluid in the middle of the brain, where R2* is lowest"
    elif reference == "csf" and segmentation is not None:
        inside, name = region(segmentation, VENTRICLES), "the lateral ventricles"
    elif reference != "mask" and segmentation is not None:
        inside, name = region_called(reference, segmentation), canonical(reference)
    values = chi[mask & inside].double()
    voxels = values.numel()
    if not voxels:
        raise InputError(
            f"chi was to be relative to {name}, of which there is no voxel in the mask in which it is valid"
        )
    mean, sd = float(values.mean()), float(values.std(correction=min(voxels - 1, 1)))
    found = Reference(name, voxels, voxels * math.prod(voxel_size) / 1000, mean, sd)
    return torch.where(mask, chi - mean, chi), found


def _ventricles_are_given(scan: Scan) -> bool:
    return scan.segmentation is not None and bool(region(scan.segmentation, VENTRICLES).any())
