"""From a finished training to weights that come with the package: small, with a card and a checksum.

    python -m chimap.training.publish RUN NAME --validation PACKED [--folder src/chimap/weights]
        [--start FILE --share S]

RUN is the output folder of `chimap train`, PACKED what it was judged by, NAME the method's. The card says what was
done, so that it can be done again; scores on the benchmark are added by hand from its table, with the command that made
it. With --start, the weights are the mean of those that the training ended with and, by that share, of FILE, which it
began with: what those knew is not lost over what was learned since (Wortsman et al. 2022,
doi:10.1109/CVPR52688.2022.00780).
"""

import argparse
import hashlib
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor

from chimap.errors import InputError
from chimap.networks.build import build
from chimap.networks.weights import FOLDER, SUFFIX, SUMS, packed, read_trained
from chimap.simulation.labels import LabelMap, read_packed
from chimap.training.recipes.shown import inversion_alone
from chimap.training.settings import Settings, to_json
from chimap.training.train import read_best, score_name, validate, validation_samples

MOST_LOSS = 0.5
"""Of score [%] by storing in 8 bits."""
TOLD = ("variational", "proximal", "affine")
"""Kinds of networks that are told the direction of B0 whatever their shape says."""


def publish(
    run: Path, name: str, people: Sequence[LabelMap], folder: Path, *, start: Path | None = None, share: float = 0.5
) -> Path:
    """Write <name>.safetensors, its card <name>.md, and its line in SHA256SUMS.

    Weights are stored in 8 bits where that adds less than `MOST_LOSS` to the error on the validation samples, and in
    float16 elsewhere.

    Args:
        run: Output folder of a training.
        name: Of the method.
        people: That it was judged by.
        folder: To write to.
        start: What the training began with, where weights are to be the mean of both.
        share: Of those in the mean.

    Returns:
        The weights' file.

    Raises:
        InputError: The training did not begin with `start`.
    """
    weights, settings, record = read_best(run / "best.safetensors")
    if start is not None:
        weights = mean_with(start, weights, settings, share)
    samples = validation_samples(people, settings)
    network = build(settings.network).eval()
    network.load_state_dict(weights)
    exact = record["score"] = validate(network, samples, settings)
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
        errors[bits] = validate(read_trained(file).network, samples, settings)
    bits = 8 if errors[8] - exact < MOST_LOSS else 16
    os.replace(hidden.pop(bits), path)
    for file in hidden.values():
        file.unlink()
    stored = f"{bits} bits: the score of {exact:.2f} % becomes {errors[bits]:.2f} %"
    if bits == 16:
        stored += f"; with 8 bits it would become {errors[8]:.2f} %"
    sums = folder / SUMS
    lines = sums.read_text().splitlines() if sums.exists() else []
    lines = [line for line in lines if not line.endswith(f"  {path.name}")]
    lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")
    sums.write_text("\n".join(sorted(lines, key=lambda line: line.split()[1])) + "\n")

    mean = "" if start is None else f", by {1 - share:.0%}, and of what it was begun with, by {share:.0%}"
    score = score_name(settings)
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
- **Begun** with {begun(record)}
- **Steps**: {entries[-1]["step"] + 1} of {settings.steps}, batch {settings.batch}; these are the averaged weights of
  step {record["step"]}{mean}
- **Time**: {record["seconds"]:.0f} s until then, on {about["device"]}, {about["threads"]} threads, torch
  {about["torch"]}
- **Score**: {score} {record["score"]:.2f} % on {settings.validation_samples} validation samples with 50 % field error

## Limits

{limits(settings)} Not tried on patients. See the benchmark in docs/benchmark.md for how it compares.

## Validation {score} [%] over the steps

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


def mean_with(start: Path, weights: dict[str, Tensor], settings: Settings, share: float) -> dict[str, Tensor]:
    """The mean of the weights that a training began and ended with, the first ones by a share.

    Raises:
        InputError: It did not begin with those.
    """
    if hashlib.sha256(start.read_bytes()).hexdigest()[:16] != settings.start:
        raise InputError(f"{start} is not what the training began with")
    before, _, _ = read_best(start)
    return {
        name: value.lerp(before[name], share) if value.is_floating_point() else value for name, value in weights.items()
    }


def begun(record: Mapping[str, Any]) -> str:
    """What the weights were before the training, and before that."""
    before = record.get("begun")
    if not before:
        return "random weights"
    return (
        f"weights of `{before['recipe']}`, step {before['step']} of {before['steps']}, seed {before['seed']}, "
        f"{before['seconds']:.0f} s, score {before['score']:.2f} %; these with {begun(before)}"
    )


def limits(settings: Settings) -> str:
    """What the network has seen, and what becomes of other scans."""
    samples = settings.samples
    if settings.gives == "regions":
        edge, tilt = samples.voxel_sizes[0][0], math.degrees(samples.tilt)
        return (
            f"Learned on simulated heads, voxels of {edge:g} mm, tilted by up to {tilt:.0f} degrees and more; others\n"
            "are resampled to these linearly. Red nucleus, substantia nigra and dentate nucleus are shapes placed\n"
            "into the label maps, not drawn on anybody's images. Adults' anatomy, as label maps of people have it."
        )
    sizes = ", ".join(" x ".join(f"{length:g}" for length in size) for size in samples.voxel_sizes)
    degrees = math.degrees(samples.tilt)
    seen = f"Learned on simulated scans of {sizes} mm, B0 up to {degrees:.0f} degrees from the grid's z"
    told = getattr(settings.network, "oriented", False) or settings.network.kind in TOLD
    moved = "as a complex signal, and chi back" if settings.takes == "phase" else "and back"
    if degrees == 0:
        turned = "oblique scans are turned to it and back"
    else:
        turned = "its direction is told to the network" if told else "its direction is not told to the network"
    text = f"{seen};\nother voxels are resampled to these {moved} by splines, which blurs; {turned}."
    if inversion_alone(settings):
        text += (
            "\nOnly the network that inverts has learned: the local field that it is given is that of PDF and TV in "
            "turns,\nto which the first network, whose last weights are zero, adds nothing yet."
        )
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--share", type=float, default=0.5)
    options = parser.parse_args()
    people = read_packed(options.validation)
    print(publish(options.run, options.name, people, options.folder, start=options.start, share=options.share))


if __name__ == "__main__":
    main()
