"""Where the chain from wrapped phase to chi loses its accuracy: each stage by itself replaced by the truth.

    python benchmarks/error_budget.py [--labels FILE.npz …] [--cases axial …] [--background vsharp] [--figure FILE]

Every row leaves one more stage to the package, from the end of the chain to its beginning; what a row has worse than
the one above it is that stage's share:

    true local field     the inversion alone
    + background         the true total field in the true mask
    + noise              the measured field in the true mask, unwrapped by the truth, without a phase offset
    + unwrapping         unwrapped by the package
    + phase offset       with the offset of a receive coil, found by the package
    + mask               in the package's own mask: the whole chain

The inversion is TV. Columns: SD of the error of the total and of the local field as a share of the true local field's
SD [%], the latter in the voxels that are left and deeper than 5 mm; share of the true mask that is left [%]; NRMSE of
chi [%] and XSIM there, and the ratio of that NRMSE to the one of the true local field inside the same voxels.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from chimap import from_local_field, metrics, pipeline
from chimap.arrays import Mask, Volume
from chimap.benchmark.cases import CASES, Case, Simulator, in_order_of_heads, people
from chimap.commands.console import keep_freed_memory
from chimap.fields.combination import weighted_field
from chimap.fields.mask import erode
from chimap.methods import call, find
from chimap.physics.dipole import DipoleModel
from chimap.physics.phase import wrap
from chimap.physics.units import radians_per_ppm
from chimap.plan import Plan
from chimap.scan import Scan
from chimap.simulation.acquisition import Truth, acquire
from chimap.simulation.labels import read_packed
from chimap.simulation.lesions import Lesion

SEVEN_TESLA = Case(
    "7t-calcification",
    "7 T, echoes from 5 to 29 ms, a calcification of -2 ppm",
    field_strength=7.0,
    echo_times=(0.005, 0.011, 0.017, 0.023, 0.029),
    lesions=(Lesion("calcification", -2.0, 5.0),),
)
ASKED = ("axial", "7t-calcification", "anisotropic", "oblique", "single-echo")
DEEP = 5.0
"""Voxels count as deep from so far [mm] within the mask."""
COLUMNS = ("total field", "local field", "deep", "kept", "NRMSE", "XSIM", "ratio")


@dataclass(frozen=True)
class Fields:
    """What a chain found before its inversion."""

    local_field: Volume
    mask: Mask
    total_field: Volume | None = None


def chains(scan: Scan, truth: Truth, no_offset: Scan, plan: Plan) -> dict[str, Fields]:
    """The rows of one acquisition but for the first, in order."""
    settled = replace(plan, inversion="tkd")  # the fastest: only fields are looked at here
    rows = {}
    rows["+ background"] = _background(truth.total_field, None, truth.mask, scan, plan)
    field, noise = field_unwrapped_by_truth(no_offset, truth)
    rows["+ noise"] = _background(field, noise, truth.mask, scan, plan)
    for name, subject in (
        ("+ unwrapping", replace(no_offset, mask=truth.mask)),
        ("+ phase offset", replace(scan, mask=truth.mask)),
        ("+ mask", scan),
    ):
        maps = pipeline.reconstruct(subject, settled)
        rows[name] = Fields(maps.local_field, maps.mask, maps.total_field)
    return rows


def field_unwrapped_by_truth(no_offset: Scan, truth: Truth) -> tuple[Volume, Volume]:
    """Measured field of a scan without a phase offset, and its noise."""
    times, tesla = no_offset.echo_times, no_offset.field_strength
    turned = torch.stack([truth.total_field * radians_per_ppm(time, tesla) for time in times])
    unwrapped = turned + wrap(no_offset.phase - turned)
    return weighted_field(unwrapped, no_offset.magnitude, truth.mask, times, tesla)


def _background(field: Volume, noise: Volume | None, mask: Mask, scan: Scan, plan: Plan) -> Fields:
    dipole = DipoleModel(scan.shape, scan.voxel_size, scan.b0_direction, padding=0)
    local, valid = call(find(plan.background, "background"), plan.settings, field * mask, noise, mask, dipole)
    return Fields(local, valid, field)


def measured(fields: Fields, scan: Scan, truth: Truth) -> dict[str, float]:
    """The columns of a row."""
    inside = fields.mask & truth.mask
    unit = float(truth.local_field[truth.mask].std()) / 100
    deep = erode(inside, DEEP, scan.voxel_size)
    off = fields.local_field - truth.local_field
    chi = _inverted(fields.local_field * inside, inside, scan)
    alone = _inverted(truth.local_field * inside, inside, scan)
    true = torch.where(inside, truth.chi - truth.chi[inside].mean(), 0)
    error, least = (metrics.nrmse(found, true, inside, demean=True) for found in (chi, alone))
    found = torch.where(inside, chi - chi[inside].mean(), 0)
    row = {
        "local field": float(off[inside].std()) / unit,
        "deep": float(off[deep].std()) / unit,
        "kept": float(100 * inside.sum() / truth.mask.sum()),
        "NRMSE": error,
        "XSIM": metrics.xsim(found, true, inside),
        "ratio": error / least,
    }
    if fields.total_field is not None:
        row["total field"] = float((fields.total_field - truth.total_field)[inside].std()) / unit
    return row


def _inverted(field: Volume, mask: Mask, scan: Scan) -> Volume:
    return from_local_field.invert(field, mask, scan.voxel_size, scan.b0_direction, method="tv")


def cells(row: dict[str, float]) -> list[str]:
    """Of a table's row, in the order of `COLUMNS`."""
    return [f"{row[name]:.{2 if name in ('XSIM', 'ratio') else 0}f}" if name in row else "" for name in COLUMNS]


def draw(tables: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Bars of the NRMSE: one group for each case, one bar for each row."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.8 * len(tables) + 2, 3.6), layout="constrained")
    axes = figure.subplots()
    rows = list(next(iter(tables.values())))
    for number, row in enumerate(rows):
        places = [index + (number - len(rows) / 2 + 0.5) / (len(rows) + 1) for index in range(len(tables))]
        values = [table[row]["NRMSE"] for table in tables.values()]
        axes.bar(places, values, 1 / (len(rows) + 1), label=row, color=colormaps["viridis"](number / len(rows)))
    axes.set_xticks(range(len(tables)), list(tables))
    axes.set_ylabel("NRMSE of chi by TV [%]")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", nargs="*", type=Path, default=[])
    parser.add_argument("--cases", nargs="*", default=list(ASKED))
    parser.add_argument("--shape", nargs=3, type=int, default=(160, 192, 160))
    parser.add_argument("--background", default=Plan().background)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    cases = in_order_of_heads([case for case in (*CASES, SEVEN_TESLA) if case.name in options.cases])
    persons = people([one for path in options.labels for one in read_packed(path)])
    plan = Plan(background=options.background)
    sums: dict[str, dict[str, dict[str, float]]] = {}
    with torch.no_grad():
        for person in persons:
            simulate = Simulator(person, tuple(options.shape))
            for case in cases:
                subject = simulate(case)
                scan, truth = subject.scan, subject.truth
                acquisition = {"echo_times": case.echo_times, "field_strength": case.field_strength, "snr": case.snr}
                no_offset, _ = acquire(subject.head, **acquisition, phase_offset=False, seed=person.seed)
                rows = {"true local field": Fields(truth.local_field, truth.mask)}
                rows |= chains(scan, truth, no_offset, plan)
                table = sums.setdefault(case.name, {})
                for name, fields in rows.items():
                    row = table.setdefault(name, {})
                    for column, value in measured(fields, scan, truth).items():
                        row[column] = row.get(column, 0.0) + value / len(persons)
    print("| case | left to the package |", " | ".join(COLUMNS), "|")
    print("| --- | --- |", " | ".join(["---:"] * len(COLUMNS)), "|")
    for case, table in sums.items():
        for name, row in table.items():
            print(f"| {case} | {name} |", " | ".join(cells(row)), "|")
    if options.figure:
        draw(sums, options.figure)


if __name__ == "__main__":
    main()
