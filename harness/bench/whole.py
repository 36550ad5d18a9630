"""A whole task from image files to test accuracy, ours against the released way, in the same call.

Both ways are run completely with the bench's number of epochs, on the same files, with the same model and recipe. The
time of a VTAB-size task (100 epochs, 20,000 test images) follows in proportion: epochs and test passes repeat the same
work, and what is done once (selection, decoding the training images, the part of the model before what is trained) is
counted once.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness import device as devices
from harness.bench import released
from harness.bench.base import BATCH, CLASSES, VTAB_EPOCHS, VTAB_TEST, Measurement, Setting
from harness.bench.training import recipe
from harness.data import arrays
from harness.data.lists import Entry, ListFile
from harness.data.splits import Split
from harness.training import evaluation
from harness.training.trainer import Trainer
from methods.base import Context
from methods.registry import get
from suites import packages

CROP, SIDE = 200, 440
"""An image is a square of 200 pixels out of a photograph, stored at 440 pixels, a usual size of VTAB's images."""

LEARNING_RATE = 8e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds of the steps of one way."""

    selection: float
    once: float
    """Decoding the training images, and what else is done once for all epochs."""

    epoch: float
    test: float
    """One pass over the test images, with their decoding."""

    accuracy: float

    def total(self, epochs: int, tests: int, test_share: float = 1.0) -> float:
        """Time of a task with so many epochs and test passes over `test_share` times the images."""
        return self.selection + self.once + epochs * self.epoch + tests * test_share * self.test


def write_images(folder: Path, count: int, seed: int) -> list[Entry]:
    """JPEG files of crops of the bundled photographs, written by all cores; the class is the photograph."""
    rng = np.random.default_rng(seed)
    photos = [photo.resize((640, 480)) for photo in list(packages.photos().values())[:CLASSES]]
    corners = [(int(rng.integers(640 - CROP)), int(rng.integers(480 - CROP))) for _ in range(count)]

    def write(index: int) -> None:
        left, top = corners[index]
        crop = photos[index % CLASSES].crop((left, top, left + CROP, top + CROP)).resize((SIDE, SIDE))
        crop.save(folder / f"{index}.jpg")

    folder.mkdir()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as writers:
        list(writers.map(write, range(count)))
    return [Entry(f"{index}.jpg", index % CLASSES, index + 1) for index in range(count)]


class Clock:
    """Seconds between calls, the device's part included."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.lap()

    def lap(self) -> float:
        """Seconds since the last call."""
        devices.synchronize(self.device)
        before, self.start = getattr(self, "start", 0.0), time.perf_counter()
        return self.start - before


def decoded(setting: Setting, folder: Path, entries: Sequence[Entry]) -> Split:
    """The images of a folder as an array that was just made, and that the cache does not keep."""
    source = ListFile(folder / "list", folder)
    pixels = torch.from_numpy(arrays.load("bench", source, entries, setting.preprocessing))
    arrays.array_path("bench", source, entries, setting.preprocessing).unlink()
    return Split(pixels, torch.tensor([entry.label for entry in entries]))


def ours(setting: Setting, folders: tuple[Path, Path], entries: tuple[list[Entry], list[Entry]]) -> Times:
    """Our way: decode once, select in a stream, train in the device's precision, test once."""
    device, preprocessing, clock = setting.device, setting.preprocessing, Clock(setting.device)
    model = setting.model(drop_path=0.1)
    clock.lap()
    data = decoded(setting, folders[0], entries[0]).to(device)
    once = clock.lap()
    context = Context(
        num_classes=CLASSES,
        device=device,
        generator=torch.Generator().manual_seed(0),
        total_steps=1,
        calibration=lambda size: ((preprocessing.normalise(x), y) for x, y in data.batches(size, device)),
    )
    attachment = get("sct").configure({}).attach(model, context)
    selection = clock.lap()
    trainer = Trainer(model, attachment, data, preprocessing, recipe(setting, lr=LEARNING_RATE), seed=0)
    trainer.fit()
    epoch = sum(trainer.epoch_seconds) / setting.sizes.epochs
    once += clock.lap() - sum(trainer.epoch_seconds)  # what is computed once for all epochs
    test = decoded(setting, folders[1], entries[1])
    logits = evaluation.predict(model, test, preprocessing, setting.precision).cpu()
    accuracy = evaluation.score(logits, test.labels).accuracy
    return Times(selection=selection, once=once, epoch=epoch, test=clock.lap(), accuracy=accuracy)


def theirs(setting: Setting, folders: tuple[Path, Path], entries: tuple[list[Entry], list[Entry]]) -> Times:
    """The released way."""
    device, clock, epochs = setting.device, Clock(setting.device), setting.sizes.epochs
    train, test = (
        released.Images(folder, listed, setting.preprocessing) for folder, listed in zip(folders, entries, strict=True)
    )
    model = setting.model(drop_path=0.1)
    clock.lap()
    in_order = released.loader(train, train=False)
    channels = released.select(model, _on_device(in_order, device), released.channels(model))
    selection = clock.lap()
    released.attach(model, channels)
    optimizer = released.optimizer(model, LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        released.train_epoch(model, optimizer, released.loader(train, train=True), device)
        schedule.step()
    epoch = clock.lap() / epochs
    accuracy = released.accuracy(model, released.loader(test, train=False), device)
    return Times(selection=selection, once=0.0, epoch=epoch, test=clock.lap(), accuracy=accuracy)


def _on_device(batches: Any, device: torch.device) -> Any:
    def moved(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return batch[0].to(device), batch[1]

    return map(moved, batches)


def measure(setting: Setting) -> list[Measurement]:
    """All lines of this part."""
    sizes = setting.sizes
    with tempfile.TemporaryDirectory() as name:
        folders = (Path(name) / "train", Path(name) / "test")
        counts = (sizes.images, sizes.test_images)
        entries = [write_images(f, n, seed) for seed, (f, n) in enumerate(zip(folders, counts, strict=True))]
        pair = (entries[0], entries[1])
        for way in (ours, theirs):  # what is loaded or compiled once is no part of an epoch
            way(replace(setting, sizes=replace(sizes, epochs=1)), folders, (pair[0][:BATCH], pair[1][:BATCH]))
        our_times, their_times = ours(setting, folders, pair), theirs(setting, folders, pair)
    share = VTAB_TEST / sizes.test_images
    vtab = (
        our_times.total(VTAB_EPOCHS, 1, share),
        their_times.total(VTAB_EPOCHS, VTAB_EPOCHS // released.TEST_EVERY, share),
    )
    line, epochs = partial(Measurement, part="whole"), sizes.epochs
    steps = {
        "selection": f"selection from {sizes.images} image files or arrays",
        "epoch": f"an epoch of {sizes.images} images, batch {BATCH}",
        "test": f"one test of {sizes.test_images} image files",
    }
    return [
        line(what="once, before the first epoch", unit="s", ours=our_times.once),
        *(
            line(what=what, unit="s", ours=getattr(our_times, key), other=getattr(their_times, key))
            for key, what in steps.items()
        ),
        line(what=f"accuracy after {epochs} epochs", unit="%", ours=our_times.accuracy, other=their_times.accuracy),
        line(
            what=f"in proportion: {VTAB_EPOCHS} epochs, {VTAB_TEST} test images",
            unit="s",
            ours=vtab[0],
            other=vtab[1],
            judged=vtab[1] / vtab[0],
            at_least=15 if setting.device.type == "cuda" else 5,
        ),
    ]
