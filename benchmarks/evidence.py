"""How often the checks of `fields.evidence` find what is wrong with an acquisition, and how often they err.

    python benchmarks/evidence.py [--labels FILE.npz …] [--clean 500] [--wrong 200] [--seed 100000]

Every acquisition is drawn: head, bend, position and size, slab and voxels, B0 and echo times, noise, structured field
error, lesions. The first ones are used once as they are and once with each of these, alone:

    phase scale          phase times 0.3 to 0.9 or 1.1 to 3, as if in other units
    exchanged            magnitude and phase have changed places, each brought to the other's range
    dark slice           a slice with 30 to 70 % of its signal
    copied slice         a slice that is the one before it
    missing slice        a slice that was left out
    motion               one to three times during the acquisition the head moves by 2 to 5 mm and 1.5 to 5 degrees
    sign                 the phase has the other sign
    direction            B0 points 15 to 90 degrees away from what the header says
    echo times           ten to a thousand times too short

A third of the acquisitions have air set to zero, as some scanners do; ghosts of motion cannot be seen there and are not
tried. Columns: acquisitions, share in which the check that should speak did [%], and share in which any did [%].
"""

import argparse
import math
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from scipy.ndimage import binary_dilation
from torch import Tensor

from chimap import pipeline
from chimap.arrays import Mask, Triple, Volume
from chimap.commands.console import keep_freed_memory
from chimap.fields import evidence
from chimap.plan import Plan
from chimap.scan import Finding, Scan
from chimap.simulation.acquisition import acquire
from chimap.simulation.anatomy import label_head
from chimap.simulation.head import Head, built_in_head, rotation_matrix
from chimap.simulation.labels import LabelMap, read_packed
from chimap.simulation.lesions import add_lesions, parse_lesions

ECHO_TIMES = {
    1.5: ((0.005, 0.012, 0.019, 0.026, 0.033, 0.040), (0.040,)),
    3.0: ((0.004, 0.010, 0.016, 0.022, 0.028), (0.006, 0.012, 0.018), (0.020,)),
    7.0: ((0.005, 0.011, 0.017, 0.023, 0.029), (0.0025, 0.005, 0.0075, 0.010, 0.0125), (0.010,)),
}
"""Of every field strength [T], those that are drawn from [s]."""
VOXELS: tuple[Triple, ...] = ((2.0, 2.0, 2.0), (1.5, 1.5, 2.5), (2.0, 2.0, 3.0), (1.8, 1.8, 1.8))
SLABS = (168.0, 120.0)
"""Heights of the grid [mm]."""
LESIONS: tuple[list[str], ...] = ([], [], ["haemorrhage"], ["calcification"], ["microbleeds"])


@dataclass(frozen=True)
class Acquired:
    """A scan, and its field as the package finds it; with air set to zero or not."""

    scan: Scan
    total_field: Volume
    mask: Mask
    no_air: bool


def acquisition(people: Sequence[LabelMap], seed: int) -> Acquired:
    """Draw one."""
    draw = random.Random(seed)
    size = draw.choice(VOXELS)
    x, y, z = (round(length / step) for length, step in zip((176.0, 216.0, draw.choice(SLABS)), size, strict=True))
    tilt, azimuth = math.radians(draw.choice((0.0, 0.0, draw.uniform(5, 45)))), draw.uniform(0, 2 * math.pi)
    placed = {
        "grid_rotation": (tilt * math.cos(azimuth), tilt * math.sin(azimuth), math.radians(draw.uniform(-10, 10))),
        "head_rotation": tuple(math.radians(draw.gauss(0, 7)) for _ in range(3)),
        "head_scale": draw.uniform(0.9, 1.05),
        "seed": seed,
    }
    head: Head = (
        label_head(draw.choice(people), (x, y, z), size, **placed) if people else _built_in((x, y, z), size, placed)
    )
    generator = torch.Generator().manual_seed(seed)
    head = add_lesions(head, parse_lesions(draw.choice(LESIONS), generator), generator)
    tesla = draw.choice((1.5, 3.0, 3.0, 7.0))
    scan, _ = acquire(
        head,
        echo_times=draw.choice(ECHO_TIMES[tesla]),
        field_strength=tesla,
        snr=10 ** draw.uniform(1.2, 2.1),
        field_error=draw.uniform(0, 0.6),
        seed=seed,
    )
    maps = pipeline.reconstruct(scan, Plan(background="vsharp", inversion="tkd"))
    no_air = draw.random() < 1 / 3
    if no_air:
        near = torch.from_numpy(binary_dilation(head.mask.numpy(), iterations=3))
        assert scan.magnitude is not None
        scan = replace(scan, phase=scan.phase * near, magnitude=scan.magnitude * near)
    return Acquired(scan, maps.total_field, maps.brain_mask, no_air)


def _built_in(shape: tuple[int, int, int], size: Triple, placed: dict) -> Head:
    return built_in_head(shape, size, **{name: value for name, value in placed.items() if name != "head_scale"})


def with_errors(one: Acquired, seed: int) -> Iterator[tuple[str, str, list[Finding]]]:
    """Name of each error, name of the finding that should speak, and what was found."""
    draw = random.Random(seed)
    scan, size = one.scan, one.scan.voxel_size
    phase, magnitude = scan.phase, scan.magnitude
    assert magnitude is not None
    factor = draw.choice((draw.uniform(0.3, 0.9), draw.uniform(1.1, 3.0)))
    yield "phase scale", "phase scale", evidence.of_scan(phase * factor, magnitude, size)
    as_phase = (magnitude / magnitude.max() * 2 - 1) * math.pi
    yield "exchanged", "magnitude and phase", evidence.of_scan(as_phase, phase + math.pi, size)

    axis, slices = draw.choice((1, 2, 3)), draw.uniform(0.35, 0.65)
    where = round(slices * magnitude.shape[axis])
    dark, copied = magnitude.clone(), magnitude.clone()
    dark.select(axis, where).mul_(draw.uniform(0.3, 0.7))
    copied.select(axis, where).copy_(magnitude.select(axis, where - 1))
    kept = [index for index in range(magnitude.shape[axis]) if index != where]
    yield "dark slice", "slices", evidence.of_scan(phase, dark, size)
    yield "copied slice", "slices", evidence.of_scan(phase, copied, size)
    yield "missing slice", "slices", evidence.of_scan(_taken(phase, axis, kept), _taken(magnitude, axis, kept), size)
    if not one.no_air:
        signal = moved(torch.polar(magnitude[0], phase[0]), size, draw)
        yield "motion", "ghosts", [found for found in [evidence.ghosts(signal.abs(), size)] if found is not None]

    b0 = scan.b0_direction
    yield "sign", "sign of the phase", pipeline.findings_of(scan, -one.total_field, one.mask)
    wrong = replace(scan, b0_direction=_turned(b0, math.radians(draw.uniform(15, 90)), draw))
    yield "direction", "direction of B0", pipeline.findings_of(wrong, one.total_field, one.mask)
    longer = 10 ** draw.uniform(1, 3)
    yield "echo times", "strength of the field", pipeline.findings_of(scan, one.total_field * longer, one.mask)


def moved(signal: Tensor, voxel_size: Triple, draw: random.Random) -> Tensor:
    """A complex volume whose head took other poses from some lines of k-space on, along x or y."""
    axis = draw.choice((0, 1))
    lines = signal.shape[axis]
    starts = sorted(draw.sample(range(lines // 8, lines - lines // 8), draw.randint(1, 3)))
    spectrum = torch.fft.fftshift(torch.fft.fft(signal, dim=axis), dim=axis)
    for start in starts:
        angle, shift = math.radians(draw.uniform(1.5, 5)), draw.uniform(2, 5)
        pose = _posed(signal, voxel_size, _direction(draw) * angle, _direction(draw) * shift)
        later = torch.fft.fftshift(torch.fft.fft(pose, dim=axis), dim=axis)
        spectrum.narrow(axis, start, lines - start).copy_(later.narrow(axis, start, lines - start))
    return torch.fft.ifft(torch.fft.ifftshift(spectrum, dim=axis), dim=axis)


def _posed(signal: Tensor, voxel_size: Triple, turn: Tensor, shift: Tensor) -> Tensor:
    """Turned [rad] about its middle and shifted [mm]."""
    x, y, z = turn.tolist()
    rotation = rotation_matrix((x, y, z)).float()
    reach = torch.tensor([(n - 1) / 2 * size for n, size in zip(signal.shape, voxel_size, strict=True)])
    axes = [torch.linspace(-end, end, n) for end, n in zip(reach.tolist(), signal.shape, strict=True)]
    at = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) @ rotation.T + shift
    parts = torch.stack([signal.real, signal.imag])[None]
    real, imaginary = torch.nn.functional.grid_sample(parts, (at / reach).flip(-1)[None], align_corners=True)[0]
    return torch.complex(real, imaginary)


def _taken(volumes: Tensor, axis: int, kept: Sequence[int]) -> Tensor:
    return volumes.index_select(axis, torch.tensor(kept))


def _direction(draw: random.Random) -> Tensor:
    vector = torch.tensor([draw.gauss(0, 1) for _ in range(3)])
    return vector / vector.norm()


def _turned(direction: Triple, angle: float, draw: random.Random) -> Triple:
    b0 = torch.tensor(direction)
    aside = _direction(draw)
    aside = aside - (aside @ b0) * b0
    x, y, z = (math.cos(angle) * b0 + math.sin(angle) * aside / aside.norm()).tolist()
    return x, y, z


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", nargs="*", type=Path, default=[], help="packed; the built-in head without them")
    parser.add_argument("--clean", type=int, default=500)
    parser.add_argument("--wrong", type=int, default=200)
    parser.add_argument("--seed", type=int, default=100_000)
    options = parser.parse_args()
    keep_freed_memory()
    people = [one for path in options.labels for one in read_packed(path)]
    tried, found, alarms = Counter(), Counter(), Counter()
    for seed in range(options.seed, options.seed + options.clean):
        one = acquisition(people, seed)
        if (seed - options.seed) % 50 == 0:
            print(f"{seed - options.seed} of {options.clean}", file=sys.stderr)
        clean = pipeline.findings_of(one.scan, one.total_field, one.mask)
        tried["none"] += 1
        alarms["none"] += any(finding.doubtful for finding in clean)
        for finding in clean:
            tried[f"none: {finding.name}"] += 1
            alarms[f"none: {finding.name}"] += finding.doubtful
        if seed - options.seed < options.wrong:
            for error, name, findings in with_errors(one, seed):
                tried[error] += 1
                found[error] += any(finding.doubtful and finding.name == name for finding in findings)
                alarms[error] += any(finding.doubtful for finding in findings)
    print("| what is wrong | acquisitions | found [%] | any alarm [%] |\n| --- | ---: | ---: | ---: |")
    for error, count in tried.items():
        share = "" if error.startswith("none") else f"{100 * found[error] / count:.1f}"
        print(f"| {error} | {count} | {share} | {100 * alarms[error] / count:.1f} |")


if __name__ == "__main__":
    main()
