"""Voxels off by a wrap, and seconds: chimap beside scikit-image and niimath (ROMEO), on the built-in head.

    python benchmarks/unwrapping.py [--shape 160 160 160] [--cases 3:15 3:5 7:15 7:5]

A case is field strength [T] : SNR at the first echo. A voxel is right if it is at the turn at which the
measured phase, with its noise, is closest to the true phase; one turn more or less for a whole echo is not
counted. The scan keeps its phase offset unless a row says that it was removed before. niimath is left out
where it is not installed (pip install niimath); its seconds include the temporary files.
"""

import argparse
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from skimage.restoration import unwrap_phase
from torch import Tensor

from chimap.fields.echoes import phase_offset
from chimap.fields.unwrap import unwrap_quality_guided
from chimap.physics.phase import TURN, wrap
from chimap.physics.units import radians_per_ppm
from chimap.scan import Scan
from chimap.simulation.acquisition import ECHO_TIMES, acquire
from chimap.simulation.head import built_in_head

Unwrap = Callable[[Tensor, Scan, Tensor], Tensor]


def own(phase: Tensor, scan: Scan, mask: Tensor) -> Tensor:
    return unwrap_quality_guided(phase, scan.magnitude, mask, scan.echo_times, scan.voxel_size)


def best_path(phase: Tensor, scan: Scan, mask: Tensor) -> Tensor:
    """scikit-image on every echo."""
    outside = ~mask.numpy()
    echoes = [unwrap_phase(np.ma.array(echo.numpy(), mask=outside)).filled(0) for echo in phase]
    return torch.from_numpy(np.stack(echoes).astype(np.float32))


def best_path_in_time(phase: Tensor, scan: Scan, mask: Tensor) -> Tensor:
    """scikit-image on the first echo; each later one by the ratio of echo times to the one before."""
    echoes = list(best_path(phase[:1], scan, mask))
    for number in range(1, len(phase)):
        expected = echoes[-1] * (scan.echo_times[number] / scan.echo_times[number - 1])
        echoes.append(phase[number] + TURN * torch.round((expected - phase[number]) / TURN))
    return torch.stack(echoes) * mask


def niimath_program() -> str | None:
    return shutil.which("niimath", path=str(Path(sys.executable).parent)) or shutil.which("niimath")


def niimath(phase: Tensor, scan: Scan, mask: Tensor) -> Tensor:
    assert scan.magnitude is not None
    with tempfile.TemporaryDirectory() as folder:
        volumes = {"phase": phase, "magnitude": scan.magnitude, "mask": mask[None].float()}
        for name, volume in volumes.items():
            data = np.moveaxis(volume.numpy(), 0, -1).squeeze()
            nib.save(nib.Nifti1Image(data, np.diag([*scan.voxel_size, 1])), f"{folder}/{name}.nii")
        times = ",".join(f"{1000 * value:g}" for value in scan.echo_times)
        command = [str(niimath_program()), "phase.nii", "-romeo", "magnitude.nii", "-t", times, "-k", "mask.nii"]
        command += ["-no-phase-rescale", "result.nii", "-odt", "float"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, env={"FSLOUTPUTTYPE": "NIFTI"})
        data = np.asarray(nib.load(f"{folder}/result.nii").dataobj, dtype=np.float32)
    return torch.from_numpy(np.moveaxis(data.reshape(*mask.shape, -1), -1, 0).copy())


def without_offset(unwrap: Unwrap) -> Unwrap:
    def combined(phase: Tensor, scan: Scan, mask: Tensor) -> Tensor:
        offset = phase_offset(phase, scan.magnitude, mask, scan.echo_times, scan.voxel_size)
        return unwrap(wrap(phase - offset), scan, mask) + offset * mask

    return combined


def wrong_percent(unwrapped: Tensor, phase: Tensor, true: Tensor, mask: Tensor) -> list[float]:
    """Per echo."""
    shares = []
    for found, measured, wanted in zip(unwrapped, phase, true, strict=True):
        right = measured + TURN * torch.round((wanted - measured) / TURN)
        turns = torch.round((found - right)[mask] / TURN)
        shares.append(100 * float((turns != turns.median()).float().mean()))
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=3, type=int, default=(160, 160, 160))
    parser.add_argument("--voxel-size", nargs=3, type=float, default=(1.0, 1.0, 1.0))
    parser.add_argument("--cases", nargs="+", default=["3:15", "3:5", "7:15", "7:5"])
    options = parser.parse_args()
    table: dict[str, Unwrap] = {
        "chimap": own,
        "chimap, offset off": without_offset(own),
        "scikit-image": best_path,
        "scikit-image, time": best_path_in_time,
    }
    if niimath_program():
        table |= {"niimath": niimath, "niimath, offset off": without_offset(niimath)}
    head = built_in_head(tuple(options.shape), tuple(options.voxel_size))
    mask = head.mask
    threads = torch.get_num_threads()
    print(f"grid {tuple(options.shape)}, {int(mask.sum())} voxels in the mask, {threads} threads")
    print("echo times [ms] " + " ".join(f"{1000 * value:g}" for value in ECHO_TIMES))
    for case in options.cases:
        strength, snr = (float(part) for part in case.split(":"))
        # the phase at infinite SNR tells the offset, which the truth does not hold
        scan, truth = acquire(head, field_strength=strength, snr=snr)
        clean, _ = acquire(head, field_strength=strength, snr=math.inf)
        by_field = [truth.total_field * radians_per_ppm(value, strength) for value in scan.echo_times]
        offset = clean.phase[0] - by_field[0]
        offset = wrap(offset - 0.7) + 0.7  # where it is on average, so that it has no wraps
        true = torch.stack([offset + angle for angle in by_field])
        print(f"\n{strength:g} T, SNR {snr:g}: % of voxels off by a wrap, per echo and mean; seconds")
        for name, unwrap in table.items():
            start = time.perf_counter()
            found = unwrap(scan.phase, scan, mask)
            seconds = time.perf_counter() - start
            shares = wrong_percent(found, scan.phase, true, mask)
            mean = sum(shares) / len(shares)
            listed = " ".join(f"{share:7.4f}" for share in shares)
            print(f"  {name:20} {listed} {mean:8.4f} {seconds:7.2f}", flush=True)


if __name__ == "__main__":
    main()
