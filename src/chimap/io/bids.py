"""Acquisitions as BIDS names and describes them (multi-echo gradient echo, "MEGRE"), and derivatives of them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from chimap.errors import InputError
from chimap.io.bids_names import json_beside, write_description, write_json
from chimap.io.nifti import write_volume
from chimap.io.scaling import TURN
from chimap.scan import Scan

__all__ = ["STORAGE", "MegreFiles", "Storage", "json_beside", "write_description", "write_json", "write_megre"]


@dataclass(frozen=True)
class MegreFiles:
    """Files of one acquisition, a 3D NIfTI per echo with its JSON beside it."""

    phase: tuple[Path, ...]
    magnitude: tuple[Path, ...]


@dataclass(frozen=True)
class Storage:
    """How a vendor's files hold phase, as whole numbers.

    Attributes:
        manufacturer: As sidecars write it.
        zero: Stored value of phase 0.
        turn: Stored values in one turn.
        sign: -1 where phase falls with a stronger field.
    """

    manufacturer: str
    zero: int
    turn: float
    sign: int = 1


STORAGE: dict[str, Storage | None] = {
    "radians": None,
    "siemens": Storage("Siemens", 0, 8192.0),
    "philips": Storage("Philips", 2048, 4096.0),
    "ge": Storage("GE MEDICAL SYSTEMS", 0, 1000 * TURN, -1),
}
"""How phase lies in files, by vendor: the ranges that `scaling` knows."""


def write_megre(
    folder: Path, scan: Scan, *, subject: str = "01", vendor: str = "radians", sign: int | None = None
) -> MegreFiles:
    """Write a scan as sub-<subject>_echo-<n>_part-<phase|mag>_MEGRE.nii.gz and .json.

    Args:
        folder: Exists.
        scan: Its phase is written wrapped.
        subject: BIDS label, letters and digits.
        vendor: How phase is stored, a name of `STORAGE`.
        sign: 1 or -1, for a scanner with another sign of phase than the vendor has; its reader has to be told.

    Raises:
        InputError: No such vendor.

    References:
        BIDS 1.10, quantitative MRI appendix; Gorgolewski et al. 2016, doi:10.1038/sdata.2016.44.
    """
    if vendor not in STORAGE:
        raise InputError(f"no storage is called {vendor!r}; there are {', '.join(STORAGE)}")
    storage = STORAGE[vendor]
    written: dict[str, list[Path]] = {"phase": [], "mag": []}
    for echo, echo_time in enumerate(scan.echo_times):
        for part, volumes in (("phase", scan.phase), ("mag", scan.magnitude)):
            if volumes is None:
                continue
            volume, units = volumes[echo], "arbitrary"
            if part == "phase":
                volume, units = _stored(volume, storage, sign)
            path = folder / f"sub-{subject}_echo-{echo + 1}_part-{part}_MEGRE.nii.gz"
            write_volume(path, volume, scan.affine, description=f"{part} [{units}]")
            sidecar = {"EchoTime": echo_time, "MagneticFieldStrength": scan.field_strength, "Units": units}
            if storage is not None:
                sidecar["Manufacturer"] = storage.manufacturer
            write_json(json_beside(path), sidecar)
            written[part].append(path)
    return MegreFiles(tuple(written["phase"]), tuple(written["mag"]))


def _stored(phase: Tensor, storage: Storage | None, sign: int | None) -> tuple[Tensor, str]:
    """Phase [rad] as the vendor's numbers, int16, and their unit."""
    if storage is None:
        return phase * (sign or 1), "rad"
    value = torch.round(phase * ((sign or storage.sign) * storage.turn / TURN))
    half = round(storage.turn / 2)
    # pi and -pi are one value, where a turn is a whole number of them
    value = torch.where(value >= half, value - storage.turn, value) if storage.turn == 2 * half else value
    return (value + storage.zero).to(torch.int16), "arbitrary"
