"""List files as they are in circulation: where they lie, and what is in them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from harness.errors import DataError, HarnessError
from suites.base import Suite, Target, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """Where the user's data are."""

    data: Path | None = None
    """Folder that holds the images, `--root`."""

    lists: Path | None = None
    """Folder that holds the lists, `--lists`; the same as `data` if not given. Tasks whose lists lie beside the
    images have in it a folder of the same name."""


@dataclass(frozen=True, slots=True)
class ListFile:
    """One list: the pictures' folder, and the file that names them with their labels."""

    path: Path
    folder: Path
    """Names in the list are relative to it."""

    numbered_with: tuple[Path, ...] = ()
    """JSON lists of the same task: class ids are numbered over all of them."""

    @property
    def changed(self) -> tuple[int, ...]:
        """Times and sizes of the files that decide the entries."""
        found = [path.stat() for path in (self.path, *self.numbered_with) if path.is_file()]
        return tuple(number for status in found for number in (status.st_mtime_ns, status.st_size))


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a list."""

    name: str
    label: int
    line: int
    """Line in the file, from 1 (for JSON: number of the entry)."""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None


def _text_entries(path: Path) -> list[tuple[int, str, str]]:
    entries = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        words = line.rsplit(maxsplit=1)  # names may hold spaces; tabs and several spaces stand in some lists
        if words:
            entries.append((number, words[0].strip() if len(words) > 1 else "", words[-1]))
    return entries


def _json_classes(path: Path) -> dict[str, int]:
    """VPT's form: a mapping of picture to class id."""
    try:
        classes: dict[str, int] = json.loads(_text(path))
        return dict(classes.items())
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON mapping of pictures to classes ({error})") from None


def _json_entries(path: Path, others: Iterable[Path], num_classes: int) -> list[tuple[int, str, str]]:
    """The ids in use, in this list and `others`, are numbered from 0 in ascending order. `DataError` if they are not as
    many as there are classes: then nobody knows which number an id stands for."""
    classes = _json_classes(path)
    lists = [classes, *(_json_classes(other) for other in others if other != path and other.is_file())]
    try:
        ids = sorted({value for one in lists for value in one.values()})
    except TypeError as error:
        raise DataError(f"{path}: not a JSON mapping of pictures to classes ({error})") from None
    if len(ids) != num_classes:
        raise DataError(f"{path}: {len(ids)} class ids in the task's JSON lists, where it has {num_classes} classes")
    order = {value: str(index) for index, value in enumerate(ids)}
    return [(n, name, order[value]) for n, (name, value) in enumerate(classes.items(), start=1)]


def read_list(
    path: Path, num_classes: int, problems: list[str] | None = None, numbered_with: Iterable[Path] = ()
) -> list[Entry]:
    """Entries of one list: lines `relative/path with spaces.jpg 7`, or VPT's JSON.

    A bad line raises `HarnessError` with file:line, or, if `problems` is given, adds its message there and is left out.
    `numbered_with`: see `ListFile`.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such list file")
    found: list[str] = []
    entries, is_json = [], path.suffix == ".json"
    for number, name, label in _json_entries(path, numbered_with, num_classes) if is_json else _text_entries(path):
        if name and label.isdecimal() and int(label) < num_classes:
            entries.append(Entry(name, int(label), number))
        else:
            line = f"{name} {label}".strip()
            found.append(f"{path}:{number}: {line!r} is not `file label` with a label from 0 to {num_classes - 1}")
    if not entries and not found:
        found.append(f"{path}: the list is empty")
    if found and problems is None:
        raise DataError(found[0] + (f" (and {len(found) - 1} more such lines)" if len(found) > 1 else ""))
    if problems is not None:
        problems += found
    return entries


def folders_of(owner: Task | Target) -> tuple[str, ...]:
    """Names of the folder of the images."""
    return owner.folders or (owner.name,)


def list_folders_of(owner: Task | Target) -> tuple[str, ...]:
    """Names of the folder of the lists; those of the images' folder where the lists lie beside them."""
    return owner.list_folders or folders_of(owner)


def _first_existing(root: Path, suite: Suite, folders: tuple[str, ...], what: str) -> Path:
    candidates = [base / folder for base in (root, *(root / f for f in suite.folders)) for folder in folders]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    tried = ", ".join(str(candidate.relative_to(root)) for candidate in candidates)
    raise DataError(f"no folder for {what} below {root}: tried {tried}")


def locate_lists(
    suite: Suite, task: Task, roots: Roots, shots: int | None = None, split_seed: int | None = None
) -> dict[str, ListFile]:
    """The list of each split on the user's disk. `HarnessError` says what was tried if a folder is not there."""
    data = _data_root(suite, roots)
    images = _first_existing(data, suite, folders_of(task), f"the images of {task.name!r}")
    lists = images
    if task.list_folders or roots.lists:
        lists = _first_existing(roots.lists or data, suite, list_folders_of(task), f"the lists of {task.name!r}")
    fill = {"shots": shots, "split_seed": split_seed}
    files = {split: lists / name.format(**fill) for split, name in task.lists.items()}
    numbered = tuple(file for file in files.values() if file.suffix == ".json")
    return {split: ListFile(file, _subfolder(images, task, file), numbered) for split, file in files.items()}


def _subfolder(images: Path, task: Task, file: Path) -> Path:
    """The folder that the names in a list are relative to: that which holds most of a sample of them."""
    if len(task.subfolders) == 1 or not file.is_file():
        return images / task.subfolders[0]
    rows = list(_json_classes(file)) if file.suffix == ".json" else [name for _, name, _ in _text_entries(file)]
    sample = rows[:: max(1, len(rows) // 16)]
    found = [sum((images / sub / name).is_file() for name in sample) for sub in task.subfolders]
    return images / task.subfolders[found.index(max(found))]


def check_roots(suite: Suite, tasks: Iterable[str], roots: Roots) -> None:
    """`HarnessError` if tasks that are not built from packages have no folder to be in, or the lists have none."""
    if roots.lists is not None and not roots.lists.is_dir():
        raise HarnessError(f"--lists {roots.lists}: no such folder")
    if roots.data is not None or any(suite.task(name).build is None for name in tasks):
        _data_root(suite, roots)


def locate_target(suite: Suite, target: Target, roots: Roots) -> ListFile:
    """The list of a further test set on the user's disk."""
    data = _data_root(suite, roots)
    images = _first_existing(data, suite, folders_of(target), f"the images of {target.name!r}")
    lists = images
    if target.list_folders or roots.lists:
        lists = _first_existing(roots.lists or data, suite, list_folders_of(target), f"the list of {target.name!r}")
    return ListFile(lists / target.list_file, images)


def _data_root(suite: Suite, roots: Roots) -> Path:
    if roots.data is None:
        raise HarnessError(f"suite {suite.name!r} needs the folder that holds its data: --root DIR")
    if not roots.data.is_dir():
        raise HarnessError(f"--root {roots.data}: no such folder")
    return roots.data


def disjoint(splits: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of splits that may have no picture in common: what is trained on, val, and all that is tested on."""
    rank = {"train": 0, "trainval": 0, "val": 1}
    return [
        (one, other)
        for one, other in product(splits, splits)
        if rank.get(one, 2) < rank.get(other, 2) and (one, other) != ("trainval", "val")
    ]


def by_file(source: ListFile, entries: Sequence[Entry]) -> dict[str, Entry]:
    """The entries by `os.path.realpath` of their pictures: the same file has the same, however it is written or linked.
    Folders are looked at once, which makes it four times as fast."""
    folders: dict[str, str] = {}
    found: dict[str, Entry] = {}
    for entry in entries:
        head, _, tail = entry.name.rpartition("/")
        if head not in folders:
            folders[head] = os.path.realpath(source.folder / head)
        path = f"{folders[head]}/{tail}"
        found[os.path.realpath(path) if tail == ".." or os.path.islink(path) else path] = entry  # noqa: PTH114
    return found
