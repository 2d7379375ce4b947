"""What an acquisition of a BIDS dataset becomes: the names of its results, and whether they are there and up to date.

Nothing here needs torch, so that a cohort is looked through at once.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from chimap import __version__
from chimap.errors import InputError
from chimap.io.bids_names import metadata_files
from chimap.io.bids_reading import Acquisition, mask_for, segmentations_for
from chimap.methods import WEIGHTS
from chimap.plan import Plan

State = Literal["missing", "changed", "done"]
FOUND = "desc-network_dseg.nii.gz"
"""End of the name of regions that were found with the map."""


@dataclass(frozen=True)
class Job:
    """One acquisition, and what to do with it.

    Attributes:
        acquisition: Without a problem.
        output: Folder of the derivatives.
        plan: As for `chimap run`.
        told: The user's words on the acquisition, arguments of `nifti.read_scan`.
        masks: Derivatives that hold a brain mask for it.
        segmentations: Derivatives that hold segmentations for it.
        call: Names the call of the program that made the job.
        overwrite: Make it again unless this very call did so already.
        command: The command line, for the record.
    """

    acquisition: Acquisition
    output: Path
    plan: Plan = field(default_factory=Plan)
    told: Mapping[str, Any] = field(default_factory=dict)
    masks: Path | None = None
    segmentations: Path | None = None
    call: str = ""
    overwrite: bool = False
    command: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """That of the acquisition."""
        return self.acquisition.name

    @property
    def folder(self) -> Path:
        """Where the maps lie."""
        return self.output / self.acquisition.folder

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.output / f"{self.name}.html"

    def path(self, ending: str) -> Path:
        """A result's place: its name, then "Chimap.nii.gz"."""
        return self.folder / f"{self.name}_{ending}"


def map_inputs(job: Job) -> list[Path]:
    """Files that the maps depend on."""
    acquisition, plan = job.acquisition, job.plan
    found = [*acquisition.phase, *acquisition.magnitude, *acquisition.sidecars]
    if job.masks is not None:
        found.append(mask_for(acquisition, job.masks))
    if job.segmentations is not None and needs_segmentation(job):
        found += _segmentation_files(job, job.segmentations)
    return found + [Path(name) for name in (plan.background, plan.inversion) if name.endswith(WEIGHTS)]


def region_inputs(job: Job) -> list[Path]:
    """Files that the region values depend on: the map, segmentations and their tables."""
    found = [job.path("Chimap.nii.gz")]
    return found if job.segmentations is None else found + _segmentation_files(job, job.segmentations)


def needs_segmentation(job: Job) -> bool:
    """Whether the map itself depends on the segmentations: chi is to be relative to a region."""
    return job.plan.reference not in ("mask", "none")


def _segmentation_files(job: Job, folder: Path) -> list[Path]:
    found = []
    for path in segmentations_for(job.acquisition, folder).values():
        found += [path, *metadata_files(path, folder, ".tsv")[-1:]]
    return found


def settings(job: Job) -> dict[str, Any]:
    """How the maps are made, as JSON holds it: what must be equal for results to be those of this job."""
    plan = asdict(job.plan) | {name: Path(getattr(job.plan, name)).name for name in ("background", "inversion")}
    given = {name: value for name, value in job.told.items() if value is not None}
    return json.loads(
        json.dumps({"Version": __version__, "Plan": plan, "Given": given, "Masks": job.masks is not None})
    )


def maps_state(job: Job) -> State:
    """Whether the maps are there, and made from the files as they are now.

    Raises:
        InputError: They are there and were made in another way, so that only the user can say which to keep.
    """
    record = _record(job.path("Chimap.json"))
    if record is None or not job.path("Chimap.nii.gz").exists():
        return "missing"
    if job.overwrite and record.get("Call") != job.call:
        return "missing"
    difference = _difference(record.get("Settings", {}), settings(job))
    if difference:
        raise InputError(
            f"there are maps already, made otherwise ({difference}): --overwrite replaces them, or take another folder"
        )
    return "done" if _same_files(record.get("Inputs"), map_inputs(job), job.acquisition.root) else "changed"


def regions_state(job: Job) -> State:
    """Whether the region values are there and belong to the map and the segmentations as they are now."""
    record = _record(job.path("regions.json"))
    if record is None or not job.path("regions.tsv").exists():
        return "missing"
    recorded = record.get("Inputs")
    if job.segmentations is None and isinstance(recorded, list):
        recorded = recorded[:1]  # values of segmentations that this call does not name stay
    return "done" if _same_files(recorded, region_inputs(job), job.output) else "changed"


def checksums(files: Sequence[Path], root: Path) -> list[dict[str, Any]]:
    """What files are like now: name below `root`, bytes, time of their last change and SHA-256."""
    rows = []
    for path in files:
        about = path.stat()
        row = {"Name": _short(path, root), "Bytes": about.st_size, "Modified": about.st_mtime_ns}
        rows.append(row | {"SHA256": _sha256(path)})
    return rows


def _same_files(recorded: Any, files: Sequence[Path], root: Path) -> bool:
    """Whether files are as they were: same size and time, or the same content where only the time differs."""
    if not isinstance(recorded, list) or [row.get("Name") for row in recorded] != [_short(p, root) for p in files]:
        return False
    for row, path in zip(recorded, files, strict=True):
        if not path.exists() or path.stat().st_size != row.get("Bytes"):
            return False
        if path.stat().st_mtime_ns != row.get("Modified") and _sha256(path) != row.get("SHA256"):
            return False
    return True


def _short(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _record(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _difference(before: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> str:
    """What differs of two records of settings: "inversion tv, now tkd"."""
    found = []
    for key in dict.fromkeys((*before, *now)):
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old or {}, Mapping) and isinstance(new or {}, Mapping):
            found.append(_difference(old or {}, new or {}, "" if key in ("Plan", "Given", "settings") else f"{key}."))
        else:
            found.append(f"{within}{key} {_said(old)}, now {_said(new)}")
    return "; ".join(found)


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not given" if value is None else str(value)
