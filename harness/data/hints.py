"""What was probably meant, where data are not where they were looked for."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from harness.data.lists import ListFile, Roots, folders_of, list_folders_of, read_list
from harness.errors import HarnessError
from suites.base import Suite, Target, Task

SAMPLE = 16
"""Missing images that are looked for under another name or in another place."""

MOST_FOLDERS = 200
"""Folders of the root that are looked into."""

LISTED = 4
"""Files of a folder that are named."""


@dataclass(frozen=True, slots=True)
class Hint:
    """What was probably meant; empty if nobody knows."""

    way: str = ""
    """The same for hints that mean the same."""

    text: str = ""


def other_root(suite: Suite, owners: Sequence[Task | Target], roots: Roots) -> Hint:
    """The folder one level up or down that holds what is missing below `--root`, or below `--lists`."""
    if roots.data is None:
        return Hint()
    root = roots.data
    names = [folders_of(owner) for owner in owners]
    if roots.lists and all(_held(root, suite, [one]) for one in names):
        return _better(suite, "--lists", roots.lists, [list_folders_of(owner) for owner in owners])
    return _better(suite, "--root", root, [one for one in names if not _held(root, suite, [one])])


def _better(suite: Suite, flag: str, root: Path, names: Sequence[tuple[str, ...]]) -> Hint:
    root = Path(os.path.realpath(root))
    places = [root.parent, *(root / name for name in _names(root)[:MOST_FOLDERS])]
    held = {place: _held(place, suite, names) for place in places}
    best = max(places, key=held.__getitem__)
    if not held[best]:
        return Hint()
    return Hint(flag, f"did you mean {flag} {best}? {held[best]} of these {len(names)} are there")


def _held(place: Path, suite: Suite, names: Sequence[tuple[str, ...]]) -> int:
    """Of how many owners one of the folders is in this place."""
    bases = [place, *(place / folder for folder in suite.folders)]
    return sum(any(os.path.isdir(base / name) for base in bases for name in one) for one in names)  # noqa: PTH112


def other_list(path: Path) -> Hint:
    """Where the list lies that is missing, or what lies in its place."""
    names = _names(path.parent)
    below = [path.parent / name / path.name for name in names[:MOST_FOLDERS]]
    alike = [path.parent / name for name in names if name.casefold() == path.name.casefold()]
    for found in (*alike, *below, path.parent.parent / path.name):
        if found.is_file():
            return Hint("elsewhere", f"did you mean {found}?")
    files = [name for name in names if (path.parent / name).is_file()]
    held = ", ".join(files[:LISTED]) + (", ..." if len(files) > LISTED else "") if files else "no files"
    return Hint("held", f"{path.parent} holds {held}")


def one_based(source: ListFile, num_classes: int) -> Hint:
    """Whether a list's labels run from 1 instead of from 0."""
    problems: list[str] = []
    with suppress(HarnessError):
        labels = {entry.label for entry in read_list(source.path, num_classes + 1, problems, source.numbered_with)}
        if not problems and labels and min(labels) == 1 and max(labels) == num_classes:
            return Hint("labels from 1", f"its labels run from 1 to {num_classes}: subtract 1 from each")
    return Hint()


def renamed(source: ListFile, missing: Sequence[str]) -> Hint:
    """Where most of a list's missing images are: under names that differ a little, or in another folder."""
    sample = missing[:: max(1, len(missing) // SAMPLE)][:SAMPLE]
    best, most = Hint(), len(sample) // 2  # fewer than that have causes of their own
    for hint, find in _ways(source.folder, sample):
        found = [path for name in sample if (path := find(name))]
        if len(found) > most:
            best, most = Hint(hint.way, hint.text.format(found=found[0])), len(found)
    return best


Find = Callable[[str], Path | None]
"""The file that a name in a list may stand for."""


def _ways(folder: Path, sample: Sequence[str]) -> Iterator[tuple[Hint, Find]]:
    """How names may have been meant, the likeliest first."""
    for way, key, differ in (
        ("accents", _nfc, "Accents are written in two ways, NFC and NFD"),
        ("capitals", lambda text: _nfc(text).casefold(), "Only capitals differ"),
        ("ending", lambda text: _nfc(PurePosixPath(text).stem).casefold(), "Only the ending differs"),
    ):
        yield Hint(way, f"did you mean {{found}}? {differ}"), _alike(folder, key)
    parts = PurePosixPath(sample[0]).parts
    for count in range(1, len(parts)):
        prefix = str(PurePosixPath(*parts[:count]))
        text = f"did you mean {{found}}? The list's names begin with {_plain(prefix)}/, which is too much there"
        yield Hint(f"without {prefix}", text), _without(folder, prefix)
    for place in (folder.parent, folder.parent.parent, *(folder / name for name in _names(folder)[:MOST_FOLDERS])):
        way = os.path.relpath(place, folder)
        text = f"did you mean {{found}}? The list's names are relative to {_plain(place)}, and not to {_plain(folder)}"
        yield Hint(f"below {way}", text), _below(place)


def _plain(text: object) -> str:
    """The text as `str.format` gives it back."""
    return str(text).replace("{", "{{").replace("}", "}}")


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _alike(folder: Path, key: Callable[[str], str]) -> Find:
    """Finds a file whose name, folders included, has the same key."""
    known: dict[Path, dict[str, str]] = {}

    def find(name: str) -> Path | None:
        place = folder
        for part in PurePosixPath(name).parts:
            if place not in known:
                known[place] = {key(found): found for found in _names(place)}
            if key(part) not in known[place]:
                return None
            place /= known[place][key(part)]
        return place if place.is_file() else None

    return find


def _without(folder: Path, prefix: str) -> Find:
    def find(name: str) -> Path | None:
        path = PurePosixPath(name)
        return file(folder / path.relative_to(prefix)) if path.is_relative_to(prefix) else None

    return find


def _below(place: Path) -> Find:
    return lambda name: file(place / name)


def file(path: Path) -> Path | None:
    """The path, if a file is there."""
    return path if os.path.isfile(path) else None  # noqa: PTH113 (raises nothing)


def _names(folder: Path) -> list[str]:
    """What lies in a folder; nothing in one that cannot be looked into."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 (names as they are)
    except OSError:
        return []
