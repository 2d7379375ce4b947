"""NRMSE and XSIM of chi by whole chains, from wrapped phase on, over the cases of the benchmark.

    python benchmarks/chains.py [--labels PACKED] [--cases NAME ...] [--heads N] CHAIN ...

CHAIN is INVERSION or BACKGROUND+INVERSION as `chimap run` knows them, such as vsharp+tkd; a network may be given by its
best.safetensors. Every chain starts from the same mask, the package's own, and chi is compared where its mask and the
true one meet. Printed for each case: NRMSE [%] and XSIM, and at the end in how many cases a chain has the smaller NRMSE
than each chain before it.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from chimap import methods, metrics
from chimap.benchmark.cases import SCALES, Simulator, Subject, chosen, people
from chimap.commands.console import keep_freed_memory
from chimap.pipeline import reconstruct
from chimap.plan import Plan
from chimap.simulation.labels import read_packed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chains", nargs="+")
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--cases", nargs="+")
    parser.add_argument("--heads", type=int, default=1)
    options = parser.parse_args()
    keep_freed_memory()
    heads = people([] if options.labels is None else read_packed(options.labels)[: options.heads])
    simulators = [Simulator(head, SCALES["full"]) for head in heads]
    cases = chosen(options.cases)
    plans = [plan_of(chain) for chain in options.chains]
    print("| case | " + " | ".join(options.chains) + " |")
    print("| --- |" + " ---: |" * len(plans))
    errors: list[list[float]] = []
    for case in cases:
        scores = torch.zeros(len(plans), 2)
        for simulate in simulators:
            scores += torch.tensor(scored(simulate(case), plans)) / len(simulators)
        errors.append(scores[:, 0].tolist())
        print(f"| {case.name} | " + " | ".join(f"{error:.1f}, {xsim:.2f}" for error, xsim in scores.tolist()) + " |")
    for i, one in enumerate(options.chains):
        for j, other in enumerate(options.chains[:i]):
            wins = sum(row[i] < row[j] for row in errors)
            print(f"{one} has a smaller NRMSE than {other} in {wins} of {len(errors)} cases")


def plan_of(chain: str) -> Plan:
    background, plus, inversion = chain.partition("+")
    if plus and background in {method.name for method in methods.METHODS if method.stage == "background"}:
        return Plan(background=background, inversion=inversion)
    return Plan(inversion=chain)


def scored(subject: Subject, plans: list[Plan]) -> list[tuple[float, float]]:
    """NRMSE [%] and XSIM of each plan, all with the mask that the first one made."""
    scan, truth, found = subject.scan, subject.truth, []
    for plan in plans:
        maps = reconstruct(scan, plan)
        scan = replace(scan, mask=maps.brain_mask)
        inside = maps.mask & truth.mask
        chi, true = (volume - volume[inside].mean() for volume in (maps.chi, truth.chi))
        found.append((metrics.nrmse(chi, true, inside), metrics.xsim(chi, true, inside)))
    return found


if __name__ == "__main__":
    main()
