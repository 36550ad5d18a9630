"""List files as they are in circulation: where they lie, and what is in them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from harness.errors import DataError, HarnessError
from suites.base import Suite, Target, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """Where the user's data are."""

    data: Path | None = None
    """Folder that holds the images, `--root`."""

    lists: Path | None = None
    """Folder that holds the lists, `--lists`; the same as `data` if not given."""


@dataclass(frozen=True, slots=True)
class ListFile:
    """One list: the pictures' folder, and the file that names them with their labels."""

    path: Path
    folder: Path
    """Names in the list are relative to it."""


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
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None


def _text_entries(path: Path) -> list[tuple[int, str, str]]:
    entries = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        words = line.rsplit(maxsplit=1)  # names may hold spaces; tabs and several spaces stand in some lists
        if words:
            entries.append((number, words[0].strip() if len(words) > 1 else "", words[-1]))
    return entries


def _json_entries(path: Path) -> list[tuple[int, str, str]]:
    """VPT's form: a mapping of picture to class id; the ids in use are renumbered from 0 in ascending order."""
    try:
        classes = json.loads(_text(path))
        order = {value: index for index, value in enumerate(sorted(set(classes.values())))}
        return [(n, name, str(order[value])) for n, (name, value) in enumerate(classes.items(), start=1)]
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{path}: not a JSON mapping of pictures to classes ({error})") from None


def read_list(path: Path, num_classes: int, problems: list[str] | None = None) -> list[Entry]:
    """Entries of one list: lines `relative/path with spaces.jpg 7`, or VPT's JSON.

    A bad line raises `HarnessError` with file:line, or, if `problems` is given, adds its message there and is left out.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such list file")
    found: list[str] = []
    entries = []
    for number, name, label in _json_entries(path) if path.suffix == ".json" else _text_entries(path):
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
    images = _first_existing(data, suite, task.folders or (task.name,), f"the images of {task.name!r}")
    lists = images
    if task.list_folders:
        lists = _first_existing(roots.lists or data, suite, task.list_folders, f"the lists of {task.name!r}")
    fill = {"shots": shots, "split_seed": split_seed}
    files = {split: lists / name.format(**fill) for split, name in task.lists.items()}
    return {split: ListFile(file, _subfolder(images, task, file)) for split, file in files.items()}


def _subfolder(images: Path, task: Task, file: Path) -> Path:
    """The folder that the names in a list are relative to: that which holds most of a sample of them."""
    if len(task.subfolders) == 1 or not file.is_file():
        return images / task.subfolders[0]
    entries = read_list(file, task.num_classes, problems=[])
    sample = entries[:: max(1, len(entries) // 16)]
    found = [sum((images / sub / entry.name).is_file() for entry in sample) for sub in task.subfolders]
    return images / task.subfolders[found.index(max(found))]


def locate_target(suite: Suite, target: Target, roots: Roots) -> ListFile:
    """The list of a further test set on the user's disk."""
    data = _data_root(suite, roots)
    images = _first_existing(data, suite, target.folders, f"the images of {target.name!r}")
    lists = images
    if target.list_folders:
        lists = _first_existing(roots.lists or data, suite, target.list_folders, f"the list of {target.name!r}")
    return ListFile(lists / target.list_file, images)


def _data_root(suite: Suite, roots: Roots) -> Path:
    if roots.data is None:
        raise HarnessError(f"suite {suite.name!r} needs the folder that holds its data: --root DIR")
    if not roots.data.is_dir():
        raise HarnessError(f"--root {roots.data}: no such folder")
    return roots.data
