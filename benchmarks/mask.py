"""How well `brain_mask` finds the brain of simulated whole heads made from label maps of 15 people.

    python benchmarks/mask.py [HEAD ...]

Each head has its own contrast, coil sensitivity, noise, pose, coverage, voxel size, field strength and echo
times; signal is lost where the field is steep. Heads 1 to 10 served to choose the parameters, 11 to 15 judge
(14 is not quite untouched: with dark fluid it helped to choose where the surface starts and its depth).

The truth is the brain's labels with every furrow narrower than 10 mm closed. Fluid between it and the skull
is no error either way: it has signal, and some masks keep it. Columns:

    dice      with the truth, that fluid not counted
    strict    with the truth, that fluid counted as wrong
    cranial   with brain and all fluid
    brain     share of the brain's labels that is in the mask
    beyond    share of the mask in skull, scalp or air
    > 2 mm    share of the mask more than 2 mm from brain and fluid
"""

import math
import os
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from chimap.errors import InputError
from chimap.fields.mask import brain_mask
from chimap.physics.dipole import DipoleModel
from chimap.physics.units import radians_per_ppm

OUTER_FLUID, VESSELS, SOFT_TISSUE, MARROW = 24, (30, 62), 507, 516

# labels: proton density, T1 [s], R2* [1/s] at 3 T, chi [ppm]
TISSUES = {
    (2, 41, 7, 46, 16, 28, 60, 77, 85, 512): (0.70, 0.85, 20, -0.03),  # white matter, brain stem, cord
    (3, 42, 8, 47, 10, 49, 17, 53, 18, 54, 26, 58): (0.82, 1.35, 17, 0.03),  # cortex, thalamus, hippocampus
    (11, 50, 12, 51, 13, 52): (0.80, 1.20, 28, 0.08),  # caudate, putamen, pallidum
    (24, 4, 43, 5, 44, 14, 15, 72): (1.00, 4.00, 3, 0.02),  # fluid
    (506,): (0.98, 3.50, 4, 0.0),  # eyes
    (502, 30, 62): (0.90, 0.40, 15, 0.02),  # vessels, bright by inflow
    (507,): (0.80, 1.20, 35, 0.0),  # muscle and fat
    (508, 530): (0.80, 1.00, 30, 0.0),  # behind the eyes
    (509,): (0.80, 1.40, 40, 0.0),  # mucosa
    (511,): (0.70, 0.80, 55, 0.0),  # skin
    (514,): (0.60, 1.00, 70, 0.0),  # dura
    (515,): (0.15, 0.40, 600, -2.0),  # compact bone
    (516,): (0.75, 0.40, 90, -0.5),  # marrow
}
OTHER_BRAIN, OTHER = (0.80, 1.20, 20, 0.0), (0.80, 1.20, 35, 0.0)
AIR, FAT, FAT_SHIFT = 9.4, 0.6, -3.35  # chi against water [ppm], and the chemical shift of fat [ppm]
VOXEL_SIZES = ((1.0, 1.0, 1.0), (0.8, 0.8, 2.0), (1.8, 1.8, 3.0), (1.0, 1.0, 1.0), (0.6, 0.6, 2.0))
ECHO_TIMES = (
    (0.004, 0.012, 0.020, 0.028),
    (0.020,),
    (0.006, 0.0125, 0.019),
    (0.030,),
    (0.003, 0.008, 0.013, 0.018, 0.023),
)


def protocol(head: int) -> dict:
    """Acquisition of a head: as different as scans are, the same in every run."""
    rng = np.random.default_rng(100 + head)
    return {
        "voxel_size": VOXEL_SIZES[head % 5],
        "oblique": float(rng.choice([0, 0, 20, 35])),  # degrees
        "tesla": 7.0 if head % 4 == 3 else 3.0,
        "coverage": float(rng.uniform(120, 215)),  # mm from above the vertex downwards
        "snr": float(rng.uniform(15, 60)),
        "bias": float(rng.uniform(1.3, 3.0)),  # coil sensitivity, largest over smallest in the brain
        "echo_times": ECHO_TIMES[int(rng.integers(5))],
    }


def simulate(path: Path, seed: int, *, voxel_size, oblique, tesla, coverage, snr, bias, echo_times) -> dict:
    """Phase and magnitude (echo, x, y, z), and the truth, on a grid of its own over the label map."""
    rng = np.random.default_rng(seed)
    labels = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj).astype(np.int16)
    signal, decay, chi, fat = tissue_maps(labels, rng, tesla, repetition=max(echo_times) + 0.008)
    brain = (labels > 0) & (labels < 500) & ~np.isin(labels, (OUTER_FLUID, *VESSELS, 72))
    truth = ndimage.binary_fill_holes(closed(brain, 5))
    cranial = truth | (labels == OUTER_FLUID)

    voxel = np.asarray(voxel_size)
    angles = rng.uniform(-6, 6, 3) + [oblique, 0, 0]
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    x, y, z = (np.flatnonzero((labels > 0).any(others)) for others in ((1, 2), (0, 2), (0, 1)))
    top = np.flatnonzero(truth.any((0, 1))).max() + rng.uniform(2, 18)
    centre = np.array([(x[0] + x[-1]) / 2, (y[0] + y[-1]) / 2, top - coverage / 2])
    shape = np.round(np.array([rng.uniform(165, 200), rng.uniform(205, 235), coverage]) / voxel).astype(int)
    matrix = rotation * voxel
    corner = centre - matrix @ ((shape - 1) / 2)

    def sampled(volume):
        """The volume on the scan's grid, blurred by about its voxel."""
        smooth = ndimage.gaussian_filter(volume.astype(np.float32), 0.42 * voxel)
        outside = float(smooth[0, 0, 0])
        return ndimage.affine_transform(smooth, matrix, corner, tuple(shape), order=1, cval=outside)

    inside = sampled(truth) > 0.5
    b0 = rotation.T @ np.array([0.0, 0.0, 1.0])
    dipole = DipoleModel(tuple(shape), tuple(voxel), tuple(b0), padding=[int(30 / size) for size in voxel])
    field = dipole(torch.from_numpy(sampled(chi) - AIR)).numpy()
    half = [(n - 1) / 2 * size / 100 for n, size in zip(shape, voxel, strict=True)]  # in 0.1 m, alike in all directions
    grid = np.meshgrid(
        *[np.linspace(-h, h, n, dtype=np.float32) for h, n in zip(half, shape, strict=True)], indexing="ij"
    )
    x, y, z = grid
    quadratic = [
        x**2 - y**2,
        2 * z**2 - x**2 - y**2,
        x * y,
        y * z,
        x * z,
    ]  # no sources: what shim coils can make
    shim = np.stack([np.ones_like(x), *grid, *quadratic], axis=-1)
    field -= (shim @ np.linalg.lstsq(shim[inside], field[inside], rcond=None)[0]).astype(np.float32)
    field[sampled(fat) > 0.5] += FAT_SHIFT
    slopes = np.gradient(field, *voxel)

    coil = sum(rng.uniform(-1, 1) * shape_ for shape_ in [*grid, *quadratic]) + 0.8 * (x**2 + y**2)
    low, high = coil[inside].min(), coil[inside].max()
    coil = bias ** ((coil - low) / (high - low)).clip(-0.5, 1.8)
    offset = sum(rng.uniform(-1, 1) * axis for axis in grid) + rng.uniform(-3, 3)
    phase, magnitude, noise = [], [], None
    for echo_time in echo_times:
        turn = radians_per_ppm(echo_time, tesla)
        image = coil * sampled(signal * np.exp(-decay * echo_time))
        for slope, size in zip(slopes, voxel, strict=True):
            image *= np.abs(np.sinc(turn * slope * size / (2 * math.pi)))
        noise = noise or float(np.median(image[inside])) / snr
        measured = image * np.exp(1j * (offset + turn * field))
        measured += noise * (rng.standard_normal(image.shape) + 1j * rng.standard_normal(image.shape))
        phase.append(np.angle(measured).astype(np.float32))
        magnitude.append(1000 * np.abs(measured).astype(np.float32))
    return {
        "phase": torch.from_numpy(np.stack(phase)),
        "magnitude": torch.from_numpy(np.stack(magnitude)),
        "brain": sampled(brain) > 0.5,
        "truth": inside,
        "cranial": sampled(cranial) > 0.5,
    }


def tissue_maps(labels: np.ndarray, rng: np.random.Generator, tesla: float, repetition: float):
    """Signal at TE = 0, R2* [1/s], chi [ppm] and where fat is, with a random contrast and texture."""
    count = int(labels.max()) + 1
    density, t1, decay = np.zeros(count, np.float32), np.ones(count, np.float32), np.zeros(count, np.float32)
    chi = np.full(count, AIR, np.float32)
    named = {label for group in TISSUES for label in group}
    rows = dict(TISSUES)
    for label in np.unique(labels):
        if label and label not in named:
            rows[int(label),] = OTHER_BRAIN if label < 500 else OTHER
    for group, (density_, t1_, decay_, chi_) in rows.items():
        group = [label for label in group if label < count]
        density[group] = density_ * rng.uniform(0.9, 1.1)
        t1[group] = t1_ * rng.uniform(0.85, 1.15)
        decay[group] = decay_ * rng.uniform(0.75, 1.35) * (1.8 if tesla > 5 else 1.0)
        chi[group] = chi_
    angle = math.radians(rng.uniform(6, 20))

    def steady_state(t1):
        recovery = np.exp(-repetition / t1)
        return np.sin(angle) * (1 - recovery) / (1 - np.cos(angle) * recovery)

    # soft tissue is one label: fat lies under the skin and in patches between muscles
    patches = ndimage.zoom(rng.standard_normal([n // 8 for n in labels.shape]).astype(np.float32), 8, order=1)
    under_skin = ndimage.distance_transform_edt(labels != 0) < 8
    fat = (labels == SOFT_TISSUE) & ((patches > 0.2) | (under_skin & (patches > -1))) | (labels == MARROW)
    signal, decay, chi = (density * steady_state(t1))[labels], decay[labels], chi[labels]
    signal[fat] = 0.9 * steady_state(0.35) * rng.uniform(0.6, 1.1)
    decay[fat] = 35 * rng.uniform(0.8, 2.0)
    chi[fat] = FAT
    texture = ndimage.gaussian_filter(rng.standard_normal(labels.shape).astype(np.float32), 1.5)
    texture /= texture.std()
    return signal * (1 + 0.06 * texture), decay, chi + 0.015 * texture * (labels > 0), fat


def closed(mask: np.ndarray, radius: int) -> np.ndarray:
    """Binary closing by a ball of `radius` voxels."""
    padded = np.pad(mask, radius + 1)
    grown = ndimage.distance_transform_edt(~padded) <= radius
    shrunk = ndimage.distance_transform_edt(grown) > radius
    return (shrunk | padded)[(slice(radius + 1, -radius - 1),) * 3]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def scores(mask: np.ndarray, case: dict, voxel_size) -> list[float]:
    """The columns of the table, in order."""
    brain, truth, cranial = case["brain"], case["truth"], case["cranial"]
    judged = truth | ~cranial
    distance = ndimage.distance_transform_edt(~cranial, sampling=voxel_size)
    return [
        dice(mask & judged, truth & judged),
        dice(mask, truth),
        dice(mask, cranial),
        float((mask & brain).sum() / brain.sum()),
        float((mask & ~cranial).sum() / mask.sum()),
        float((mask & (distance > 2)).sum() / mask.sum()),
    ]


def main(heads: list[int]) -> None:
    data = Path(os.environ.get("CHIMAP_DATA", Path(__file__).parents[2] / "shared" / "data")) / "labels"
    if not data.is_dir():
        print(f"No label maps at {data}: set CHIMAP_DATA to the folder that holds labels/.")
        return
    print("head  voxel [mm]   B0 echoes    seconds   dice strict cranial  brain beyond > 2 mm")
    table = []
    for head in heads:
        setting = protocol(head)
        case = simulate(data / f"training_seg_{head:02d}.nii.gz", head, **setting)
        voxel_size, echo_times = setting["voxel_size"], setting["echo_times"]
        for magnitude in (case["magnitude"], None):
            start = time.perf_counter()
            try:
                mask = brain_mask(case["phase"], magnitude, echo_times, voxel_size).numpy()
            except InputError as error:
                print(f"{head:4d}  {error}")
                continue
            seconds = time.perf_counter() - start
            row = scores(mask, case, voxel_size)
            if magnitude is not None:
                table.append(row)
            size = " ".join(f"{length:g}" for length in voxel_size)
            kind = f"{len(echo_times)}" + (", phase" if magnitude is None else "")
            print(
                f"{head:4d}  {size:11s} {setting['tesla']:g} T {kind:9s} {seconds:7.1f}   "
                + "  ".join(f"{value:5.3f}" for value in row[:4])
                + "  "
                + " ".join(f"{100 * value:4.1f} %" for value in row[4:]),
                flush=True,
            )
    if table:
        rows = np.array(table)
        for name, value in (
            ("median", np.median(rows, axis=0)),
            ("lowest", rows.min(0)),
            ("highest", rows.max(0)),
        ):
            numbers = "  ".join(f"{number:5.3f}" for number in value[:4])
            print(
                f"{name:>9s} with magnitude" + " " * 20 + numbers,
                *(f"{100 * number:4.1f} %" for number in value[4:]),
            )


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or list(range(1, 16)))
