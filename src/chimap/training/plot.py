"""A picture of a training's log."""

import json
from pathlib import Path


def plot_log(folder: Path) -> Path | None:
    """Draw losses and validation of log.jsonl over the steps, as log.png beside it.

    Returns:
        The picture; None where matplotlib is not installed, or nothing was logged.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:  # a machine that only trains may do without
        return None
    log = folder / "log.jsonl"
    entries = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if not entries:
        return None
    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    steps = [entry["step"] for entry in entries]
    width = max(len(entries) // 200, 1)
    for name in sorted(set(entries[0]) - {"step", "rate", "norm", "validation", "seconds"}):
        values = [entry[name] for entry in entries]
        smooth = [sum(values[max(0, i - width) : i + 1]) / (i + 1 - max(0, i - width)) for i in range(len(values))]
        above.plot(steps, smooth, label=name, linewidth=1)
    above.set_yscale("log")
    above.set_ylabel("loss")
    above.legend(frameon=False, fontsize=8)
    judged = [(entry["step"] + 1, entry["validation"]) for entry in entries if "validation" in entry]
    if judged:
        below.plot(*zip(*judged, strict=True), color="black", marker=".", linewidth=1)
    below.set_ylabel("validation score [%]")
    below.set_xlabel("step")
    hidden = folder / ".log.png"
    figure.savefig(hidden, format="png", dpi=110)
    hidden.replace(folder / "log.png")
    return folder / "log.png"
