"""How large must a cohort be? Two groups whose pallidum differs in chi, measured, reconstructed, compared.

    python examples/simulate_a_cohort.py --subjects 6 --difference 0.03 --output cohort

Every head has its own anatomy, position and noise. Prints the mean chi of the pallidum of each subject and the
difference of the groups in units of their SD, and draws it.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch

import chimap
from chimap.simulation.acquisition import acquire
from chimap.simulation.head import built_in_head

REGION = "pallidum"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=6, help="in each group")
    parser.add_argument("--difference", type=float, default=0.03, help=f"of the {REGION}'s chi [ppm]")
    parser.add_argument("--voxel-size", type=float, default=2.0, help="[mm]")
    parser.add_argument("--snr", type=float, default=40.0, help="of the first echo")
    parser.add_argument("--method", default="tv")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()

    size = options.voxel_size
    shape = (round(176 / size), round(224 / size), round(176 / size))
    values: dict[str, list[float]] = {"controls": [], "patients": []}
    for subject in range(2 * options.subjects):
        group = "patients" if subject >= options.subjects else "controls"
        head = built_in_head(shape, (size, size, size), seed=subject)
        region = sum(head.labels == label for label, name in head.label_names.items() if REGION in name) > 0
        if group == "patients":
            head = replace(head, chi=torch.where(region, head.chi + options.difference, head.chi))
        scan, _ = acquire(head, snr=options.snr, seed=subject)
        maps = chimap.reconstruct(scan, method=options.method)
        values[group].append(float(maps.chi[region & maps.mask].mean()))
        print(f"{group} {subject:3d}: {values[group][-1]:+.4f} ppm", flush=True)

    means = {group: torch.tensor(found) for group, found in values.items()}
    found = float(means["patients"].mean() - means["controls"].mean())
    print(f"difference put in: {options.difference:+.4f} ppm, found: {found:+.4f} ppm")
    if options.subjects > 1:
        spread = float(torch.stack([group.var() for group in means.values()]).mean().sqrt())
        print(f"in units of the SD within a group ({spread:.4f} ppm): {found / spread:.1f}")

    options.output.mkdir(parents=True, exist_ok=True)
    lines = [f"{group}\t{value:.5f}" for group, some in values.items() for value in some]
    (options.output / "pallidum.tsv").write_text("\n".join(["group\tmean_ppm", *lines]) + "\n")
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    for place, some in enumerate(values.values()):
        axes.plot([place] * len(some), some, "o", color="#1f4e79", alpha=0.7)
        axes.hlines(sum(some) / len(some), place - 0.15, place + 0.15, color="#b45309")
    axes.set_xticks(range(2), list(values))
    axes.set_xlim(-0.5, 1.5)
    axes.set_ylabel(f"chi of the {REGION} [ppm]")
    figure.savefig(options.output / "pallidum.png", dpi=100)
    print(f"Picture: {options.output / 'pallidum.png'}")


if __name__ == "__main__":
    main()
