"""A run's data: the split it trains on, and held-out splits behind a door that stays shut while it trains."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from harness.data import arrays
from harness.data.door import Door, check_open
from harness.data.lists import Entry, ListFile, Roots, by_file, disjoint, locate_lists, locate_target, read_list
from harness.data.preprocessing import Preprocessing
from harness.errors import DataError, HarnessError
from harness.paths import cache_folder, writing_cache
from harness.records.record import Fingerprint, RunRecord
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
"""Lists that this process has found to share no picture where they may not, as they were then."""


@lru_cache(maxsize=32)
def _entries(source: ListFile, num_classes: int, changed: tuple[int, ...]) -> tuple[Entry, ...]:
    return tuple(read_list(source.path, num_classes, numbered_with=source.numbered_with))


@lru_cache(maxsize=16)
def _load_split(label: str, source: ListFile, entries: tuple[Entry, ...], preprocessing: Preprocessing) -> Split:
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
        self._looks = looks
        roots = build_if_bundled(suite, task, roots or Roots())
        self._sources = locate_lists(suite, task, roots, shots, split_seed)
        self._sources |= {target.name: locate_target(suite, target, roots) for target in task.targets}
        self._label = f"{suite.name}-{task.name}"
        self._refuse_overlaps(val_is_scored)

    def entries(self, split: str) -> tuple[Entry, ...]:
        """Names and labels of a split."""
        source = self._sources[split]
        if not source.path.is_file():
            raise DataError(f"{source.path}: no such list file")
        read = _entries if split in TRAINED_ON else _entries.__wrapped__
        return read(source, self.task.num_classes, source.changed)

    def _refuse_overlaps(self, val_is_scored: bool) -> None:
        """No picture that is scored may be trained on, and none of the test splits validated on."""
        key = tuple((source, source.changed) for source in self._sources.values()), val_is_scored
        if key in _DISJOINT:
            return
        files = {split: by_file(source, self.entries(split)) for split, source in self._sources.items()}
        for one, other in disjoint(files):
            same = next((path for path in files[one] if path in files[other]), None)
            if same and ((one, other) != ("train", "val") or val_is_scored):
                places = [f"{self._sources[split].path}:{files[split][same].line}" for split in (one, other)]
                raise DataError(f"{places[0]}: {files[one][same].name} is also in {places[1]}")
        _DISJOINT.add(key)

    def fingerprint(self) -> Fingerprint:
        """Digests of all lists, with what the suite makes of them, and of a sample of all pictures."""
        masked = [target.name for target in self.task.targets if target.masked]
        lists = hashlib.sha256(f"{self.task.num_classes}:{self.suite.final_split}:{masked}\n".encode())
        files, sizes = hashlib.sha256(), {}
        for split, source in self._sources.items():
            entries = self.entries(split)
            sizes[split] = len(entries)
            lists.update(f"{split}:{arrays.list_digest(entries)}\n".encode())
            files.update(f"{split}:{arrays.sample_digest(source, entries)}\n".encode())
        return Fingerprint(lists=lists.hexdigest(), files=files.hexdigest(), sizes=sizes)

    def guard(self, trained_on: str) -> Door:
        """The door in front of every split but the one that is trained on; `train` and `val` lie within `trainval`."""
        free = {trained_on, "train", "val"} if trained_on == "trainval" else {trained_on}
        hidden = [split for split in self._sources if split not in free]
        prefixes = [arrays.folder() / f"{self._label}-{split}-" for split in hidden]
        return Door(
            [self._sources[split] for split in hidden],
            prefixes,
            lambda: self._pictures(hidden) - self._pictures([trained_on]),
        )

    def _pictures(self, splits: list[str]) -> set[str]:
        """Real paths of the pictures that these lists name."""
        return {path for split in splits for path in by_file(self._sources[split], self.entries(split))}

    def _load(self, split: str) -> Split:
        check_open(f"split {split!r} of {self.task.name!r}")
        load = _load_split if split in TRAINED_ON else _load_split.__wrapped__
        return load(f"{self._label}-{split}", self._sources[split], self.entries(split), self.preprocessing)

    def decode(self, split: str) -> None:
        """Make the array of a split that will be scored, of `test` with all further test sets, and give nothing away:
        a picture that is missing shows before the training and not behind it."""
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


def done_on_other_data(
    suite: Suite, records: Iterable[RunRecord], roots: Roots, preprocessing: Preprocessing
) -> Iterator[str]:
    """A line for each task and way in which complete runs were done on other data than there are now, where these can
    be looked at."""
    now: dict[tuple[str, int | None, int | None], Fingerprint | None] = {}
    found: Counter[tuple[str, str]] = Counter()
    for record in records:
        spec = record.spec
        key = spec.task, spec.shots, spec.split_seed
        if key not in now:
            now[key] = None
            with suppress(HarnessError):
                task = suite.task(spec.task)
                if is_there(suite, task, roots):
                    data = TaskData(suite, task, preprocessing, roots, spec.shots, spec.split_seed)
                    now[key] = data.fingerprint()
        today = now[key]
        if today and record.data and (difference := record.data.differs_from(today)):
            found[spec.task, difference] += 1
    for (name, difference), count in found.items():
        yield f"{count} complete run(s) of {name} were done on other data than there are now ({difference})"
