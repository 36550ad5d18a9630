"""What begins with image files: a whole task up to its test accuracy, and epochs of a small model.

Both ways of a whole task are run completely with the bench's number of epochs, on the same files, with the same model
and recipe. The time of a VTAB-size task (100 epochs, 20,000 test images) follows in proportion: epochs and test passes
repeat the same work, and what is done once (selection, decoding the training images, the part of the model before what
is trained) is counted once.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness import device as devices
from harness.bench import released
from harness.bench.base import BATCH, CLASSES, Measurement, Setting, side_by_side, trained
from harness.bench.training import recipe
from harness.data.arrays import ImageArray
from harness.data.lists import Entries, Entry, ImageList, ListFile
from harness.data.splits import Split
from harness.schema.spec import BackboneSpec
from harness.training import evaluation
from harness.training.cost import seconds
from harness.training.trainer import Trainer
from methods.base import Context
from methods.registry import get
from suites import packages

CROP, SIDE = 200, 440
"""An image is a square of 200 pixels out of a photograph, stored at 440 pixels, a usual size of VTAB's images."""

VTAB_EPOCHS, VTAB_TEST = 100, 20_000
"""Epochs of a VTAB-1K run, and test images of a usual task."""

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


def write_images(folder: Path, count: int, seed: int) -> Entries:
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
    return Entries(Entry(f"{index}.jpg", index % CLASSES, index + 1) for index in range(count))


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


def decoded(setting: Setting, folder: Path, entries: Entries) -> Split:
    """The images of a folder as an array that was just made, and that the cache does not keep."""
    images = ImageList(ListFile(folder / "list", folder), entries)
    array = ImageArray(label="bench", images=images, preprocessing=setting.preprocessing)
    pixels = torch.from_numpy(array.load())
    array.path().unlink()
    return Split(pixels, torch.from_numpy(entries.labels).long())


def ours(setting: Setting, folders: tuple[Path, Path], entries: tuple[Entries, Entries]) -> Times:
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


def theirs(setting: Setting, folders: tuple[Path, Path], entries: tuple[Entries, Entries]) -> Times:
    """The released way."""
    device, clock, epochs = setting.device, Clock(setting.device), setting.sizes.epochs
    train, test = (
        released.Images(folder, listed, setting.preprocessing) for folder, listed in zip(folders, entries, strict=True)
    )
    model = setting.model(drop_path=0.1)
    clock.lap()
    on_device = ((images.to(device), labels) for images, labels in released.loader(train, train=False))
    channels = released.select(model, on_device, released.channels(model))
    selection = clock.lap()
    released.attach(model, channels)
    optimizer = torch.optim.AdamW(trained(model), lr=LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        released.train_epoch(model, optimizer, released.loader(train, train=True), device)
        schedule.step()
    epoch = clock.lap() / epochs
    accuracy = released.accuracy(model, released.loader(test, train=False), device)
    return Times(selection=selection, once=0.0, epoch=epoch, test=clock.lap(), accuracy=accuracy)


def measure(setting: Setting) -> list[Measurement]:
    """A whole task, both ways, in the same call."""
    sizes = setting.sizes
    with tempfile.TemporaryDirectory() as name:
        folders = (Path(name) / "train", Path(name) / "test")
        counts = (sizes.images, sizes.test_images)
        entries = [write_images(f, n, seed) for seed, (f, n) in enumerate(zip(folders, counts, strict=True))]
        pair = (entries[0], entries[1])
        for way in (ours, theirs):  # what is loaded or compiled once is no part of an epoch
            way(
                replace(setting, sizes=replace(sizes, epochs=1)),
                folders,
                (Entries(pair[0][:BATCH]), Entries(pair[1][:BATCH])),
            )
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


SMALL = BackboneSpec(name="test_vit", weights="random", digest="", image_size=64)
"""A ViT of 0.4 M parameters: what remains of an epoch is mostly its data."""


def measure_decoding(setting: Setting) -> list[Measurement]:
    """Seconds of an epoch both ways, side by side, and the rate at which the array is made."""
    small, device = replace(setting, backbone=SMALL), setting.device
    model = small.model()
    optimizer = torch.optim.AdamW(trained(model), lr=1e-3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        entries = write_images(folder, setting.sizes.images, seed=0)
        kept: list[Split] = []
        once = seconds(lambda: kept.append(decoded(small, folder, entries).to(device)), device)
        images = released.Images(folder, entries, small.preprocessing)

        def from_array() -> Iterator[tuple[Tensor, Tensor]]:
            order = torch.randperm(len(entries))[: len(entries) // BATCH * BATCH].to(device)
            for index in order.split(BATCH):
                yield small.preprocessing.normalise(kept[0].images[index]), kept[0].labels[index]

        taken = side_by_side(
            {
                "ours": lambda: released.train_epoch(model, optimizer, from_array(), device),
                "theirs": lambda: released.train_epoch(model, optimizer, released.loader(images, True), device),
            },
            device,
            setting.sizes.rounds,
        )
    line, (ours, theirs) = partial(Measurement, part="decoding"), (taken["ours"], taken["theirs"])
    return [
        line(what="epoch of a small model", unit="s", ours=ours, other=theirs, judged=theirs / ours, at_least=5.0),
        line(what="decoding once", unit="images/s", ours=len(entries) / once),
    ]
