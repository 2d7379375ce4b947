"""What it costs to leave the regularisation to a rule: NRMSE of chi at the chosen lambda less that at the best one.

    python benchmarks/choice.py [--labels FILE.nii.gz …] [--methods tikhonov l2 tv]

True local fields of heads at 2 mm, with white noise of 1 and 4 ppb, with and without a field error that no chi explains
(half of the local field's SD). The best of 21 lambdas over four decades around the default; everything in points of
NRMSE [%]. `error` is what the field's errors amount to and what the rule takes them for [ppb].
"""

import argparse
import itertools
from pathlib import Path

import torch

from chimap import from_local_field, metrics
from chimap.arrays import Triple, Volume
from chimap.benchmark.cases import people
from chimap.inversion.choice import CRITERIA, error_near_cone
from chimap.io import nifti
from chimap.methods import find
from chimap.simulation.acquisition import Truth, acquire
from chimap.simulation.labels import from_freesurfer

SHAPE, VOXEL = (88, 104, 84), (2.0, 2.0, 2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", nargs="*", type=Path, default=[])
    parser.add_argument("--methods", nargs="*", default=["tikhonov", "l2", "tv"])
    options = parser.parse_args()
    columns = ("head", "noise", "field error", "method", "best", "default", *CRITERIA, "error", "estimated")
    print("|", " | ".join(columns), "|")
    print("|", " | ".join(["---"] * 4 + ["---:"] * (len(columns) - 4)), "|")
    maps = [from_freesurfer(*nifti.read_labels(path), name=path.name) for path in options.labels]
    for person in people(maps):
        head = person.make(SHAPE, VOXEL, (0.0, 0.0, 0.0))
        truth = acquire(head, field_error=0.5, seed=1)[1]
        for noise, share in itertools.product((0.001, 0.004), (0, 1)):
            generator = torch.Generator().manual_seed(5)
            error = share * truth.field_error + noise * torch.randn(SHAPE, generator=generator)
            for method in options.methods:
                cells = costs(truth, error, head.b0_direction, method)
                row = (person.name, f"{1000 * noise:g}", "yes" if share else "no", method, *cells)
                print("|", " | ".join(row), "|", flush=True)


def costs(truth: Truth, error: Volume, b0_direction: Triple, method: str) -> list[str]:
    """The columns from `best` on."""
    mask = truth.mask
    field, where = (truth.local_field + error) * mask, (mask, VOXEL, b0_direction)

    def nrmse(value: float) -> float:
        chi = from_local_field.invert(field, *where, method=method, settings={method: {"regularisation": value}})
        return metrics.nrmse(chi, truth.chi, mask, demean=True)

    usual = find(method, "inversion").parameters()["regularisation"]
    tried = [nrmse(usual * 10 ** (step / 5)) for step in range(-10, 11)]
    choices = {
        one: from_local_field.chosen_regularisation(field, *where, method=method, criterion=one) for one in CRITERIA
    }
    found = [tried[10], *(nrmse(choice.regularisation) for choice in choices.values())]
    amount = 1000 * float(error[mask].square().mean().sqrt())
    estimated = 1000 * error_near_cone(field, mask, VOXEL, b0_direction)
    cells = [f"{min(tried):.1f}", *(f"{value - min(tried):.1f}" for value in found)]
    return [*cells, f"{amount:.2f}", f"{estimated:.2f}"]


if __name__ == "__main__":
    main()
