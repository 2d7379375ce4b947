"""What a paper with susceptibility maps has to report: filled in where this run knows it."""

from dataclasses import dataclass

from chimap import __version__
from chimap.plan import Plan
from chimap.report.methods import UsedMethod, shown
from chimap.scan import Maps, Scan


@dataclass(frozen=True)
class Item:
    """One line of the list.

    Attributes:
        name: What to report.
        value: What it was; None where the files and the run do not say.
    """

    name: str
    value: str | None


def checklist(scan: Scan, maps: Maps, plan: Plan, used: list[UsedMethod]) -> list[Item]:
    """What the consensus recommendations ask for, in their order: acquisition, then reconstruction and analysis.

    Args:
        scan: The input.
        maps: What was made of it.
        plan: How.
        used: From `methods_used`.

    References:
        QSM Consensus Organization Committee 2024, doi:10.1002/mrm.30006.
    """
    size = " x ".join(f"{length:.4g}" for length in scan.voxel_size)
    grid = " x ".join(str(n) for n in scan.shape)
    view = " x ".join(f"{n * length:.4g}" for n, length in zip(scan.shape, scan.voxel_size, strict=True))
    b0 = ", ".join(f"{component:.3f}" for component in scan.b0_direction)
    times = ", ".join(f"{1000 * time:.4g}" for time in scan.echo_times)
    algorithms = "; ".join(f"{row.method.stage}: {row.method.label}{_numbers(row)}" for row in used)
    brain = max(int(maps.brain_mask.sum()), 1)
    reference = "ppm, without a reference region, as the inversion gives it"
    if maps.reference is not None:
        reference = f"ppm; {maps.reference.sentence}"
    regions = None
    if scan.segmentation is not None:
        regions = f"the user's segmentation ({scan.segmentation.scheme})"
    elif maps.segmentation is not None:
        regions = "by chimap's network, which has learned from simulated heads"
    return [
        Item("Scanner: manufacturer, model, software", None),
        Item("Field strength", f"{scan.field_strength:.4g} T"),
        Item("Receive coil, combination of its channels", None),
        Item("Sequence: 2D or 3D gradient echo, flow compensation, read-out polarity", None),
        Item("Echo times", f"{times} ms"),
        Item("Repetition time, flip angle, bandwidth", None),
        Item("Voxel size, matrix, field of view", f"{size} mm, {grid}, {view} mm, as reconstructed"),
        Item("Orientation of the slab", f"B0 along ({b0}) in voxel axes"),
        Item("Acceleration, scan time", None),
        Item("Software", f"chimap {__version__}"),
        Item("Algorithms and parameters", algorithms),
        Item("Brain mask", "the user's" if scan.mask is not None else "made by chimap, see above"),
        Item("Share of the brain mask with a value", f"{100 * int(maps.mask.sum()) / brain:.1f} %"),
        Item("Further processing of the map", "none by chimap"),
        Item("Unit and reference", reference),
        Item("Criteria of inclusion and exclusion, artefacts looked for", None),
        Item("Regions: how they were drawn or segmented", regions),
    ]


def _numbers(row: UsedMethod) -> str:
    values = ", ".join(f"{name} {shown(value)}" for name, value in row.parameters.items())
    return f" ({values})" if values else ""
