"""What it costs to leave the regularisation to a rule: NRMSE of chi at the chosen lambda less that at the best one.

    python benchmarks/choice.py [--labels FILE.nii.gz …] [--methods tikhonov l2 tv]

True local fields of heads at 2 mm, with white noise of 1 and 4 ppb, with and without a field error that no chi explains
(half of the local field's SD). The best of 21 lambdas over four decades around the default; everything in points of
NRMSE [%]. `error` is what the field's errors amount to and what the rule takes them for [ppb].
"""

import argparse
from pathlib import Path

import torch

from chimap import metrics, pipeline
from chimap.benchmark.cases import people
from chimap.inversion.choice import CRITERIA
from chimap.io import nifti
from chimap.methods import find
from chimap.simulation.acquisition import acquire
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
        mask, where = truth.mask, (truth.mask, VOXEL, head.b0_direction)
        for noise in (0.001, 0.004):
            for share in (0, 1):
                generator = torch.Generator().manual_seed(5)
                error = share * truth.field_error + noise * torch.randn(SHAPE, generator=generator)
                field = (truth.local_field + error) * mask
                for method in options.methods:

                    def nrmse(value: float, given=(field, *where), method=method, true=truth.chi) -> float:
                        settings = {method: {"regularisation": value}}
                        chi = pipeline.invert(*given, method=method, settings=settings)
                        return metrics.nrmse(chi, true, given[1], demean=True)

                    usual = find(method, "inversion").parameters()["regularisation"]
                    tried = [nrmse(usual * 10 ** (step / 5)) for step in range(-10, 11)]
                    best = min(tried)
                    choices = {
                        criterion: pipeline.chosen_regularisation(field, *where, method=method, criterion=criterion)
                        for criterion in CRITERIA
                    }
                    costs = [nrmse(choices[criterion].regularisation) - best for criterion in CRITERIA]
                    found = [f"{1000 * noise:g}", "yes" if share else "no", method, f"{best:.1f}"]
                    rest = [f"{value:.1f}" for value in (tried[10] - best, *costs)]
                    rest.append(f"{1000 * float(error[mask].square().mean().sqrt()):.2f}")
                    rest.append(f"{1000 * float(choices['discrepancy'].error or 0):.2f}")
                    print("|", " | ".join([person.name, *found, *rest]), "|", flush=True)


if __name__ == "__main__":
    main()
