"""List files as they are in circulation: where they lie, and what is in them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from harness.errors import DataError, HarnessError
from suites.base import Suite, Target, Task

NOTE_FILE = "OWN_SPLIT.txt"
"""File beside lists that are not those of the suite: a line that says who drew them."""


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
    """One list: the images' folder, and the file that names them with their labels."""

    path: Path
    folder: Path
    """Names in the list are relative to it."""

    numbered_with: tuple[Path, ...] = ()
    """JSON lists of the same task: class ids are numbered over all of them."""

    choice: str = ""
    """What was taken and what passed over, where several folders bear the suite's names."""

    @property
    def changed(self) -> tuple[int, ...]:
        """Inodes, sizes and times of the files that decide the entries."""
        found = [path.stat() for path in (self.path, *self.numbered_with) if path.is_file()]
        return tuple(n for at in found for n in (at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns))


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
    """VPT's form: a mapping of image to class id."""
    try:
        classes: dict[str, int] = json.loads(_text(path))
        return dict(classes.items())
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON mapping of images to classes ({error})") from None


def _json_entries(path: Path, others: Iterable[Path], num_classes: int) -> list[tuple[int, str, str]]:
    """The ids in use, in this list and `others`, are numbered from 0 in ascending order. `DataError` if they are not as
    many as there are classes: then nobody knows which number an id stands for."""
    classes = _json_classes(path)
    lists = [classes, *(_json_classes(other) for other in others if other != path and other.is_file())]
    try:
        ids = sorted({value for one in lists for value in one.values()})
    except TypeError as error:
        raise DataError(f"{path}: not a JSON mapping of images to classes ({error})") from None
    if len(ids) != num_classes:
        raise DataError(f"{path}: {len(ids)} class ids in the task's JSON lists, where it has {num_classes} classes")
    order = {value: str(index) for index, value in enumerate(ids)}
    return [(n, name, order[value]) for n, (name, value) in enumerate(classes.items(), start=1)]


SAMPLE = 16
"""Images of a list, about, that are looked for to see where its names begin."""

LABEL_DIGITS = 18
"""A longer number is no label; one of more than 4300 digits Python would not even read."""

LINE_SHOWN = 200
"""Characters of a bad line that a message shows."""


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
        value = int(label) if label.isdecimal() and len(label) <= LABEL_DIGITS else num_classes
        if name and "\0" not in name and value < num_classes:
            entries.append(Entry(name, value, number))
        else:
            line = f"{name} {label}".strip()[:LINE_SHOWN]
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


def _existing(root: Path, suite: Suite, folders: tuple[str, ...], what: str) -> list[Path]:
    """The folders of these names that are there, each once, in the names' order. `DataError` if there is none."""
    candidates = [base / folder for base in (root, *(root / f for f in suite.folders)) for folder in folders]
    found: dict[str, Path] = {}
    for candidate in candidates:
        if candidate.is_dir():
            found.setdefault(os.path.realpath(candidate), candidate)
    if not found:
        tried = ", ".join(str(candidate.relative_to(root)) for candidate in candidates)
        raise DataError(f"no folder for {what} below {root}: tried {tried}")
    return list(found.values())


def locate_lists(
    suite: Suite, task: Task, roots: Roots, shots: int | None = None, split_seed: int | None = None
) -> dict[str, ListFile]:
    """The list of each split on the user's disk. `HarnessError` says what was tried if a folder is not there.

    Copies of one set, as several projects lay them out, often lie side by side: the folder that holds most of the
    lists is taken, and for images that lie apart from them the one that holds most of these. The first of equals.
    """
    fill = {"shots": shots, "split_seed": split_seed}
    names = {split: name.format(**fill) for split, name in task.lists.items()}
    return _locate(suite, task, names, task.subfolders, roots)


def locate_target(suite: Suite, target: Target, roots: Roots) -> ListFile:
    """The list of a further test set on the user's disk, likewise."""
    return _locate(suite, target, {target.name: target.list_file}, ("",), roots)[target.name]


def _locate(
    suite: Suite, owner: Task | Target, names: dict[str, str], subfolders: tuple[str, ...], roots: Roots
) -> dict[str, ListFile]:
    data = _data_root(suite, roots)
    images = _existing(data, suite, folders_of(owner), f"the images of {owner.name!r}")
    lists, what, apart = images, "lists and images", bool(owner.list_folders or roots.lists)
    if apart:
        lists = _existing(roots.lists or data, suite, list_folders_of(owner), f"the lists of {owner.name!r}")
        what = "lists"
    held = {folder: _files_in(folder, names.values()) for folder in lists}
    taken = max(held, key=held.__getitem__)
    files = {split: taken / name for split, name in names.items()}
    folders, choice = _image_folders(images if apart else [taken], subfolders, files)
    choices = [f"{owner.name}: {text}" for text in (_choice(what, held, "lists"), choice) if text]
    numbered = tuple(file for file in files.values() if file.suffix == ".json")
    return {split: ListFile(file, folders[split], numbered, "; ".join(choices)) for split, file in files.items()}


def _files_in(folder: Path, names: Iterable[str]) -> int:
    """How many of these files a folder holds; none where it may not be looked into."""
    return sum(os.path.isfile(folder / name) for name in names)  # noqa: PTH113 (raises nothing)


def _choice(what: str, held: Mapping[Path, int], unit: str) -> str:
    """Which of these folders was taken, that which holds most; empty if there is no other outside it."""
    taken = max(held, key=held.__getitem__)
    others = [folder for folder in held if not (folder.is_relative_to(taken) or taken.is_relative_to(folder))]
    passed = ", ".join(f"{folder} (holds {held[folder]})" for folder in others)
    return f"{what} are taken from {taken} (holds {held[taken]} {unit}), not from {passed}" if others else ""


def _image_folders(
    images: list[Path], subfolders: tuple[str, ...], files: Mapping[str, Path]
) -> tuple[dict[str, Path], str]:
    """The folder that the names in each list are relative to: of the folders of images, and below it of its subfolders,
    that which holds most of a sample of them. And what was passed over."""
    if len(images) * len(subfolders) == 1:
        return dict.fromkeys(files, images[0] / subfolders[0]), ""
    samples = {split: _sample(file) for split, file in files.items()}

    def found(folder: Path, split: str) -> int:
        return _files_in(folder, samples[split])

    below = {
        folder: {split: max((folder / sub for sub in subfolders), key=lambda f: found(f, split)) for split in files}
        for folder in images
    }
    held = {folder: sum(found(place, split) for split, place in places.items()) for folder, places in below.items()}
    unit = f"of {sum(map(len, samples.values()))} looked for"
    return below[max(held, key=held.__getitem__)], _choice("images", held, unit)


def _sample(file: Path) -> list[str]:
    """Some of the names in a list; none of one that cannot be read, which shows when it is."""
    try:
        rows = list(_json_classes(file)) if file.suffix == ".json" else [name for _, name, _ in _text_entries(file)]
    except DataError:
        return []
    return rows[:: max(1, len(rows) // SAMPLE)]


def folders_taken(suite: Suite, tasks: Iterable[str], roots: Roots) -> list[str]:
    """A line for each task, or further test set, of which several folders are there: which was taken."""
    found: list[str] = []
    for task in map(suite.task, tasks if roots.data else ()):
        with suppress(HarnessError):  # what is not there is told where it is needed
            shots, seed = next(product(suite.shots or (None,), suite.split_seeds or (None,)))
            found += [source.choice for source in locate_lists(suite, task, roots, shots, seed).values()]
            found += [locate_target(suite, target, roots).choice for target in task.targets]
    return [line for line in dict.fromkeys(found) if line]


def check_roots(suite: Suite, tasks: Iterable[str], roots: Roots) -> None:
    """`HarnessError` if tasks that are not built from packages have no folder to be in, or the lists have none."""
    if roots.lists is not None and not roots.lists.is_dir():
        raise HarnessError(f"--lists {roots.lists}: no such folder")
    if roots.data is not None or any(suite.task(name).build is None for name in tasks):
        _data_root(suite, roots)


def _data_root(suite: Suite, roots: Roots) -> Path:
    if roots.data is None:
        raise HarnessError(f"suite {suite.name!r} needs the folder that holds its data: --root DIR")
    if not roots.data.is_dir():
        raise HarnessError(f"--root {roots.data}: no such folder")
    return roots.data


def known_size(task: Task, split: str, shots: int | None = None) -> int | None:
    """Images of a split or further test set as the suite states them, None where it does not."""
    if split == "train" and shots is not None:
        return shots * task.num_classes
    if split == "trainval" and {"train", "val"} <= set(task.sizes):
        return task.sizes["train"] + task.sizes["val"]
    targets: dict[str, Target] = {target.name: target for target in task.targets}
    return targets[split].size if split in targets else task.sizes.get(split)


def disjoint(splits: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of splits that may have no image in common: what is trained on, val, and all that is tested on."""
    rank = {"train": 0, "trainval": 0, "val": 1}
    return [
        (one, other)
        for one, other in product(splits, splits)
        if rank.get(one, 2) < rank.get(other, 2) and (one, other) != ("trainval", "val")
    ]


def real_paths(source: ListFile, entries: Sequence[Entry]) -> list[str]:
    """`os.path.realpath` of each entry's image: the same file has the same, however it is written or linked. Folders
    are looked at once, which makes it four times as fast."""
    folders: dict[str, str] = {}
    found: list[str] = []
    for entry in entries:
        head, tail = os.path.split(entry.name)
        if head not in folders:
            folders[head] = os.path.realpath(source.folder / head)
        path = os.path.join(folders[head], tail)  # noqa: PTH118
        found.append(os.path.realpath(path) if tail == ".." or os.path.islink(path) else path)  # noqa: PTH114
    return found


def by_file(source: ListFile, entries: Sequence[Entry]) -> dict[str, Entry]:
    """The entries by the real paths of their images."""
    return dict(zip(real_paths(source, entries), entries, strict=True))
