"""Gradient-echo acquisitions of a BIDS dataset, and masks and segmentations of other programs that go with them.

Nothing is read here but names of files. What is wrong with one acquisition is kept beside it, as a sentence.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chimap.errors import InputError
from chimap.io.bids_names import IMAGES, Name, joined, metadata_files, parse

SUFFIXES = ("MEGRE", "T2starw")
NATIVE = ("T1w", "T2w", "T2starw", "MEGRE", "orig", "individual", "scanner")
"""Labels of `space` that are the person's own, not a template's."""


@dataclass(frozen=True)
class Acquisition:
    """The files of one gradient-echo acquisition.

    Attributes:
        root: Folder of the dataset.
        entities: What all its files share in their names: subject, session, acquisition, run and so on.
        suffix: One of `SUFFIXES`.
        phase: By the number of the echo: 10 after 2.
        magnitude: Likewise, or empty.
        sidecars: JSON files that apply to any of them, inherited ones too.
        problem: Why it cannot be used, as a sentence; None where names tell nothing against it.
    """

    root: Path
    entities: tuple[tuple[str, str], ...]
    suffix: str = ""
    phase: tuple[Path, ...] = ()
    magnitude: tuple[Path, ...] = ()
    sidecars: tuple[Path, ...] = ()
    problem: str | None = None

    @property
    def name(self) -> str:
        """What its derivatives are called: sub-01_ses-a_run-1."""
        return joined(self.entities)

    @property
    def labels(self) -> dict[str, str]:
        """{key: label}."""
        return dict(self.entities)

    @property
    def folder(self) -> Path:
        """Where its derivatives lie in another dataset: sub-01/ses-a/anat."""
        return Path(*(f"{key}-{label}" for key, label in self.entities if key in ("sub", "ses")), "anat")


def check_dataset(root: Path) -> None:
    """Refuse a folder that is no BIDS dataset.

    Raises:
        InputError: There is no such folder, or its dataset_description.json is missing, broken or without a version.
    """
    if not root.is_dir():
        raise InputError(f"{root} is no folder, needed a BIDS dataset")
    path = root / "dataset_description.json"
    advice = "--skip-bids-validation goes on without it"
    if not path.exists():
        raise InputError(f"{root} holds no dataset_description.json, so it is no BIDS dataset; {advice}")
    try:
        about = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}; {advice}") from None
    if not isinstance(about, dict) or not about.get("BIDSVersion"):
        raise InputError(f"{path} has no BIDSVersion; {advice}")


def acquisitions(
    root: Path, subjects: Collection[str] | None = None, sessions: Collection[str] | None = None
) -> list[Acquisition]:
    """All acquisitions with phase of a dataset, by subject and session.

    A subject without any is there too, with the sentence that says so. A T2*-weighted image without phase, made to be
    looked at, is passed over.

    Args:
        root: Folder of the dataset.
        subjects: Labels, with or without "sub-"; all if None.
        sessions: Likewise, with or without "ses-".

    Raises:
        InputError: There is no subject, or a label that the dataset does not have.
    """
    if not root.is_dir():
        raise InputError(f"{root} is no folder, needed a BIDS dataset")
    folders = _chosen(root, "sub", subjects, str(root))
    if not folders:
        raise InputError(f"{root} holds no folder called sub-…: it is no BIDS dataset")
    wanted = None if sessions is None else {label.removeprefix("ses-") for label in sessions}
    listings: dict[Path, list[tuple[Path, Name]]] = {}
    found: list[Acquisition] = []
    seen: set[str] = set()
    for subject in folders:
        own = _labelled(subject, "ses")
        seen |= own.keys()
        places = [subject] if wanted is None else []
        places += [folder for label, folder in own.items() if wanted is None or label in wanted]
        of_subject = [
            acquisition
            for place in places
            if (place / "anat").is_dir()
            for acquisition in _in_folder(root, place / "anat", listings)
        ]
        if not of_subject:
            where = "" if wanted is None else f" in session {', '.join(sorted(wanted))}"
            problem = f"no phase of a gradient echo (part-phase, {' or '.join(SUFFIXES)}) in anat{where}"
            of_subject = [Acquisition(root, (("sub", subject.name.removeprefix("sub-")),), problem=problem)]
        found += of_subject
    if wanted is not None and wanted - seen:
        there = ", ".join(sorted(seen)) or "none"
        raise InputError(f"no subject has a session {', '.join(sorted(wanted - seen))}; there are {there}")
    return found


def _chosen(root: Path, key: str, wanted: Collection[str] | None, where: str) -> list[Path]:
    there = _labelled(root, key)
    if wanted is None:
        return list(there.values())
    labels = dict.fromkeys(label.removeprefix(f"{key}-") for label in wanted)
    missing = [label for label in labels if label not in there]
    if missing:
        some = ", ".join(list(there)[:20]) + (" …" if len(there) > 20 else "")
        raise InputError(f"{where} has no {key}-{', '.join(missing)}; there are {some or 'none'}")
    return [there[label] for label in labels]


def _labelled(folder: Path, key: str) -> dict[str, Path]:
    """{label: folder} of sub-… or ses-…"""
    found = sorted(path for path in folder.iterdir() if path.name.startswith(f"{key}-") and path.is_dir())
    return {path.name.removeprefix(f"{key}-"): path for path in found}


def _in_folder(root: Path, folder: Path, listings: dict[Path, list[tuple[Path, Name]]]) -> list[Acquisition]:
    """Acquisitions of one anat folder."""
    groups: dict[tuple[tuple[tuple[str, str], ...], str], list[tuple[Path, Name]]] = {}
    for path in sorted(folder.iterdir()):
        name = parse(path.name)
        if name is not None and name.suffix in SUFFIXES and name.extension in IMAGES:
            groups.setdefault((name.without("echo", "part"), name.suffix), []).append((path, name))
    found: list[Acquisition] = []
    for (entities, suffix), files in groups.items():
        parts = {name.labels.get("part", "mag") for _, name in files}
        if suffix == "T2starw" and parts == {"mag"}:
            continue
        sidecars = dict.fromkeys(
            json_file for path, _ in files for json_file in metadata_files(path, root, listings=listings)
        )
        acquisition = Acquisition(root, entities, suffix, sidecars=tuple(sidecars))
        try:
            _check_place(folder.relative_to(root), acquisition)
            phase, magnitude = _paired(files)
        except InputError as problem:
            found.append(replace(acquisition, problem=str(problem)))
        else:
            found.append(replace(acquisition, phase=phase, magnitude=magnitude))
    return _told_apart(found)


def _told_apart(found: list[Acquisition]) -> list[Acquisition]:
    """Acquisitions of different names: one that only differs by its suffix has it in its acq."""
    taken: set[str] = set()
    apart = []
    for acquisition in found:
        if acquisition.name in taken:
            entities = [pair for pair in acquisition.entities if pair[0] != "acq"]
            after = sum(key in ("sub", "ses", "sample", "task", "tracksys") for key, _ in entities)
            entities.insert(after, ("acq", acquisition.labels.get("acq", "") + acquisition.suffix))
            acquisition = replace(acquisition, entities=tuple(entities))
        taken.add(acquisition.name)
        apart.append(acquisition)
    return apart


def _check_place(folder: Path, acquisition: Acquisition) -> None:
    if folder != acquisition.folder:
        raise InputError(f"the files in {folder} are named {acquisition.name}, which belongs to {acquisition.folder}")


def _paired(files: Sequence[tuple[Path, Name]]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Phase and magnitude by the number of the echo, each echo in both or magnitude in none."""
    echoes: dict[str, dict[int, Path]] = {}
    for path, name in files:
        part, label = name.labels.get("part", "mag"), name.labels.get("echo", "0")
        if not label.isdecimal():
            raise InputError(f"{path.name}: echo-{label} is no number")
        if path.is_symlink() and not path.exists():
            raise InputError(f"{path.name} is a link to content that is not here: fetch it first, as by datalad get")
        of_part = echoes.setdefault(part, {})
        if int(label) in of_part:
            raise InputError(f"{of_part[int(label)].name} and {path.name} are the same image twice")
        of_part[int(label)] = path
    phase, magnitude = echoes.get("phase", {}), echoes.get("mag", {})
    if not phase:
        if echoes.keys() & {"real", "imag"}:
            raise InputError("there is part-real and part-imag, needed part-mag and part-phase: convert them first")
        raise InputError("there is no part-phase: magnitude alone gives no susceptibility")
    for one in (phase, magnitude):
        if 0 in one and len(one) > 1:
            raise InputError(f"{one[0].name} has no echo in its name and the others do: which one is it?")
    for here, there, what in ((phase, magnitude, "magnitude"), (magnitude, phase, "phase")):
        lacking = sorted(here.keys() - there.keys())
        if magnitude and lacking:
            listed = ", ".join(map(str, lacking))
            raise InputError(f"echo {listed} has no {what}: {here[lacking[0]].name} stands alone")
    return tuple(phase[echo] for echo in sorted(phase)), tuple(magnitude[echo] for echo in sorted(magnitude))


def mask_for(acquisition: Acquisition, folder: Path) -> Path:
    """The brain mask for an acquisition in a dataset of derivatives: desc-brain_mask, or the only mask there is.

    Raises:
        InputError: There is none, or several fit equally well.
    """
    found = list(_candidates(acquisition, folder, "mask"))
    brains = [row for row in found if row[1].labels.get("desc") == "brain"] or found
    if not brains:
        raise InputError(f"{folder} holds no mask (sub-{acquisition.labels['sub']}_…_mask.nii.gz) for it")
    return _fittest(acquisition, brains)


def segmentations_for(acquisition: Acquisition, folder: Path) -> dict[str, Path]:
    """Segmentations (dseg) for an acquisition in a dataset of derivatives, by what tells them apart.

    The key is the label of seg, atlas or desc in the name, "dseg" where it has none of these.

    Raises:
        InputError: There is none, or several of one kind fit equally well.
    """
    kinds: dict[str, list[tuple[Path, Name]]] = {}
    for path, name in _candidates(acquisition, folder, "dseg"):
        kind = next((name.labels[key] for key in ("seg", "atlas", "desc") if key in name.labels), "dseg")
        kinds.setdefault(kind, []).append((path, name))
    if not kinds:
        raise InputError(f"{folder} holds no segmentation (sub-{acquisition.labels['sub']}_…_dseg.nii.gz) for it")
    return {kind: _fittest(acquisition, rows) for kind, rows in sorted(kinds.items())}


def _candidates(acquisition: Acquisition, folder: Path, suffix: str) -> Iterator[tuple[Path, Name]]:
    """Images of a suffix of the acquisition's subject, of its session or of none, in the person's own space."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder, needed derivatives as BIDS lays them out")
    labels = acquisition.labels
    subject = folder / f"sub-{labels['sub']}"
    places = [subject / f"ses-{labels['ses']}"] if "ses" in labels else []
    for place in (*places, subject):
        for path in sorted((place / "anat").glob(f"*_{suffix}.nii*")):
            name = parse(path.name)
            if name is None or name.suffix != suffix or name.extension not in IMAGES:
                continue
            same_session = name.labels.get("ses", labels.get("ses")) == labels.get("ses")
            if name.labels.get("sub") == labels["sub"] and same_session and name.labels.get("space", "T1w") in NATIVE:
                yield path, name


def _fittest(acquisition: Acquisition, rows: Sequence[tuple[Path, Name]]) -> Path:
    """The file whose entities agree with the acquisition's in most, and contradict it in fewest."""

    def fit(name: Name) -> tuple[int, int]:
        both = name.labels.keys() & acquisition.labels.keys()
        agree = sum(name.labels[key] == acquisition.labels[key] for key in both)
        return agree - len(both), agree

    ranked = sorted(rows, key=lambda row: fit(row[1]), reverse=True)
    if len(ranked) > 1 and fit(ranked[0][1]) == fit(ranked[1][1]):
        raise InputError(f"{ranked[0][0].name} and {ranked[1][0].name} fit {acquisition.name} equally well")
    return ranked[0][0]
