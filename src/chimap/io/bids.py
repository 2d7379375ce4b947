"""Acquisitions as BIDS names and describes them (multi-echo gradient echo, "MEGRE")."""

import json
from dataclasses import dataclass
from pathlib import Path

from chimap.io.nifti import write_volume
from chimap.scan import Scan


@dataclass(frozen=True)
class MegreFiles:
    """Files of one acquisition, a 3D NIfTI per echo with its JSON beside it."""

    phase: tuple[Path, ...]
    magnitude: tuple[Path, ...]


def write_megre(folder: Path, scan: Scan, *, subject: str = "01") -> MegreFiles:
    """Write a scan as sub-<subject>_echo-<n>_part-<phase|mag>_MEGRE.nii.gz and .json.

    Args:
        folder: Exists.
        scan: Phase is written in rad, wrapped, in the package's sign.
        subject: BIDS label, letters and digits.

    References:
        BIDS 1.10, quantitative MRI appendix; Gorgolewski et al. 2016, doi:10.1038/sdata.2016.44.
    """
    written: dict[str, list[Path]] = {"phase": [], "mag": []}
    for echo, echo_time in enumerate(scan.echo_times):
        for part, volumes, units in (("phase", scan.phase, "rad"), ("mag", scan.magnitude, "arbitrary")):
            if volumes is None:
                continue
            path = folder / f"sub-{subject}_echo-{echo + 1}_part-{part}_MEGRE.nii.gz"
            write_volume(path, volumes[echo], scan.affine, description=f"{part} [{units}]")
            sidecar = {"EchoTime": echo_time, "MagneticFieldStrength": scan.field_strength, "Units": units}
            path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(sidecar, indent=2) + "\n")
            written[part].append(path)
    return MegreFiles(tuple(written["phase"]), tuple(written["mag"]))
