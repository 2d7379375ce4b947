"""From a finished training to weights that come with the package: small, with a card and a checksum.

    python -m chimap.training.publish RUN NAME [--folder src/chimap/weights]

RUN is the output folder of `chimap train`. NAME is the method's. The card says what was done, so that it can be done
again; scores on the benchmark are added by hand from its table, with the command that made it.
"""

import argparse
import hashlib
import json
import os
import shlex
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from chimap import metrics
from chimap.inversion.learned import by_network
from chimap.networks.build import build
from chimap.networks.weights import FOLDER, SUFFIX, SUMS, packed
from chimap.physics.dipole import DipoleModel
from chimap.simulation.acquisition import local_field_of
from chimap.simulation.field_error import field_error
from chimap.simulation.head import built_in_head
from chimap.training.settings import to_json
from chimap.training.train import read_best

MOST_LOSS = 0.5
"""Of NRMSE [%] by storing in 8 bits."""


def publish(run: Path, name: str, folder: Path) -> Path:
    """Write <name>.safetensors, its card <name>.md, and its line in SHA256SUMS.

    Weights are stored in 8 bits where that adds less than `MOST_LOSS` to the error of a map of the built-in head, and
    in float16 elsewhere.

    Args:
        run: Output folder of a training.
        name: Of the method.
        folder: To write to.

    Returns:
        The weights' file.
    """
    weights, settings, record = read_best(run / "best.safetensors")
    about = json.loads((run / "about.json").read_text())
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{SUFFIX}"
    metadata = {"settings": to_json(settings), "record": json.dumps(record)}
    hidden: dict[Literal[8, 16], Path] = {8: folder / f".{name}.8{SUFFIX}", 16: folder / f".{name}.16{SUFFIX}"}
    errors = {}
    for bits, file in hidden.items():
        save_file(packed(weights, bits), file, metadata=metadata)
        file.chmod(0o644)  # safetensors writes for its owner alone
        errors[bits] = error_on_built_in_head(file)
    exact = error_on_built_in_head(run / "best.safetensors")
    bits = 8 if errors[8] - exact < MOST_LOSS else 16
    os.replace(hidden.pop(bits), path)
    for file in hidden.values():
        file.unlink()
    stored = f"{bits} bits: NRMSE {exact:.2f} % of the built-in head's map becomes {errors[bits]:.2f} %"
    if bits == 16:
        stored += f"; with 8 bits it would become {errors[8]:.2f} %"
    sums = folder / SUMS
    lines = sums.read_text().splitlines() if sums.exists() else []
    lines = [line for line in lines if not line.endswith(f"  {path.name}")]
    lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")
    sums.write_text("\n".join(sorted(lines, key=lambda line: line.split()[1])) + "\n")

    count = sum(parameter.numel() for parameter in build(settings.network).parameters())
    judged = [(entry["step"] + 1, entry["validation"]) for entry in entries if "validation" in entry]
    first = "\n".join(f"| {entry['step']} | {entry['loss']:.6f} |" for entry in entries[:101:10])
    scores = "\n".join(f"| {step} | {score:.2f} |" for step, score in judged[:: max(len(judged) // 12, 1)])
    (folder / f"{name}.md").write_text(f"""# {name}

- **Recipe**: `{settings.recipe}`, {count:,} parameters, {path.stat().st_size / 2**20:.1f} MiB
- **Stored** in {stored}
- **Command**: `{shlex.join(about["command"])}`
- **Data**: simulated samples from {len(about["people"])} label maps ({", ".join(about["people"])}), packed file's
  SHA-256 {(about["data"] or "none")[:16]}; judged by {", ".join(about["judges"])}
- **Seed**: {settings.seed}
- **Steps**: {entries[-1]["step"] + 1} of {settings.steps}, batch {settings.batch}; these are the averaged weights of
  step {record["step"]}
- **Time**: {record["seconds"]:.0f} s until then, on {about["device"]}, {about["threads"]} threads, torch
  {about["torch"]}
- **Score**: NRMSE {record["score"]:.2f} % on {settings.validation_samples} validation samples with 50 % field error

## Limits

Learned on simulated axial fields of 1 mm; other scans are brought into that frame by splines and back, which blurs. Not
tried on patients. See the benchmark in docs/benchmark.md for how it compares.

## Validation NRMSE [%] over the steps

| step | score |
| ---: | ---: |
{scores}

## First losses

The command with `--steps {settings.steps}` gives these again, on the same device and number of threads.

| step | loss |
| ---: | ---: |
{first}

## Settings

```json
{json.dumps(json.loads(to_json(settings)), indent=2)}
```
""")
    return path


def error_on_built_in_head(weights: Path) -> float:
    """NRMSE [%] of a map by these weights, of a field with the error of a real one."""
    head = built_in_head((112, 120, 96), (1.0, 1.0, 1.0), seed=3)
    local = local_field_of(head)
    where = (head.labels, head.mask, head.voxel_size, head.b0_direction)
    error = field_error(*where, share=0.5, local_field=local, generator=torch.Generator().manual_seed(0))
    dipole = DipoleModel(head.shape, head.voxel_size, head.b0_direction)
    chi = by_network((local + error) * head.mask, head.mask, dipole, weights=weights)
    return metrics.nrmse(chi, head.chi, head.mask, demean=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    with torch.no_grad():
        print(publish(options.run, options.name, options.folder))


if __name__ == "__main__":
    main()
