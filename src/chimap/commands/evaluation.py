"""How far a map is from the truth: `chimap evaluate`."""

from pathlib import Path

from chimap import metrics
from chimap.commands.console import print_table, tell
from chimap.errors import InputError
from chimap.io import checks, nifti


def evaluate(*, chi: Path, truth: Path, mask: Path | None) -> None:
    """Print how far chi is from the truth."""
    found, affine = nifti.read_volume(chi)
    true, truth_affine = nifti.read_volume(truth)
    checks.same_grid(str(chi), found.shape, affine, str(truth), true.shape, truth_affine)
    inside = true != 0
    if mask is not None:
        inside, notes = nifti.read_mask(mask, truth_affine, true.shape, str(truth))
        tell(notes)
    if not inside.any():
        raise InputError(f"{truth} is zero everywhere: there is nothing to compare with")
    print_table(metrics.summary(found, true, inside))
