"""How far a map is from the truth: `chimap evaluate`."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from chimap import regional
from chimap.arrays import Mask, Volume
from chimap.commands.console import console, keep_freed_memory, print_table, tell
from chimap.errors import InputError
from chimap.io import checks, nifti, space
from chimap.io.labels import read_segmentation, table_beside
from chimap.io.output import whole_file


def evaluate(*, chi: Path, truth: Path, mask: Path | None, segmentation: Path | None, output: Path | None) -> None:
    """Print how far chi is from the truth, and write it as JSON.

    Args:
        chi: The map in question [ppm].
        truth: On the same grid [ppm].
        mask: Where to compare; where the truth is not zero if None.
        segmentation: Regions, brought onto this grid by the nearest neighbour where they lie on another; named by a
            table of the same name ending in .tsv, if there is one.
        output: Ends in .json; beside chi, as <its name>_evaluation.json, if None.

    Raises:
        InputError: A file cannot be read or lies on another grid, there is nothing to compare, or a number of the
            segmentation is not known.
    """
    from chimap.report.provenance import versions

    keep_freed_memory()
    target = chi.with_name(f"{_stem(chi)}_evaluation.json") if output is None else output
    if target.suffix != ".json":
        raise InputError(f"--output is {output}, needed a file name that ends in .json")
    found, affine = nifti.read_volume(chi)
    true, truth_affine = nifti.read_volume(truth)
    checks.same_grid(str(chi), found.shape, affine, str(truth), true.shape, truth_affine)
    inside, notes = true != 0, ()
    if mask is not None:
        inside, notes = nifti.read_mask(mask, truth_affine, true.shape, str(truth))
    notes = (*notes, *_comparable(found, true, inside, chi=chi, truth=truth, mask=mask))
    tell(notes)
    regions, assumed = None, None
    if segmentation is not None:
        regions, said = read_segmentation(segmentation, truth_affine, true.shape)
        if not regions.labels[inside].any():
            raise InputError(f"{segmentation} marks no region inside the mask")
        assumed = " ".join(said)
        console.print(assumed)
    size = space.voxel_size(truth_affine)
    table = None if segmentation is None else table_beside(segmentation)
    with whole_file(target) as temporary:  # a place that cannot be written to is refused before anything is measured
        report = regional.report(found, true, inside, regions, size)
        record = {
            "inputs": {
                "chi": chi.name,
                "truth": truth.name,
                "mask": "where the truth is not zero" if mask is None else mask.name,
                "segmentation": None if segmentation is None else segmentation.name,
                "table of names": None if table is None or not table.exists() else table.name,
            },
            "notes": notes,
            "scheme of the segmentation": None if regions is None else regions.scheme,
            "assumed about the segmentation": assumed,
            "voxel size [mm]": size,
            **report,
            "versions": versions(),
        }
        text = json.dumps(_plain(record), indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    _print(report)
    console.print(f"Record: {target}")


def _comparable(
    found: Volume, true: Volume, inside: Mask, *, chi: Path, truth: Path, mask: Path | None
) -> tuple[str, ...]:
    """Refuse maps that leave nothing to compare; a note where chi is missing in part of the mask."""
    if not inside.any():
        raise InputError(f"{truth} is zero everywhere: there is nothing to compare with")
    for path, values in ((truth, true[inside]), (chi, found[inside])):
        if values.min() == values.max():
            where = "where the truth is not zero" if mask is None else f"of the mask {mask}"
            raise InputError(f"{path} is {float(values[0]):g} in every voxel {where}: there is nothing to compare")
    missing = float((found[inside] == 0).double().mean())
    if missing < 0.01:
        return ()
    return (f"{chi.name} is exactly 0 in {missing:.0%} of the mask; these voxels count as errors like all others.",)


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _plain(value: Any) -> Any:
    """As JSON holds it: what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(report: Mapping[str, Any]) -> None:
    print_table(report["whole mask"])
    if "regions" not in report:
        return
    if report["challenge"]:
        console.print("\nMeasures of the 2019 challenge, and lesions:")
        print_table(report["challenge"])
    table = Table(box=None, header_style="bold")
    table.add_column("region")
    for heading in ("voxels", "chi [ppm]", "SD", "truth [ppm]", "SD", "error", "RMSE", "slope"):
        table.add_column(heading, justify="right", no_wrap=True)
    keys = ("mean [ppm]", "SD [ppm]", "true mean [ppm]", "true SD [ppm]", "mean error [ppm]", "RMSE [ppm]")
    for name, row in report["regions"].items():
        numbers = [f"{row[key]:.4f}" for key in keys]
        slope = "n/a" if math.isnan(row["slope"]) else f"{row['slope']:.2f}"
        table.add_row(Text(name), str(row["voxels"]), *numbers, slope)
    console.print("\nRegions, both maps relative to their mean in the mask:")
    Console(width=None if console.is_terminal else 120, markup=False, highlight=False).print(table)
