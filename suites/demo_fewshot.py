"""The suite `demo-fewshot`: NOAH's few-shot lists and folders, made of animal silhouettes from an installed package.

<root>/animals/images/<class>/000000.png
<root>/animals/annotations/train_meta.list.num_shot_{1,2,4,8,16}.seed_{0,1,2}
<root>/animals/annotations/{val,test}_meta.list
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np

from suites import packages
from suites.base import Suite, Task
from suites.demo import from_arrays, task_rng
from suites.folders import LabelledImages, atomic_folder, write_images, write_list

SHOTS = (1, 2, 4, 8, 16)
SPLIT_SEEDS = (0, 1, 2)
TRAIN_LIST = "train_meta.list.num_shot_{shots}.seed_{split_seed}"
_SIZES = {"val": 100, "test": 600}
_POOL = 1000
"""Images, the same number of each class, that the training lists are drawn from."""


def draw(labels: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `shots` random images of every class, class by class."""
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.concatenate([rng.choice(indices, shots, replace=False) for indices in members])


def class_names(labels: np.ndarray, start: int = 0) -> np.ndarray:
    """Names `<class>/<number>.png`, numbered from `start`."""
    return np.array([f"{label}/{number:06d}.png" for number, label in enumerate(labels, start)])


def write_training_lists(
    folder: Path, key: str, shots: tuple[int, ...], names: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """A list for each number of shots and split seed, each a draw of its own, so that shots are not nested; returns the
    indices of all images in them. `key` seeds the draws."""
    drawn = []
    for count, seed in product(shots, SPLIT_SEEDS):
        index = draw(labels, count, task_rng(f"{key}/{count}/{seed}"))
        write_list(folder / TRAIN_LIST.format(shots=count, split_seed=seed), names[index].tolist(), labels[index])
        drawn.append(index)
    return np.unique(np.concatenate(drawn))


def write_set(folder: Path, list_file: str, split: LabelledImages, start: int = 0, images: str = "images") -> None:
    """Images below `folder`/`images`, numbered from `start`, and their list."""
    names = class_names(split[1], start).tolist()
    write_images(folder / images, names, split[0])
    write_list(folder / "annotations" / list_file, names, split[1])


def _build(folder: Path) -> None:
    splits = from_arrays(packages.animals, "animals-fewshot", {"pool": _POOL, **_SIZES})
    with atomic_folder(folder) as new:
        images, labels = splits["pool"]
        names = class_names(labels)
        used = write_training_lists(new / "annotations", "animals-fewshot", SHOTS, names, labels)
        write_images(new / "images", names[used].tolist(), [images[i] for i in used])
        write_set(new, "val_meta.list", splits["val"], start=_POOL)
        write_set(new, "test_meta.list", splits["test"], start=_POOL + _SIZES["val"])


DEMO_FEWSHOT = Suite(
    name="demo-fewshot",
    title="Demo few-shot",
    about="Silhouettes of ten animals (animal-shape-mnist), k training images per class, in NOAH's layout.",
    tasks=(
        Task(
            name="animals",
            group="fine-grained",
            num_classes=10,
            sizes=_SIZES,
            folders=("animals/images",),
            list_folders=("animals/annotations",),
            lists={"train": TRAIN_LIST, "val": "val_meta.list", "test": "test_meta.list"},
            build=_build,
        ),
    ),
    shots=SHOTS,
    split_seeds=SPLIT_SEEDS,
    final_split="train",
    recipe={"epochs": 10, "warmup_epochs": 1, "batch_size": 32, "drop_path": 0.0},
)
