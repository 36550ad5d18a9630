"""A run's data: the split it trains on, and held-out splits behind a door that stays shut while it trains."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from harness.data import arrays
from harness.data.agreement import disagreements
from harness.data.held_out_guard import HeldOutGuard, check_open
from harness.data.lists import (
    NOTE_FILE,
    Entry,
    ListFile,
    Roots,
    by_file,
    disjoint,
    known_size,
    locate_lists,
    locate_target,
    read_list,
)
from harness.errors import DataError, HarnessError
from harness.paths import cache_folder, writing_cache
from harness.schema.preprocessing import Preprocessing
from harness.schema.record import Fingerprint, RunRecord
from harness.terminal import Advance
from suites.base import Suite, Task


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Decoded images, uint8 [N, H, W, 3], and labels, int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        """A copy on `device`."""
        return Split(self.images.to(device), self.labels.to(device))

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order, `size` at a time, moved to `device` as they come."""
        for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True):
            if device.type == "cuda" and not images.is_cuda:  # the next batch is copied while the device computes
                images, labels = images.pin_memory(), labels.pin_memory()
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def build_if_bundled(suite: Suite, task: Task, roots: Roots) -> Roots:
    """For a task made of installed packages: write its folder on first use, and say where it is.

    The folder is `<root>/<task>`. Data of one's own (`--root`), such as an exported copy, are taken instead.
    """
    if task.build is None or roots.data is not None:
        return roots
    root = _bundled(suite)
    folder = root / task.name
    if not folder.is_dir():
        with writing_cache():
            folder.parent.mkdir(parents=True, exist_ok=True)
            task.build(folder)
    return replace(roots, data=root, lists=roots.lists or root)


def is_there(suite: Suite, task: Task, roots: Roots) -> bool:
    """Whether the task's data can be looked at now, without building or asking for them."""
    if roots.data is not None:
        return True
    return task.build is not None and (_bundled(suite) / task.name).is_dir()


def _bundled(suite: Suite) -> Path:
    return cache_folder() / "suites" / f"{suite.name}-v{suite.version}"


TRAINED_ON = ("train", "trainval")
"""Splits of which this process keeps what it has read. Held-out splits are read when they are opened and not kept, so
no later run finds them in memory."""


_DISJOINT: set[tuple[object, ...]] = set()
"""Lists, as they were then, that this process has found to belong together, and to share no image they may not."""


@lru_cache(maxsize=32)
def _entries(source: ListFile, num_classes: int, changed: tuple[int, ...]) -> tuple[Entry, ...]:
    return tuple(read_list(source.path, num_classes, numbered_with=source.numbered_with))


def _note(folder: Path) -> str:
    """The first line of the note on the lists of a folder; empty if there is none."""
    try:
        return (folder / NOTE_FILE).read_text(errors="replace").strip().partition("\n")[0]
    except FileNotFoundError:
        return ""


@lru_cache(maxsize=16)
def _load_split(
    array: Path, label: str, source: ListFile, entries: tuple[Entry, ...], preprocessing: Preprocessing
) -> Split:
    """`array` stands for the images as they are now: after a change this process must not go on with the old ones."""
    pixels = arrays.load(label, source, entries, preprocessing)
    return Split(torch.from_numpy(pixels), torch.tensor([entry.label for entry in entries]))


class TaskData:
    """One run's view of a task."""

    def __init__(
        self,
        suite: Suite,
        task: Task,
        preprocessing: Preprocessing,
        roots: Roots | None = None,
        shots: int | None = None,
        split_seed: int | None = None,
        looks: int = 1,
        val_is_scored: bool = False,
    ) -> None:
        """`looks`: how often the test split may be opened."""
        self.suite, self.task, self.preprocessing = suite, task, preprocessing
        self.test_looks = 0
        self._looks, self._shots = looks, shots
        roots = build_if_bundled(suite, task, roots or Roots())
        self._sources = locate_lists(suite, task, roots, shots, split_seed)
        self._sources |= {target.name: locate_target(suite, target, roots) for target in task.targets}
        self._label = f"{suite.name}-{task.name}"
        self._refuse_contradictions(val_is_scored)

    def entries(self, split: str) -> tuple[Entry, ...]:
        """Names and labels of a split."""
        source = self._sources[split]
        if not source.path.is_file():
            raise DataError(f"{source.path}: no such list file")
        read = _entries if split in TRAINED_ON else _entries.__wrapped__
        return read(source, self.task.num_classes, source.changed)

    def _refuse_contradictions(self, val_is_scored: bool) -> None:
        """`trainval` must be `train` and `val`; no image that is scored may be trained on, and none of the test
        splits validated on."""
        key = tuple((source, source.changed) for source in self._sources.values()), val_is_scored
        if key in _DISJOINT:
            return
        lists = {split: (source, self.entries(split)) for split, source in self._sources.items()}
        for found in disagreements(lists):
            if found.certain:
                raise DataError(found.text)
        files = {split: by_file(*listed) for split, listed in lists.items()}
        for one, other in disjoint(files):
            same = next((path for path in files[one] if path in files[other]), None)
            if same and ((one, other) != ("train", "val") or val_is_scored):
                places = [f"{self._sources[split].path}:{files[split][same].line}" for split in (one, other)]
                raise DataError(f"{places[0]}: {files[one][same].name} is also in {places[1]}")
        _DISJOINT.add(key)

    def fingerprint(self, pixels: bool = True, advance: Advance | None = None) -> Fingerprint:
        """Digests of all lists, with what the suite makes of them, of a sample of all images, and of all decoded
        pixels, which nobody has to look at for it; without `pixels` none is decoded."""
        masked = [target.name for target in self.task.targets if target.masked]
        lists = hashlib.sha256(f"{self.task.num_classes}:{self.suite.final_split}:{masked}\n".encode())
        files = hashlib.sha256()
        for split, source in self._sources.items():
            entries = self.entries(split)
            lists.update(f"{split}:{arrays.list_digest(entries)}\n".encode())
            files.update(f"{split}:{arrays.sample_digest(source, entries)}\n".encode())
        decoded = self._pixels(advance) if pixels else ""
        return replace(self.origin(), lists=lists.hexdigest(), files=files.hexdigest(), pixels=decoded)

    def _pixels(self, advance: Advance | None) -> str:
        """sha256 over the decoded pixels, list by list. A list whose images all stand in others that are decoded,
        as those of train and val do in trainval, is not decoded for it."""
        images, places = {}, {}
        for split, source in self._sources.items():
            entries = self.entries(split)
            images[split] = [source.folder / entry.name for entry in entries]
            places[split] = arrays.array_path(f"{self._label}-{split}", source, entries, self.preprocessing)
        known: dict[Path, bytes] = {}
        for split in sorted(places, key=lambda split: not arrays.is_known(places[split])):
            if not known.keys() >= set(images[split]):
                found = arrays.image_digests(places[split], images[split], self.preprocessing, advance)
                known.update(zip(images[split], found, strict=True))
        sha = hashlib.sha256()
        for split, paths in images.items():
            sha.update(f"{split}:{len(paths)}\n".encode() + b"".join(known[path] for path in paths))
        return sha.hexdigest()

    def origin(self) -> Fingerprint:
        """Sizes, those that the suite states, and who drew the lists; no digests, so that no image is read."""
        known = {split: known_size(self.task, split, self._shots) for split in self._sources}
        official = {split: size for split, size in known.items() if size is not None}
        sizes = {split: len(self.entries(split)) for split in self._sources}
        if self._shots is not None and len({entry.name for entry in self.entries("train")}) == official["train"]:
            official["train"] = sizes["train"]  # NOAH's 1-shot lists of pets name every image twice
        notes = dict.fromkeys(_note(source.path.parent) for source in self._sources.values())
        return Fingerprint(
            lists="", files="", sizes=sizes, official_sizes=official, split_origin="; ".join(filter(None, notes))
        )

    def guard(self, trained_on: str) -> HeldOutGuard:
        """The door in front of every split but the one that is trained on; `train` and `val` lie within `trainval`."""
        free = {trained_on, "train", "val"} if trained_on == "trainval" else {trained_on}
        hidden = [split for split in self._sources if split not in free]
        prefixes = [arrays.folder() / f"{self._label}-{split}-" for split in hidden]
        images = self._images(hidden) - self._images([trained_on])
        return HeldOutGuard([self._sources[split] for split in hidden], prefixes, images)

    def _images(self, splits: list[str]) -> set[str]:
        """Real paths of the images that these lists name."""
        return {path for split in splits for path in by_file(self._sources[split], self.entries(split))}

    def _load(self, split: str) -> Split:
        check_open(f"split {split!r} of {self.task.name!r}")
        load = _load_split if split in TRAINED_ON else _load_split.__wrapped__
        what = f"{self._label}-{split}", self._sources[split], self.entries(split), self.preprocessing
        return load(arrays.array_path(*what), *what)

    def decode(self, split: str) -> None:
        """Make the array of a split that will be scored, of `test` with all further test sets, and give nothing away:
        an image that is missing shows before the training and not behind it."""
        for name in self._tested if split == "test" else (split,):
            arrays.build(f"{self._label}-{name}", self._sources[name], self.entries(name), self.preprocessing)

    @property
    def _tested(self) -> tuple[str, ...]:
        return "test", *(target.name for target in self.task.targets)

    def has(self, split: str) -> bool:
        """Whether the task has a list of this name."""
        return split in self._sources

    def train(self, split: str) -> Split:
        """`train`, `val` or `trainval`."""
        if split not in ("train", "val", "trainval"):
            raise HarnessError(f"split {split!r} is opened by TaskData.open_test alone")
        if split not in self._sources:
            raise HarnessError(f"task {self.task.name!r} has no split {split!r}")
        return self._load(split)

    def open_test(self) -> dict[str, Split]:
        """The test split and all further test sets by name; `HarnessError` once it was opened as often as it may be."""
        if self.test_looks >= self._looks:
            allowed = "was opened already in this run" if self._looks else "is not opened under this protocol"
            raise HarnessError(f"the test split of {self.task.name!r} {allowed}")
        check_open(f"the test split of {self.task.name!r}")
        self.test_looks += 1
        return {split: self._load(split) for split in self._tested}


def not_official(
    suite: Suite, tasks: Iterable[str], roots: Roots, shots: tuple[int, ...], preprocessing: Preprocessing
) -> Iterator[str]:
    """A line for each task whose data, where they can be looked at, are not the suite's: fewer images, or an own
    split."""
    for name in tasks:
        task, found = suite.task(name), dict[str, None]()
        if not is_there(suite, task, roots):
            continue
        for count, draw in product(shots or (None,), suite.split_seeds or (None,)):
            with suppress(HarnessError, OSError):  # the run itself will say so
                origin = TaskData(suite, task, preprocessing, roots, count, draw).origin()
                found |= dict.fromkeys(origin.not_official)
        if found:
            yield f"{name}: {', '.join(found)}; numbers on it do not compare with published ones, and tables say so"


def done_on_other_data(
    suite: Suite,
    records: Iterable[RunRecord],
    roots: Roots,
    preprocessing: Preprocessing,
    advance: Advance | None = None,
) -> Iterator[str]:
    """A line for each task and way in which complete runs were done on other data than there are now, where these can
    be looked at. Images are decoded for it only where their files are not those that were decoded before."""
    by_data: dict[tuple[str, int | None, int | None], list[Fingerprint]] = {}
    for record in records:
        spec = record.spec
        if record.data and is_there(suite, suite.task(spec.task), roots):
            by_data.setdefault((spec.task, spec.shots, spec.split_seed), []).append(record.data)
    found: Counter[tuple[str, str]] = Counter()
    for (name, shots, seed), then in by_data.items():
        try:
            data = TaskData(suite, suite.task(name), preprocessing, roots, shots, seed)
            today = data.fingerprint(pixels=any(one.pixels for one in then), advance=advance)
        except DataError as error:
            found[name, f"cannot be compared with the data there are now: {error}"] += len(then)
            continue
        differences = [difference for one in then if (difference := one.differs_from(today))]
        found.update((name, f"were done on other data than there are now ({difference})") for difference in differences)
    for (name, what), count in found.items():
        yield f"{count} complete run(s) of {name} {what}"
