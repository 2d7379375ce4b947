"""Names of BIDS files, what they inherit from folders above, and the JSON that goes with them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from chimap import __version__

BIDS_VERSION = "1.10.0"
IMAGES = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Name:
    """A BIDS file name taken apart.

    Attributes:
        entities: Key and label in the order of the name: (("sub", "01"), ("echo", "10")).
        suffix: Its last part, "MEGRE".
        extension: From the first dot, ".nii.gz".
    """

    entities: tuple[tuple[str, str], ...]
    suffix: str
    extension: str

    @cached_property
    def labels(self) -> dict[str, str]:
        """{key: label}."""
        return dict(self.entities)

    def without(self, *keys: str) -> tuple[tuple[str, str], ...]:
        """Entities that are left when those of some keys are taken out."""
        return tuple(pair for pair in self.entities if pair[0] not in keys)


def parse(name: str) -> Name | None:
    """Take a file name apart; None where it is none of BIDS.

    A name that only has a suffix, as the dataset's own MEGRE.json, has no entities.
    """
    stem, dot, extension = name.partition(".")
    *pairs, suffix = stem.split("_")
    if not dot or not re.fullmatch(r"[A-Za-z0-9]+", suffix):
        return None
    entities = [re.fullmatch(r"([A-Za-z]+)-([A-Za-z0-9+]+)", pair) for pair in pairs]
    found = tuple((match[1], match[2]) for match in entities if match is not None)
    if len(found) < len(pairs) or len(dict(found)) < len(found):
        return None
    return Name(found, suffix, dot + extension)


def joined(entities: tuple[tuple[str, str], ...]) -> str:
    """The name of entities: sub-01_ses-a."""
    return "_".join(f"{key}-{label}" for key, label in entities)


def metadata_files(
    image: Path, root: Path, extension: str = ".json", listings: dict[Path, list[tuple[Path, Name]]] | None = None
) -> list[Path]:
    """Files that say something about an image: its sidecar and what it inherits, the most general first.

    A file above or beside the image belongs to it if it has the image's suffix and no entity that the image lacks or
    has otherwise. Nearer folders come later, and within one folder the names with more entities.

    Args:
        image: Below `root`.
        root: Folder of the dataset.
        extension: Of the files.
        listings: What folders hold, kept between calls for many images of one dataset.

    References:
        BIDS 1.10, common principles, "The inheritance principle".
    """
    name = parse(image.name)
    if name is None:
        return []
    listings = {} if listings is None else listings
    folders = [folder for folder in (image.parent, *image.parent.parents) if folder.is_relative_to(root)]
    found: list[Path] = []
    for folder in reversed(folders):
        if folder not in listings:
            listings[folder] = _metadata_in(folder)
        fitting = [
            (len(other.entities), path)
            for path, other in listings[folder]
            if other.extension == extension
            and other.suffix == name.suffix
            and other.labels.items() <= name.labels.items()
        ]
        found += [path for _, path in sorted(fitting)]
    return found


def _metadata_in(folder: Path) -> list[tuple[Path, Name]]:
    files = [(path, parse(path.name)) for path in folder.iterdir() if path.suffix in (".json", ".tsv")]
    return [(path, name) for path, name in files if name is not None]


def write_description(
    folder: Path, name: str, *, derivative: bool = False, links: Mapping[str, str] | None = None
) -> None:
    """Write the dataset_description.json that makes a folder a BIDS dataset; `links` name others it was made from."""
    about: dict[str, Any] = {
        "Name": name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative" if derivative else "raw",
        "GeneratedBy": [{"Name": "chimap", "Version": __version__}],
    }
    write_json(folder / "dataset_description.json", about | ({"DatasetLinks": dict(links)} if links else {}))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a sidecar, the same bytes for the same content."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def json_beside(image: Path) -> Path:
    """The sidecar's place of an image that is called .nii.gz."""
    return image.with_name(image.name.removesuffix(".nii.gz") + ".json")
