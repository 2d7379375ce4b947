"""Field stages by themselves, beside other people's programs: what they get wrong, and seconds.

    python benchmarks/stages.py [--labels HELD_OUT.npz …] [--cases axial …] [--offset] [--only unwrapping]

Unwrapping: share of the true mask's voxels that are off by a wrap [%], mean and worst of the echoes. A voxel is right
at the turn at which its measured phase is closest to the true phase; one turn more or less for a whole echo is not
counted. The phase has no offset of a coil, which programs remove in different ways, unless --offset is given. "Sure"
are voxels whose phase noise is below half a radian: elsewhere a wrap is partly chance. scikit-image and niimath (ROMEO)
unwrap in the same mask; niimath is said to be missing where it is (pip install niimath). Seconds are those of the
faster of two runs, for niimath with the temporary files.

Background removal: seconds, as above, on 256 x 256 x 176 voxels of 0.9 x 0.9 x 1 mm, beside one pair of real FFTs on
that grid with 14 voxels more along each axis.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from error_budget import SEVEN_TESLA, field_unwrapped_by_truth
from torch import Tensor
from unwrapping import best_path, best_path_in_time, niimath, niimath_program, own, wrong_percent

from chimap.benchmark.cases import CASES, Case, Person, Simulator, in_order_of_heads, people
from chimap.commands.console import keep_freed_memory
from chimap.fields.unwrap import unwrap_laplacian
from chimap.linalg import fast_shape, irfft, rfft
from chimap.methods import call, find
from chimap.physics.dipole import DipoleModel
from chimap.physics.phase import wrap
from chimap.physics.units import radians_per_ppm
from chimap.scan import Scan
from chimap.simulation.acquisition import acquire
from chimap.simulation.head import built_in_head
from chimap.simulation.labels import read_packed

LONG = Case("single-echo-40ms", "3 T, one echo at 40 ms", echo_times=(0.040,))
HIGH = replace(SEVEN_TESLA, name="7t-single-echo", summary="7 T, one echo at 20 ms", echo_times=(0.020,), lesions=())
ASKED = ("axial", "low-snr", "7t-calcification", "single-echo-40ms", "7t-single-echo", "anisotropic")
SURE = 0.5
"""Phase noise [rad] below which a wrap is no matter of chance."""
GRID, VOXEL = (256, 256, 176), (0.9, 0.9, 1.0)


def laplacian(phase: Tensor, scan: Scan, mask: Tensor) -> Tensor:
    return unwrap_laplacian(phase, scan.magnitude, mask, scan.echo_times, scan.voxel_size)


PROGRAMS: dict[str, Callable[[Tensor, Scan, Tensor], Tensor] | None] = {
    "chimap `quality-guided`": own,
    "chimap `laplacian`": laplacian,
    "scikit-image, every echo": best_path,
    "scikit-image, then in time": best_path_in_time,
    "ROMEO (niimath)": niimath if niimath_program() else None,
}


def acquired(case: Case, person: Person, simulate: Simulator, *, offset: bool) -> tuple[Scan, Tensor, Tensor, Tensor]:
    """A case's scan, its true phase (echo, x, y, z), where each echo is sure, and the mask."""
    subject = simulate(case)
    settings = {"echo_times": case.echo_times, "field_strength": case.field_strength, "phase_offset": offset}
    scan, truth = acquire(subject.head, **settings, snr=case.snr, seed=person.seed)
    clean, _ = acquire(subject.head, **settings, snr=math.inf, seed=person.seed)
    assert scan.magnitude is not None and clean.magnitude is not None
    true = torch.stack([truth.total_field * radians_per_ppm(t, case.field_strength) for t in case.echo_times])
    if offset:
        # the truth does not hold it, the phase without noise does; it is about 0.7, where it has no wraps
        true += wrap(clean.phase[0] - true[0] - 0.7) + 0.7
    noise = float(clean.magnitude[0][truth.mask].mean()) / case.snr
    return scan, true, clean.magnitude > noise / SURE, truth.mask


def best_of_two(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a run gives, and the seconds of the faster of two: the first one pays for imports and fresh memory."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


def unwrapping(scan: Scan, true: Tensor, sure: Tensor, mask: Tensor) -> dict[str, list[float]]:
    """By program: wrong voxels of all echoes [%] on average, at worst, those among the sure ones, and seconds."""
    rows = {}
    for name, unwrap in PROGRAMS.items():
        if unwrap is not None:
            found, seconds = best_of_two(partial(unwrap, scan.phase, scan, mask))
            shares = wrong_percent(found, scan.phase, true, mask)
            among = [wrong_percent(*(one[None] for one in (f, p, t)), mask & s)[0]
                     for f, p, t, s in zip(found, scan.phase, true, sure, strict=True)]  # fmt: skip
            rows[name] = [sum(shares) / len(shares), max(shares), sum(among) / len(among), seconds]
    return rows


def print_unwrapping(persons: list[Person], cases: list[Case], shape: tuple[int, int, int], *, offset: bool) -> None:
    sums: dict[str, dict[str, list[float]]] = {}
    for person in persons:
        simulate = Simulator(person, shape)
        for case in cases:
            table = sums.setdefault(case.name, {})
            for name, row in unwrapping(*acquired(case, person, simulate, offset=offset)).items():
                table[name] = [a + b / len(persons) for a, b in zip(table.get(name, [0.0] * 4), row, strict=True)]
    print("| case | program | off [%] | worst echo [%] | among the sure [%] | seconds |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for case, table in sums.items():
        for name in PROGRAMS:
            cells = [f"{value:.4f}" for value in table[name][:3]] + [f"{table[name][3]:.1f}"] if name in table else []
            print(f"| {case} | {name} |", " | ".join(cells or ["not installed", "", "", ""]), "|")


def background() -> dict[str, float]:
    """Seconds of a pair of FFTs and of the background removals on `GRID`."""
    head = built_in_head(GRID, VOXEL)
    scan, truth = acquire(head, phase_offset=False)
    field, noise = field_unwrapped_by_truth(scan, truth)
    dipole = DipoleModel(GRID, VOXEL, head.b0_direction, padding=0)
    volume = torch.randn(fast_shape([n + 14 for n in GRID]))
    runs: dict[str, Callable[[], object]] = {"one FFT pair": lambda: irfft(rfft(volume), volume.shape)}
    for name in ("vsharp", "pdf-tv"):
        removal = find(name, "background")
        runs[f"`{name}`"] = partial(call, removal, {}, field * truth.mask, noise, truth.mask, dipole)
    return {name: best_of_two(run)[1] for name, run in runs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", nargs="*", type=Path, default=[])
    parser.add_argument("--cases", nargs="*", default=list(ASKED))
    parser.add_argument("--shape", nargs=3, type=int, default=(160, 192, 160))
    parser.add_argument("--offset", action="store_true")
    parser.add_argument("--only", choices=["unwrapping", "background"])
    options = parser.parse_args()
    keep_freed_memory()
    persons = people([one for path in options.labels for one in read_packed(path)])
    known = (*CASES, SEVEN_TESLA, LONG, HIGH)
    cases = in_order_of_heads([case for case in known if case.name in options.cases])
    with torch.no_grad():
        if options.only != "background":
            print_unwrapping(persons, cases, tuple(options.shape), offset=options.offset)
        if options.only != "unwrapping":
            print("| background removal | seconds |")
            print("| --- | ---: |")
            for name, seconds in background().items():
                print(f"| {name} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
