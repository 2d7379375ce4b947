"""Results that are whole or not there: written beside the target under a hidden name, then renamed."""

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from chimap.errors import InputError


@contextmanager
def whole_directory(path: Path, *, earlier: Sequence[str] = ()) -> Iterator[Path]:
    """A temporary folder whose content comes to stand in `path` once the block has ended without an error.

    A target that exists keeps its other files; files of the same name are replaced. After an error or an
    interrupt nothing of the block's work remains, nor any folder that was made for it.

    Args:
        path: The folder.
        earlier: Files in it, named from it on, that belong to results before these: those that the block does not
            write anew are taken away with them.

    Raises:
        InputError: The target is a file, or the place cannot be written to.
    """
    target = Path(path).absolute()
    if target.exists() and not target.is_dir():
        raise InputError(f"{path} is a file, needed a folder to write to")
    if target.is_dir() and not os.access(target, os.W_OK | os.X_OK):
        raise InputError(f"no permission to write to the folder {path}")
    with _folders_made(target.parent) as made:
        temporary = target.parent / f".{target.name}-{secrets.token_hex(6)}"
        try:
            temporary.mkdir()
        except OSError as error:
            raise InputError(f"cannot write to {target.parent}: {error.strerror}") from None
        try:
            yield temporary
            if target.is_dir():
                _check_kinds(temporary, target)
                _take_away([name for name in earlier if not (temporary / name).exists()], target)
                _move_into(temporary, target)
            else:
                os.replace(temporary, target)
            made.clear()
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file name, with the suffixes of `path`, that takes its place once the block has ended.

    After an error or an interrupt a file that was there before is untouched, and nothing else remains.

    Raises:
        InputError: The target is a folder, or the place cannot be written to.
    """
    target = Path(path).absolute()
    if target.is_dir():
        raise InputError(f"{path} is a folder, needed the name of a file to write")
    with _folders_made(target.parent) as made:
        temporary = target.parent / f".{secrets.token_hex(6)}-{target.name}"
        try:
            temporary.touch()
        except OSError as error:
            raise InputError(f"cannot write to {target.parent}: {error.strerror}") from None
        try:
            yield temporary
            os.replace(temporary, target)
            made.clear()
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _folders_made(folder: Path) -> Iterator[list[Path]]:
    """Make a folder and its parents; those still listed at the end, innermost first, are taken away again."""
    missing: list[Path] = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, needed a folder to write to")
    made: list[Path] = []
    try:
        for parent in reversed(missing):
            try:
                parent.mkdir(exist_ok=True)
            except OSError as error:
                raise InputError(f"the folder {parent} cannot be made: {error.strerror}") from None
            made.insert(0, parent)
        yield made
    finally:
        for parent in made:
            try:
                parent.rmdir()
            except OSError:  # somebody else put something there meanwhile, or took it away
                break


def _check_kinds(source: Path, target: Path) -> None:
    """Refuse before anything has moved where a file would have to replace a folder, or a folder a file."""
    for entry in source.rglob("*"):
        other = target / entry.relative_to(source)
        if other.exists() and other.is_dir() != entry.is_dir():
            kinds = ("folder", "file") if other.is_dir() else ("file", "folder")
            raise InputError(f"{other} is a {kinds[0]}, and a {kinds[1]} of that name has to be written")


def _take_away(names: Sequence[str], target: Path) -> None:
    """Files, and folders below the target that hold nothing else."""
    for name in names:
        (target / name).unlink(missing_ok=True)
    for folder in {target / parent for name in names for parent in list(Path(name).parents)[:-1]}:
        with suppress(OSError):
            folder.rmdir()


def _move_into(source: Path, target: Path) -> None:
    for entry in sorted(source.iterdir()):
        other = target / entry.name
        if entry.is_dir() and other.is_dir():
            _move_into(entry, other)
        else:
            os.replace(entry, other)
