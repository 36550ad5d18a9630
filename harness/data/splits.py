"""A run's data: the split it trains on, and the held-out splits, which are guarded while it trains."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from harness.data import arrays
from harness.data.agreement import disagreements, shared_images
from harness.data.arrays import ImageArray
from harness.data.decode_all import DIGEST_BYTES
from harness.data.held_out_guard import HeldOutGuard, check_open
from harness.data.lists import (
    NOTE_FILE,
    Entries,
    ImageList,
    ListFile,
    Roots,
    disjoint,
    known_size,
    locate_all,
    read_list,
)
from harness.errors import DataError, HarnessError
from harness.paths import cache_folder, writing_cache
from harness.schema.preprocessing import Preprocessing
from harness.schema.record import Fingerprint, RunRecord
from harness.terminal import Advance
from suites import corruptions
from suites.base import Suite, Task


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Decoded images, uint8 [N, H, W, 3], and labels, int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Self:
        """A copy on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order, `size` at a time, moved to `device` as they come."""
        for images, labels in zip(self._pieces(size), self.labels.split(size), strict=True):
            if device.type == "cuda" and not images.is_cuda:  # the next batch is copied while the device computes
                images, labels = images.pin_memory(), labels.pin_memory()
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    def _pieces(self, size: int) -> Iterator[Tensor]:
        yield from self.images.split(size)


@dataclass(frozen=True, slots=True, eq=False)
class CorruptedSplit(Split):
    """A split whose images are corrupted as they are read in batches, on all cores, the next batch while one is used;
    `images` are the clean ones. Nothing is stored: all kinds at all strengths would take 25 times the split's disk."""

    corruption: tuple[str, int]
    """See `Target.corruption`."""

    def _pieces(self, size: int) -> Iterator[Tensor]:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            ahead = [pool.submit(self._image, number) for number in range(min(size, len(self)))]
            for start in range(0, len(self), size):
                following = range(start + size, min(start + 2 * size, len(self)))
                jobs, ahead = ahead, [pool.submit(self._image, number) for number in following]
                yield torch.from_numpy(np.stack([job.result() for job in jobs]))

    def _image(self, number: int) -> np.ndarray:
        return corruptions.corrupt(self.images[number].numpy(), self.corruption, number)


def build_if_bundled(suite: Suite, task: Task, roots: Roots) -> Roots:
    """Roots of a task made of installed packages or of a path, whose folder `<root>/<task>` is written on first use.
    The user's own data (`--root`), such as an exported copy, take precedence."""
    if task.build is None or roots.data is not None:
        return roots
    root = _bundled(suite)
    folder = root / task.name
    if not folder.is_dir():
        with writing_cache():
            folder.parent.mkdir(parents=True, exist_ok=True)
            task.build(folder)
    return replace(roots, data=root, lists=roots.lists or root, images=suite.images)


def is_there(suite: Suite, task: Task, roots: Roots) -> bool:
    """Whether the task's data can be read now, without building or asking for them."""
    if roots.data is not None or suite.path is not None:
        return True
    return task.build is not None and (_bundled(suite) / task.name).is_dir()


def _bundled(suite: Suite) -> Path:
    return cache_folder() / "suites" / f"{suite.data_name}-{suite.digest[:16] or f'v{suite.version}'}"


TRAINED_ON = ("train", "trainval")
"""Splits that this process keeps in memory. Held-out splits are read when they are opened and not kept, so no later run
finds them there."""


_CONSISTENT: set[tuple[object, ...]] = set()
"""Lists, as they were then, that this process has found consistent, with no image shared that must not be."""


@lru_cache(maxsize=32)
def _images(list_file: ListFile, num_classes: int, changed: tuple[int, ...]) -> ImageList:
    return ImageList(list_file, read_list(list_file.path, num_classes, numbered_with=list_file.numbered_with))


def _note(folder: Path) -> str:
    """The first line of the note on the lists of a folder; empty if there is none."""
    try:
        return (folder / NOTE_FILE).read_text(errors="replace").strip().partition("\n")[0]
    except FileNotFoundError:
        return ""


@lru_cache(maxsize=16)
def _load_split(path: Path, array: ImageArray) -> Split:
    """`path`, the array's, changes with the images: after that this process must not go on with the old ones."""
    return Split(torch.from_numpy(array.load(path)), torch.from_numpy(array.images.entries.labels).long())


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
        self.list_digests: dict[str, str] = {}
        """sha256 over names and labels of each list, once a fingerprint was taken."""

        self._looks, self._shots = looks, shots
        roots = build_if_bundled(suite, task, roots or Roots())
        self._list_files = locate_all(suite, task, roots, shots, split_seed)
        self._label = f"{suite.data_name}-{task.name}"
        self._refuse_contradictions(val_is_scored)

    def entries(self, split: str) -> Entries:
        """Names and labels of a split; of a corruption those of the test split."""
        return self._images("test" if split in self.task.corruptions else split).entries

    def _images(self, split: str) -> ImageList:
        file = self._list_files[split]
        read = _images if split in TRAINED_ON else _images.__wrapped__
        return read(file, self.task.num_classes, file.changed)

    def _array(self, split: str) -> ImageArray:
        label = f"{self._label}-{split}"
        return ImageArray(label=label, images=self._images(split), preprocessing=self.preprocessing)

    def _refuse_contradictions(self, val_is_scored: bool) -> None:
        """`DataError` unless `trainval` is `train` and `val`, no scored image is trained on, and no test image is
        validated on."""
        key = tuple((file, file.changed) for file in self._list_files.values()), val_is_scored
        if key in _CONSISTENT:
            return
        lists = {split: self._images(split) for split in self._list_files}
        messages = [problem.text for problem in disagreements(lists) if problem.severity == "error"]
        for pair in disjoint(lists):
            if pair != ("train", "val") or val_is_scored:
                messages += shared_images(lists[pair[0]], lists[pair[1]])
        if messages:
            raise DataError(messages[0])
        _CONSISTENT.add(key)

    def fingerprint(self, pixels: bool = True, advance: Advance | None = None) -> Fingerprint:
        """Digests of all lists, with what the suite makes of them, corruptions named with their version, of a sample of
        all images, and, unless `pixels` is false, of all decoded pixels."""
        masked = [target.name for target in self.task.targets if target.masked]
        lists = hashlib.sha256(f"{self.task.num_classes}:{self.suite.final_split}:{masked}\n".encode())
        if self.task.corruptions:
            lists.update(f"corruptions {corruptions.VERSION}: {list(self.task.corruptions)}\n".encode())
        files = hashlib.sha256()
        for split in self._list_files:
            images = self._images(split)
            self.list_digests[split] = arrays.list_digest(images.entries)
            lists.update(f"{split}:{self.list_digests[split]}\n".encode())
            files.update(f"{split}:{arrays.sample_digest(images)}\n".encode())
        self.list_digests |= dict.fromkeys(self.task.corruptions, self.list_digests.get("test", ""))
        decoded = self._pixels(advance) if pixels else ""
        return replace(self.origin(), lists=lists.hexdigest(), files=files.hexdigest(), pixels=decoded)

    def _pixels(self, advance: Advance | None) -> str:
        """sha256 over the decoded pixels, list by list. A list whose images are all in other decoded lists, as those of
        train and val are in trainval, is not decoded for it."""
        by_split = {split: self._array(split) for split in self._list_files}
        files = {split: array.path() for split, array in by_split.items()}
        keys, digests = np.zeros(0, np.int64), np.zeros((0, DIGEST_BYTES), np.uint8)
        for split in sorted(files, key=lambda split: not arrays.has_digests(files[split])):
            own = by_split[split].images.path_keys
            if not np.isin(own, keys).all():
                digests = np.concatenate([digests, by_split[split].pixel_digests(files[split], advance)])
                keys = np.concatenate([keys, own])
        sha, order = hashlib.sha256(), np.argsort(keys)
        for split, array in by_split.items():
            own = array.images.path_keys
            sha.update(f"{split}:{len(own)}\n".encode())
            sha.update(digests[order[np.searchsorted(keys, own, sorter=order)]].tobytes())
        if self.task.corruptions:
            sha.update(f"corruptions:{corruptions.digest(self.preprocessing.image_size)}\n".encode())
        return sha.hexdigest()

    def origin(self) -> Fingerprint:
        """Sizes, those that the suite states, and who drew the lists; no digests, so no image is read."""
        known = {split: known_size(self.task, split, self._shots) for split in self._list_files}
        official = {split: size for split, size in known.items() if size is not None}
        sizes = {split: len(self.entries(split)) for split in self._list_files}
        if self._shots is not None and len({*self.entries("train").names}) == official["train"]:
            official["train"] = sizes["train"]  # NOAH's 1-shot lists of pets name every image twice
        notes = dict.fromkeys(_note(file.path.parent) for file in self._list_files.values())
        return Fingerprint(
            lists="", files="", sizes=sizes, official_sizes=official, split_origin="; ".join(filter(None, notes))
        )

    def guard(self, trained_on: str) -> HeldOutGuard:
        """Guards every split but the one that is trained on; `train` and `val` are part of `trainval`."""
        free = {trained_on, "train", "val"} if trained_on == "trainval" else {trained_on}
        hidden = [split for split in self._list_files if split not in free]
        prefixes = [arrays.folder() / f"{self._label}-{split}-" for split in hidden]
        keys = np.concatenate([np.zeros(0, np.int64), *(self._images(split).keys for split in hidden)])
        images = np.setdiff1d(keys, self._images(trained_on).keys)
        return HeldOutGuard([self._list_files[split] for split in hidden], prefixes, images)

    def _load(self, split: str, advance: Advance | None = None) -> Split:
        check_open(f"split {split!r} of {self.task.name!r}")
        load, array = _load_split if split in TRAINED_ON else _load_split.__wrapped__, self._array(split)
        path = array.path()
        array.build(path, advance)
        return load(path, array)

    def decode(self, split: str, advance: Advance | None = None) -> None:
        """Build the array of a split that will be scored, of `test` with all further test sets, without returning it:
        a missing image is reported before the training and not after it."""
        for name in self._tested if split == "test" else (split,):
            self._array(name).build(advance=advance)

    def undecoded(self) -> dict[str, ImageList]:
        """The lists with images that were never decoded as they are now, by split."""
        by_split = {split: self._array(split) for split in self._list_files}
        return {split: array.images for split, array in by_split.items() if not arrays.has_digests(array.path())}

    @property
    def _tested(self) -> tuple[str, ...]:
        return "test", *(target.name for target in self.task.targets if target.corruption is None)

    def has(self, split: str) -> bool:
        """Whether the task has a list of this name."""
        return split in self._list_files

    def train(self, split: str, advance: Advance | None = None) -> Split:
        """`train`, `val` or `trainval`."""
        if split not in ("train", "val", "trainval"):
            raise HarnessError(f"split {split!r} is opened only by TaskData.open_test")
        if split not in self._list_files:
            raise HarnessError(f"task {self.task.name!r} has no split {split!r}")
        return self._load(split, advance)

    def open_test(self) -> dict[str, Split]:
        """The test split and all further test sets by name; `HarnessError` if opened more often than allowed."""
        if self.test_looks >= self._looks:
            reason = "was already opened in this run" if self._looks else "is not opened under this protocol"
            raise HarnessError(f"the test split of {self.task.name!r} {reason}")
        check_open(f"the test split of {self.task.name!r}")
        self.test_looks += 1
        splits = {split: self._load(split) for split in self._tested}
        clean = splits["test"]
        for name, corruption in self.task.corruptions.items():
            splits[name] = CorruptedSplit(clean.images, clean.labels, corruption)
        return splits


def not_official(
    suite: Suite, tasks: Iterable[str], roots: Roots, shots: tuple[int, ...], preprocessing: Preprocessing
) -> Iterator[str]:
    """A line for each task whose data, where they can be read, are not the suite's: fewer images, or an own split. A
    suite of a path has no other data."""
    for task in map(suite.task, tasks):
        if not is_there(suite, task, roots):
            continue
        differences: list[str] = []
        for draw in suite.draws(shots):
            with suppress(HarnessError, OSError):  # the run itself will say so
                differences += TaskData(suite, task, preprocessing, roots, *draw).origin().not_official
        if differences and suite.path is None:
            what = ", ".join(dict.fromkeys(differences))
            yield f"{task.name}: {what}; numbers on it do not compare with published ones, and tables say so"


def done_on_other_data(
    suite: Suite,
    records: Iterable[RunRecord],
    roots: Roots,
    preprocessing: Preprocessing,
    advance: Advance | None = None,
) -> Iterator[str]:
    """A line for each task and way in which complete runs were done on other data than there are now, where these can
    be read. Images are decoded for it only where their files have changed since."""
    by_data: dict[tuple[str, int | None, int | None], list[Fingerprint]] = {}
    for record in records:
        spec = record.spec
        if record.data and is_there(suite, suite.task(spec.task), roots):
            by_data.setdefault((spec.task, spec.shots, spec.split_seed), []).append(record.data)
    counts: Counter[tuple[str, str]] = Counter()
    for (name, shots, seed), recorded in by_data.items():
        try:
            data = TaskData(suite, suite.task(name), preprocessing, roots, shots, seed)
            now = data.fingerprint(pixels=any(before.pixels for before in recorded), advance=advance)
        except DataError as error:
            counts[name, f"cannot be compared with the data there are now: {error}"] += len(recorded)
            continue
        differences = [difference for before in recorded if (difference := before.differs_from(now))]
        counts.update((name, f"were done on other data than there are now ({text})") for text in differences)
    for (name, what), count in counts.items():
        yield f"{count} complete run(s) of {name} {what}"
