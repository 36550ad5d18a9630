"""Benchmarks that run both sides in one process and print the ratio."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from harness import arrays, environment
from harness.lists import Entry, ListFile
from harness.preprocessing import STATISTICS, Preprocessing
from suites import packages

LOADER_WORKERS = 4
"""Decoding workers of the released SCT code's loader."""

BATCH_SIZE = 64
CLASSES = 10


def write_pictures(folder: Path, count: int, side: int = 440) -> list[Entry]:
    """JPEG crops of the bundled photographs, of the size of a typical data set's pictures."""
    rng, photos = np.random.default_rng(0), list(packages.photos().values())
    for index in range(count):
        picture = photos[index % len(photos)].resize((640, 480))
        left, top = int(rng.integers(640 - side)), int(rng.integers(480 - side))
        picture.crop((left, top, left + side, top + side)).save(folder / f"{index}.jpg")
    return [Entry(f"{index}.jpg", index % CLASSES, index + 1) for index in range(count)]


class _Pictures(Dataset[tuple[Tensor, int]]):
    """A picture file decoded, resized and normalised at each access, as released code does."""

    def __init__(self, folder: Path, entries: list[Entry], preprocessing: Preprocessing) -> None:
        size = (preprocessing.image_size, preprocessing.image_size)
        self.folder, self.entries = folder, entries
        self.transform = transforms.Compose(
            [
                transforms.Resize(size, transforms.InterpolationMode.BICUBIC),
                transforms.ToTensor(),
                transforms.Normalize(preprocessing.mean, preprocessing.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.folder / self.entries[index].name) as picture:
            return self.transform(picture.convert("RGB")), self.entries[index].label


def _epoch_seconds(batches: Callable[[], Iterator[tuple[Tensor, Tensor]]], model: Any, epochs: int) -> list[float]:
    optimizer = torch.optim.AdamW(model.get_classifier().parameters(), lr=1e-3)
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        for images, labels in batches():
            cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return seconds


def data_loading(count: int = 1000, image_size: int = 64, epochs: int = 3) -> dict[str, Any]:
    """Epoch times of a small model (timm's `test_vit`, head trained) on CPU: decode once against decode each epoch."""
    mean, std = STATISTICS["imagenet"]
    preprocessing = Preprocessing(image_size=image_size, mean=mean, std=std)
    model: Any = timm.create_model("test_vit", img_size=image_size, num_classes=CLASSES).requires_grad_(False)
    model.get_classifier().requires_grad_(True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        entries = write_pictures(folder, count)
        pictures = _Pictures(folder, entries, preprocessing)
        loader = DataLoader(pictures, BATCH_SIZE, shuffle=True, num_workers=LOADER_WORKERS, drop_last=True)
        with warnings.catch_warnings():  # torch remarks on machines with fewer cores than the release has workers
            warnings.simplefilter("ignore", UserWarning)
            released = _epoch_seconds(lambda: iter(loader), model, epochs)
        start = time.perf_counter()
        pixels = torch.from_numpy(arrays.load("bench", ListFile(folder / "list", folder), entries, preprocessing))
        building = time.perf_counter() - start
        arrays.array_path("bench", ListFile(folder / "list", folder), entries, preprocessing).unlink()
    labels = torch.tensor([entry.label for entry in entries])

    def cached() -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.randperm(count).split(BATCH_SIZE):
            yield preprocessing.normalise(pixels[index]), labels[index]

    ours = _epoch_seconds(cached, model, epochs)
    return {
        "pictures": count,
        "image_size": image_size,
        "decode_each_epoch_seconds": released,
        "decode_once_seconds": building,
        "decode_once_pictures_per_second": count / building,
        "epoch_from_array_seconds": ours,
        "ratio": sorted(released)[epochs // 2] / sorted(ours)[epochs // 2],
        "cores": len(os.sched_getaffinity(0)),
        "environment": environment.describe(torch.device("cpu"), "float32"),
    }
