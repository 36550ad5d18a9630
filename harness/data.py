"""From list files to arrays: decode once, keep as uint8, open the test split once.

The splits of a task become one uint8 array each at the model's size, cached on disk under a key made of the lists, a
sample of the files' bytes and the preprocessing. Training reads the array; there are no decode workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from torch import Tensor

from harness.errors import HarnessError
from harness.paths import cache_folder, write_atomically
from suites.base import SPLIT_FILES, Suite, Task

KNOWN_STATISTICS: dict[tuple[tuple[float, ...], tuple[float, ...]], str] = {
    (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD): "imagenet",
    (IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD): "half",
}
"""Names of the usual means and standard deviations; `half` is 0.5 and 0.5, inputs in [-1, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How a picture becomes the model's input: squashed to a square, bicubic, then (x / 255 - mean) / std."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def id(self) -> str:
        """Name of the preprocessing in specs and records."""
        numbers = ",".join(f"{value:g}" for value in (*self.mean, *self.std))
        return f"{self.image_size}px-squash-bicubic-{KNOWN_STATISTICS.get((self.mean, self.std), numbers)}"

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] to float32 [B, 3, H, W] on the same device."""
        mean = torch.tensor(self.mean, device=images.device) * 255
        std = torch.tensor(self.std, device=images.device) * 255
        return ((images.float() - mean) / std).permute(0, 3, 1, 2)


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

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order, `size` at a time."""
        return zip(self.images.split(size), self.labels.split(size), strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What the data were, for the record."""

    lists: str
    """sha256 over the task's list files."""

    files: str
    """sha256 over the bytes of 16 files per split, evenly spaced."""

    sizes: dict[str, int]
    """Images per split."""


def read_list(path: Path, num_classes: int) -> tuple[list[str], list[int]]:
    """File names and labels of one list; lines `relative/path.jpg 7`. `HarnessError` with file:line for a bad line."""
    if not path.is_file():
        raise HarnessError(f"{path}: no such list file")
    names, labels = [], []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdecimal() or int(label) >= num_classes:
            raise HarnessError(
                f"{path}:{number}: {line!r} is not `file label` with a label from 0 to {num_classes - 1}"
            )
        names.append(name)
        labels.append(int(label))
    if not names:
        raise HarnessError(f"{path}: the list is empty")
    return names, labels


def task_folder(suite: Suite, task: Task, root: Path | None) -> Path:
    """The task's folder; tasks made of installed packages are written on first use."""
    if task.build is None:
        if root is None:
            raise HarnessError(f"suite {suite.name!r} needs the folder that holds its data: --root DIR")
        return root / task.name
    folder = cache_folder() / "suites" / f"{suite.name}-v{suite.version}" / task.name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        task.build(folder)
    return folder


def fingerprint(folder: Path, num_classes: int) -> Fingerprint:
    """Digest of the lists and of a sample of the files."""
    lists, files, sizes = hashlib.sha256(), hashlib.sha256(), {}
    for split, list_name in SPLIT_FILES.items():
        names, labels = read_list(folder / list_name, num_classes)
        sizes[split] = len(names)
        lists.update(f"{split}\n".encode())
        lists.update("".join(f"{n} {label}\n" for n, label in zip(names, labels, strict=True)).encode())
        for name in names[:: max(1, len(names) // 16)][:16]:
            files.update(_picture(folder / name).read_bytes())
    return Fingerprint(lists=lists.hexdigest(), files=files.hexdigest(), sizes=sizes)


def _picture(path: Path) -> Path:
    if not path.is_file():
        raise HarnessError(f"{path}: listed, but there is no such file")
    return path


def _decode(path: Path, size: int) -> np.ndarray:
    try:
        with Image.open(_picture(path)) as image:
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    except OSError as error:
        raise HarnessError(f"{path}: cannot be decoded ({error})") from None


@lru_cache(maxsize=16)
def _load_split(folder: Path, list_name: str, num_classes: int, size: int, key: str) -> Split:
    names, labels = read_list(folder / list_name, num_classes)
    cached = cache_folder() / "arrays" / f"{folder.name}-{Path(list_name).stem}-{size}px-{key[:16]}.npy"
    if not cached.is_file():
        array = np.stack([_decode(folder / name, size) for name in names])
        write_atomically(cached, lambda file: np.save(file, array))
    images = np.load(cached, mmap_mode="c")
    return Split(torch.from_numpy(images), torch.tensor(labels))


class TaskData:
    """One run's view of a task. Training splits are free to read; the test split opens once."""

    def __init__(self, suite: Suite, task: Task, preprocessing: Preprocessing, root: Path | None = None) -> None:
        self.task = task
        self.preprocessing = preprocessing
        self.test_looks = 0
        self._folder = task_folder(suite, task, root)
        self.fingerprint = fingerprint(self._folder, task.num_classes)

    def _load(self, split: str) -> Split:
        key = hashlib.sha256((self.fingerprint.lists + self.fingerprint.files).encode()).hexdigest()
        return _load_split(self._folder, SPLIT_FILES[split], self.task.num_classes, self.preprocessing.image_size, key)

    def train(self, split: str) -> Split:
        """`train`, `val` or `trainval`."""
        if split == "test":
            raise HarnessError("the test split is opened by TaskData.open_test alone")
        return self._load(split)

    def open_test(self) -> Split:
        """The test split, once; `HarnessError` the second time."""
        if self.test_looks:
            raise HarnessError(f"the test split of {self.task.name!r} was opened already in this run")
        self.test_looks += 1
        return self._load("test")
