"""List files as they are in circulation: where they lie, and what is in them."""

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice, product
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

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

    images: Path | None = None
    """Folder of the images, where it is known and need not be looked for below `data`."""


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

    made_from: str = ""
    """What stands for the file in messages, where it was made from the user's data and the user never sees it."""

    def where(self, line: int | None = None) -> str:
        """The file, and the line in it, as messages say it."""
        at = f":{line}" if line is not None else ""
        return self.made_from or f"{self.path}{at}"

    @property
    def changed(self) -> tuple[int, ...]:
        """Inodes, sizes and times of the files that decide the entries."""
        stats = [path.stat() for path in (self.path, *self.numbered_with) if path.is_file()]
        return tuple(n for stat in stats for n in (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))


class Entry(NamedTuple):
    """One line of a list."""

    name: str
    label: int
    line: int
    """Line in the file, from 1 (for JSON: number of the entry)."""


class Entries(Sequence[Entry]):
    """The lines of a list, in 20 bytes and the name for each: an object per line would take ten times as much, and
    lists have up to millions of lines. An `Entry` is made when it is asked for."""

    def __init__(self, lines: Iterable[Entry | tuple[str, int, int]] = ()) -> None:
        text, ends, labels, numbers = bytearray(), array("q", [0]), array("i"), array("i")
        for name, label, line in lines:
            text += name.encode(errors="surrogatepass") + SEPARATOR
            ends.append(len(text))
            labels.append(label)
            numbers.append(line)
        self._text, self._ends = text, np.frombuffer(ends, np.int64)
        self.labels: NDArray[np.int32] = np.frombuffer(labels, np.int32) if labels else np.zeros(0, np.int32)
        """Of all entries, int32 [N]."""

        self._lines: NDArray[np.int32] = np.frombuffer(numbers, np.int32) if numbers else np.zeros(0, np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return Entry(self.name(number), int(self.labels[number]), int(self._lines[number]))

    def __iter__(self) -> Iterator[Entry]:
        return map(Entry, self.names, _numbers(self.labels), _numbers(self._lines))

    @property
    def names(self) -> Iterator[str]:
        """All names in order."""
        starts = range(0, len(self), NAMES_AT_ONCE)
        return chain.from_iterable(self._names(start, min(start + NAMES_AT_ONCE, len(self))) for start in starts)

    def name(self, number: int) -> str:
        """The name in one entry."""
        (name,) = self._names(number, number + 1)
        return name

    def _names(self, start: int, stop: int) -> list[str]:
        text = self._text[self._ends[start] : self._ends[stop] - len(SEPARATOR)]
        return text.decode(errors="surrogatepass").split(SEPARATOR.decode())


def _numbers(values: NDArray[np.int32]) -> Iterator[int]:
    return map(int, values)


NAMES_AT_ONCE = 4096
SEPARATOR = b"\0"
"""Between names, which cannot hold it."""


@dataclass(frozen=True, eq=False)
class ImageList:
    """A list file and its entries."""

    file: ListFile
    entries: Entries

    def where(self, entry: Entry) -> str:
        """Where an entry stands, as messages say it."""
        return self.file.where(entry.line)

    def says(self, entry: Entry, what: str) -> str:
        """A message about an entry."""
        return f"{self.where(entry)}: {entry.name} {what}"

    @property
    def paths(self) -> Iterator[str]:
        """The image file of each entry."""
        folder = os.fspath(self.file.folder)
        return (os.path.join(folder, name) for name in self.entries.names)  # noqa: PTH118

    @cached_property
    def path_keys(self) -> NDArray[np.int64]:
        """A number for each of `paths`, int64 [N], the same for the same path: `key_of`."""
        return np.fromiter(map(key_of, self.paths), np.int64, len(self.entries))

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        """A number for each entry's image, int64 [N]: that of its `real_path`. Each folder is resolved only once, which
        is four times as fast."""
        return np.fromiter(map(key_of, _real_paths(self.file.folder, self.entries.names)), np.int64, len(self.entries))

    def real_path(self, number: int) -> str:
        """`os.path.realpath` of an entry's image: the same however a file is spelled or linked."""
        (path,) = _real_paths(self.file.folder, [self.entries.name(number)])
        return path

    def at(self, chosen: NDArray[np.bool_]) -> Iterator[tuple[str, Entry]]:
        """Real path and entry of some of the entries, bool [N]."""
        for number in map(int, np.flatnonzero(chosen)):
            yield self.real_path(number), self.entries[number]


def key_of(path: str) -> int:
    """A number of 64 bits that stands for a path in this process. Among millions of paths two have the same with a
    probability of less than one in a million; what is found by it is compared by its path before it is reported."""
    return hash(path)


def _real_paths(folder: Path, names: Iterable[str]) -> Iterator[str]:
    folders: dict[str, str] = {}
    for name in names:
        head, tail = os.path.split(name)
        if head not in folders:
            folders[head] = os.path.realpath(folder / head)
        path = os.path.join(folders[head], tail)  # noqa: PTH118
        yield os.path.realpath(path) if tail == ".." or os.path.islink(path) else path  # noqa: PTH114


def _text(path: Path) -> str:
    try:
        with reading(path):
            return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None


def _text_entries(path: Path) -> Iterator[tuple[int, str, str]]:
    try:
        with reading(path), path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                words = line.rsplit(maxsplit=1)  # names may hold spaces; tabs and several spaces stand in some lists
                if words:
                    yield number, words[0].strip() if len(words) > 1 else "", words[-1]
    except UnicodeDecodeError:
        _text(path)  # says at which byte of the file
        raise


def _json_classes(path: Path) -> dict[str, int]:
    """VPT's form: a mapping of image to class id."""
    try:
        classes: dict[str, int] = json.loads(_text(path))
        return dict(classes.items())
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON mapping of images to classes ({error})") from None


def _json_entries(path: Path, others: Iterable[Path], num_classes: int) -> Iterator[tuple[int, str, str]]:
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
    return ((n, name, order[value]) for n, (name, value) in enumerate(classes.items(), start=1))


SAMPLE = 16
"""Images of a list, roughly, that are looked for to learn which folder its names are relative to."""

LABEL_DIGITS = 18
"""A longer number is not a label, and Python refuses to parse more than 4300 digits."""

LINE_SHOWN = 200
"""Characters of a malformed line shown in a message."""


def read_list(
    path: Path, num_classes: int, problems: list[str] | None = None, numbered_with: Iterable[Path] = ()
) -> Entries:
    """Entries of one list: lines `relative/path with spaces.jpg 7`, or VPT's JSON.

    A malformed line raises `HarnessError` with file:line or, if `problems` is given, is skipped and described there.
    `numbered_with`: see `ListFile`.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such list file")
    messages: list[str] = []
    is_json = path.suffix == ".json"
    rows = _json_entries(path, numbered_with, num_classes) if is_json else _text_entries(path)

    def good() -> Iterator[tuple[str, int, int]]:
        for number, name, label in rows:
            value = int(label) if label.isdecimal() and len(label) <= LABEL_DIGITS else num_classes
            if name and "\0" not in name and value < num_classes:
                yield name, value, number
            else:
                line = f"{name} {label}".strip()[:LINE_SHOWN]
                what = f"is not `file label` with a label from 0 to {num_classes - 1}"
                messages.append(f"{path}:{number}: {line!r} {what}")

    entries = Entries(good())
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
    images = (
        [roots.images] if roots.images else _existing(data, suite, folders_of(owner), f"the images of {owner.name!r}")
    )
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
    return {
        split: ListFile(
            file, folders[split], numbered, "; ".join(choices), f"{split} of {suite.path}" if suite.path else ""
        )
        for split, file in files.items()
    }


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
        count = sum(1 for _ in _sampled(file))
        return list(islice(_sampled(file), 0, None, max(1, count // SAMPLE)))
    except DataError:
        return []


def _sampled(file: Path) -> Iterator[str]:
    return iter(_json_classes(file)) if file.suffix == ".json" else (name for _, name, _ in _text_entries(file))


def folders_taken(suite: Suite, tasks: Iterable[str], roots: Roots) -> list[str]:
    """A line for each task, or further test set, with several folders on disk: which of them is used."""
    choices: list[str] = []
    for task in map(suite.task, tasks if roots.data else ()):
        with suppress(HarnessError):  # what is missing is reported where it is needed
            choices += [file.choice for file in locate_all(suite, task, roots, *next(suite.draws())).values()]
    return [line for line in dict.fromkeys(choices) if line]


def check_roots(suite: Suite, tasks: Iterable[str], roots: Roots) -> None:
    """`HarnessError` if the lists' folder is missing, or the data's where not all tasks are built from packages."""
    if suite.path is not None and (given := roots.data or roots.lists):
        raise HarnessError(f"--suite {suite.path} says where its images are: leave out {given} (--root, --lists)")
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
