"""List files as they are in circulation: where they lie, and what is in them."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

from harness.data.files import is_file, reading
from harness.errors import DataError, HarnessError
from suites.base import Suite, Target, Task

NOTE_FILE = "OWN_SPLIT.txt"
"""File beside lists that are not the suite's own: a line that says who drew them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """Where the user's data are."""

    data: Path | None = None
    """Folder that holds the images, `--root`."""

    lists: Path | None = None
    """Folder that holds the lists, `--lists`; the same as `data` if not given. Lists that usually lie beside the images
    are looked for there in a folder of the task's name."""


@dataclass(frozen=True, slots=True)
class ListFile:
    """One list: the images' folder, and the file that names them with their labels."""

    path: Path
    folder: Path
    """Names in the list are relative to it."""

    numbered_with: tuple[Path, ...] = ()
    """JSON lists of the same task: class ids are numbered over all of them."""

    choice: str = ""
    """Which folder is used and which are not, where several have the suite's names."""

    @property
    def changed(self) -> tuple[int, ...]:
        """Inodes, sizes and times of the files that decide the entries."""
        stats = [path.stat() for path in (self.path, *self.numbered_with) if path.is_file()]
        return tuple(n for stat in stats for n in (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a list."""

    name: str
    label: int
    line: int
    """Line in the file, from 1 (for JSON: number of the entry)."""


@dataclass(frozen=True, eq=False)
class ImageList:
    """A list file and its entries."""

    file: ListFile
    entries: Sequence[Entry]

    def where(self, entry: Entry) -> str:
        """`file:line` of an entry."""
        return f"{self.file.path}:{entry.line}"

    def says(self, entry: Entry, what: str) -> str:
        """A message about an entry."""
        return f"{self.where(entry)}: {entry.name} {what}"

    @cached_property
    def paths(self) -> list[Path]:
        """The image file of each entry."""
        return [self.file.folder / entry.name for entry in self.entries]

    @cached_property
    def real_paths(self) -> list[str]:
        """`os.path.realpath` of each entry's image: the same however a file is spelled or linked. Each folder is
        resolved only once, which is four times as fast."""
        folders: dict[str, str] = {}
        paths: list[str] = []
        for entry in self.entries:
            head, tail = os.path.split(entry.name)
            if head not in folders:
                folders[head] = os.path.realpath(self.file.folder / head)
            path = os.path.join(folders[head], tail)  # noqa: PTH118
            paths.append(os.path.realpath(path) if tail == ".." or os.path.islink(path) else path)  # noqa: PTH114
        return paths

    @cached_property
    def by_image(self) -> dict[str, Entry]:
        """The entries by the real paths of their images."""
        return dict(zip(self.real_paths, self.entries, strict=True))


def _text(path: Path) -> str:
    try:
        with reading(path):
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


def _json_classes(path: Path) -> dict[str, int]:
    """VPT's form: a mapping of image to class id."""
    try:
        classes: dict[str, int] = json.loads(_text(path))
        return dict(classes.items())
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON mapping of images to classes ({error})") from None


def _json_entries(path: Path, others: Iterable[Path], num_classes: int) -> list[tuple[int, str, str]]:
    """The ids used in this list and `others` are numbered from 0 in ascending order. `DataError` if there are more or
    fewer of them than classes: then it is unknown which class an id stands for."""
    classes = _json_classes(path)
    lists = [classes, *(_json_classes(other) for other in others if other != path and other.is_file())]
    try:
        ids = sorted({value for mapping in lists for value in mapping.values()})
    except TypeError as error:
        raise DataError(f"{path}: not a JSON mapping of images to classes ({error})") from None
    if len(ids) != num_classes:
        raise DataError(f"{path}: {len(ids)} class ids in the task's JSON lists, where it has {num_classes} classes")
    order = {value: str(index) for index, value in enumerate(ids)}
    return [(n, name, order[value]) for n, (name, value) in enumerate(classes.items(), start=1)]


SAMPLE = 16
"""Images of a list, roughly, that are looked for to learn which folder its names are relative to."""

LABEL_DIGITS = 18
"""A longer number is not a label, and Python refuses to parse more than 4300 digits."""

LINE_SHOWN = 200
"""Characters of a malformed line shown in a message."""


def read_list(
    path: Path, num_classes: int, problems: list[str] | None = None, numbered_with: Iterable[Path] = ()
) -> list[Entry]:
    """Entries of one list: lines `relative/path with spaces.jpg 7`, or VPT's JSON.

    A malformed line raises `HarnessError` with file:line or, if `problems` is given, is skipped and described there.
    `numbered_with`: see `ListFile`.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such list file")
    messages: list[str] = []
    entries, is_json = [], path.suffix == ".json"
    for number, name, label in _json_entries(path, numbered_with, num_classes) if is_json else _text_entries(path):
        value = int(label) if label.isdecimal() and len(label) <= LABEL_DIGITS else num_classes
        if name and "\0" not in name and value < num_classes:
            entries.append(Entry(name, value, number))
        else:
            line = f"{name} {label}".strip()[:LINE_SHOWN]
            messages.append(f"{path}:{number}: {line!r} is not `file label` with a label from 0 to {num_classes - 1}")
    if not entries and not messages:
        messages.append(f"{path}: the list is empty")
    if messages and problems is None:
        raise DataError(messages[0] + (f" (and {len(messages) - 1} more such lines)" if len(messages) > 1 else ""))
    if problems is not None:
        problems += messages
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
    existing: dict[str, Path] = {}
    for candidate in candidates:
        if candidate.is_dir():
            existing.setdefault(os.path.realpath(candidate), candidate)
    if not existing:
        tried = ", ".join(str(candidate.relative_to(root)) for candidate in candidates)
        raise DataError(f"no folder for {what} below {root}: tried {tried}")
    return list(existing.values())


def locate(
    suite: Suite, owner: Task | Target, roots: Roots, shots: int | None = None, split_seed: int | None = None
) -> dict[str, ListFile]:
    """The lists of a task's splits, or of a further test set, on the user's disk. `HarnessError` says what was tried
    if a folder is missing.

    Several copies of one set, laid out by different projects, often lie side by side: the folder with the most of the
    lists is used and, where the images lie elsewhere, the one with the most of these; of equals, the first.
    """
    subfolders: tuple[str, ...] = ("",)
    if isinstance(owner, Target):
        names = {owner.name: owner.list_file}
    else:
        names = {s: name.format(shots=shots, split_seed=split_seed) for s, name in owner.lists.items()}
        subfolders = owner.subfolders
    data = _data_root(suite, roots)
    images = _existing(data, suite, folders_of(owner), f"the images of {owner.name!r}")
    lists, what, apart = images, "lists and images", bool(owner.list_folders or roots.lists)
    if apart:
        lists = _existing(roots.lists or data, suite, list_folders_of(owner), f"the lists of {owner.name!r}")
        what = "lists"
    counts = {folder: _files_in(folder, names.values()) for folder in lists}
    best = max(counts, key=counts.__getitem__)
    files = {split: best / name for split, name in names.items()}
    folders, choice = _image_folders(images if apart else [best], subfolders, files)
    choices = [f"{owner.name}: {text}" for text in (_choice(what, counts, "lists"), choice) if text]
    numbered = tuple(file for file in files.values() if file.suffix == ".json")
    return {split: ListFile(file, folders[split], numbered, "; ".join(choices)) for split, file in files.items()}


def locate_all(
    suite: Suite, task: Task, roots: Roots, shots: int | None = None, split_seed: int | None = None
) -> dict[str, ListFile]:
    """The lists of a task's splits and of its further test sets, as by `locate`."""
    return {
        name: file for owner in task.listed for name, file in locate(suite, owner, roots, shots, split_seed).items()
    }


def _files_in(folder: Path, names: Iterable[str]) -> int:
    """How many of these files a folder holds; none where it may not be read."""
    return sum(is_file(folder / name) for name in names)


def _choice(what: str, counts: Mapping[Path, int], unit: str) -> str:
    """Which of these folders is used, the one that holds most; empty if there is no other outside it."""
    best = max(counts, key=counts.__getitem__)
    others = [folder for folder in counts if not (folder.is_relative_to(best) or best.is_relative_to(folder))]
    unused = ", ".join(f"{folder} (holds {counts[folder]})" for folder in others)
    return f"{what} are taken from {best} (holds {counts[best]} {unit}), not from {unused}" if others else ""


def _image_folders(
    images: list[Path], subfolders: tuple[str, ...], files: Mapping[str, Path]
) -> tuple[dict[str, Path], str]:
    """The folder that the names in each list are relative to: one of the folders of images, and one of the subfolders
    in it, whichever holds most of a sample of the names. And which folders are not used."""
    if len(images) * len(subfolders) == 1:
        return dict.fromkeys(files, images[0] / subfolders[0]), ""
    samples = {split: _sample(file) for split, file in files.items()}
    best: dict[Path, dict[str, Path]] = {}
    counts: dict[Path, int] = {}
    for folder in images:
        held = {split: {folder / sub: _files_in(folder / sub, samples[split]) for sub in subfolders} for split in files}
        best[folder] = {split: max(by_place, key=by_place.__getitem__) for split, by_place in held.items()}
        counts[folder] = sum(max(by_place.values()) for by_place in held.values())
    unit = f"of {sum(map(len, samples.values()))} looked for"
    return best[max(counts, key=counts.__getitem__)], _choice("images", counts, unit)


def _sample(file: Path) -> list[str]:
    """Some of the names in a list; none of one that cannot be read, which is reported when it is."""
    try:
        names = list(_json_classes(file)) if file.suffix == ".json" else [name for _, name, _ in _text_entries(file)]
    except DataError:
        return []
    return names[:: max(1, len(names) // SAMPLE)]


def folders_taken(suite: Suite, tasks: Iterable[str], roots: Roots) -> list[str]:
    """A line for each task, or further test set, with several folders on disk: which of them is used."""
    choices: list[str] = []
    for task in map(suite.task, tasks if roots.data else ()):
        with suppress(HarnessError):  # what is missing is reported where it is needed
            choices += [file.choice for file in locate_all(suite, task, roots, *next(suite.draws())).values()]
    return [line for line in dict.fromkeys(choices) if line]


def check_roots(suite: Suite, tasks: Iterable[str], roots: Roots) -> None:
    """`HarnessError` if the lists' folder is missing, or the data's where not all tasks are built from packages."""
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
    """Images of a split or further test set as the suite states them; None where it does not."""
    if split == "train" and shots is not None:
        return shots * task.num_classes
    if split == "trainval" and {"train", "val"} <= set(task.sizes):
        return task.sizes["train"] + task.sizes["val"]
    targets: dict[str, Target] = {target.name: target for target in task.targets}
    return targets[split].size if split in targets else task.sizes.get(split)


def disjoint(splits: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of splits that must share no image: what is trained on, val, and whatever is tested on."""
    rank = {"train": 0, "trainval": 0, "val": 1}
    pairs = [(a, b) for a, b in product(splits, splits) if rank.get(a, 2) < rank.get(b, 2)]
    return [pair for pair in pairs if pair != ("trainval", "val")]
