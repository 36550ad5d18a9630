"""What was probably meant where data are not in the place where they were looked for."""

import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from harness.data.files import is_file
from harness.data.lists import ListFile, Roots, folders_of, list_folders_of, read_list
from harness.errors import HarnessError
from suites.base import Suite, Target, Task

SAMPLE = 16
"""Missing images of a list that are looked for under another name or in another place."""

MOST_FOLDERS = 200
"""Folders of the root that are searched."""

LISTED = 4
"""Files of a folder named in a message."""


@dataclass(frozen=True, slots=True)
class Hint:
    """What was probably meant; empty if there is no guess."""

    cause: str = ""
    """The same for hints that mean the same."""

    text: str = ""


def other_root(suite: Suite, owners: Sequence[Task | Target], roots: Roots) -> Hint:
    """The folder one level up or down that holds what is missing below `--root` or `--lists`."""
    if roots.data is None:
        return Hint()
    names = [folders_of(owner) for owner in owners]
    without = [folders for folders in names if not _owners_in(roots.data, suite, [folders])]
    if roots.lists and not without:
        return _better_root(suite, "--lists", roots.lists, [list_folders_of(owner) for owner in owners])
    return _better_root(suite, "--root", roots.data, without)


def _better_root(suite: Suite, flag: str, root: Path, names: Sequence[tuple[str, ...]]) -> Hint:
    root = Path(os.path.realpath(root))
    counts = {place: _owners_in(place, suite, names) for place in (root.parent, *_inside(root))}
    best = max(counts, key=counts.__getitem__)
    if not counts[best]:
        return Hint()
    return Hint(flag, f"did you mean {flag} {best}? {counts[best]} of these {len(names)} are there")


def _owners_in(place: Path, suite: Suite, names: Sequence[tuple[str, ...]]) -> int:
    """How many owners have one of their folders in this place."""
    bases = [place, *(place / folder for folder in suite.folders)]
    return sum(any(os.path.isdir(base / name) for base in bases for name in folders) for folders in names)  # noqa: PTH112


def other_list(path: Path) -> Hint:
    """Where the missing list is, or what is there in its place."""
    names = _names(path.parent)
    alike = [path.parent / name for name in names if name.casefold() == path.name.casefold()]
    for candidate in (*alike, *(place / path.name for place in _inside(path.parent)), path.parent.parent / path.name):
        if candidate.is_file():
            return Hint("elsewhere", f"did you mean {candidate}?")
    files = [name for name in names if (path.parent / name).is_file()]
    held = ", ".join(files[:LISTED]) + (", ..." if len(files) > LISTED else "") if files else "no files"
    return Hint("held", f"{path.parent} holds {held}")


def one_based(list_file: ListFile, num_classes: int) -> Hint:
    """Whether a list's labels start at 1 instead of 0."""
    problems: list[str] = []
    with suppress(HarnessError):
        labels = {
            entry.label for entry in read_list(list_file.path, num_classes + 1, problems, list_file.numbered_with)
        }
        if not problems and labels and min(labels) == 1 and max(labels) == num_classes:
            return Hint("labels from 1", f"its labels run from 1 to {num_classes}: subtract 1 from each")
    return Hint()


def renamed(list_file: ListFile, missing: Sequence[str]) -> Hint:
    """Where most of a list's missing images are: under slightly different names, or in another folder."""
    sample = missing[:: max(1, len(missing) // SAMPLE)][:SAMPLE]
    best, most = Hint(), len(sample) // 2  # fewer than that have causes of their own
    for hint, find in _guesses(list_file.folder, sample):
        files = [path for name in sample if (path := find(name))]
        if len(files) > most:
            best, most = Hint(hint.cause, hint.text.replace(FOUND, str(files[0]))), len(files)
    return best


Find = Callable[[str], Path | None]
"""The file that a name in a list may stand for."""

FOUND = "{found}"
"""Stands for that file in the text of a guess."""


def _guesses(folder: Path, sample: Sequence[str]) -> Iterator[tuple[Hint, Find]]:
    """What the names may stand for, the likeliest first."""
    for cause, key, differ in (
        ("accents", _nfc, "Accents are written in two ways, NFC and NFD"),
        ("capitals", lambda text: _nfc(text).casefold(), "Only capitals differ"),
        ("ending", lambda text: _nfc(PurePosixPath(text).stem).casefold(), "Only the ending differs"),
    ):
        yield Hint(cause, f"did you mean {FOUND}? {differ}"), _alike(folder, key)
    parts = PurePosixPath(sample[0]).parts
    for prefix in (str(PurePosixPath(*parts[:count])) for count in range(1, len(parts))):
        text = f"did you mean {FOUND}? The list's names begin with {prefix}/, which is too much there"
        yield Hint(f"without {prefix}", text), _below(folder, prefix)
    for place in (folder.parent, folder.parent.parent, *_inside(folder)):
        text = f"did you mean {FOUND}? The list's names are relative to {place}, and not to {folder}"
        yield Hint(f"below {os.path.relpath(place, folder)}", text), _below(place)


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _alike(folder: Path, key: Callable[[str], str]) -> Find:
    """Finds a file whose name, folders included, has the same key."""
    known: dict[Path, dict[str, str]] = {}

    def find(name: str) -> Path | None:
        place = folder
        for part in PurePosixPath(name).parts:
            if place not in known:
                known[place] = {key(entry): entry for entry in _names(place)}
            if key(part) not in known[place]:
                return None
            place /= known[place][key(part)]
        return place if place.is_file() else None

    return find


def _below(folder: Path, prefix: str = "") -> Find:
    """Finds a file in a folder by its name without the prefix."""

    def find(name: str) -> Path | None:
        path = PurePosixPath(name)
        file = folder / path.relative_to(prefix) if path.is_relative_to(prefix) else None
        return file if file and is_file(file) else None

    return find


def _inside(folder: Path) -> list[Path]:
    return [folder / name for name in _names(folder)[:MOST_FOLDERS]]


def _names(folder: Path) -> list[str]:
    """What is in a folder; nothing if it cannot be read."""
    with suppress(OSError):
        return sorted(os.listdir(folder))  # noqa: PTH208
    return []
