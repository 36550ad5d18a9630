"""The suite `demo-fewshot`: NOAH's few-shot lists and folders, made of animal silhouettes out of an installed package.

<root>/animals/images/<class>/000000.png
<root>/animals/annotations/train_meta.list.num_shot_{1,2,4,8,16}.seed_{0,1,2}
<root>/animals/annotations/{val,test}_meta.list
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from suites import packages
from suites.base import Suite, Task
from suites.demo import from_arrays, task_rng
from suites.folders import atomic_folder, write_images, write_list

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


def _build(folder: Path) -> None:
    splits = from_arrays(packages.animals, "animals-fewshot", {"pool": _POOL, **_SIZES})
    with atomic_folder(folder) as new:
        start = 0
        for split, (images, labels) in splits.items():
            names = class_names(labels, start)
            start += len(names)
            if split == "pool":
                chosen = _write_training_lists(new / "annotations", names, labels)
                write_images(new / "images", names[chosen].tolist(), [images[i] for i in chosen])
            else:
                write_list(new / "annotations" / f"{split}_meta.list", names.tolist(), labels)
                write_images(new / "images", names.tolist(), images)


def _write_training_lists(folder: Path, names: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """All training lists, each a draw of its own, so that shots are not nested; returns the images in use."""
    used = []
    for shots in SHOTS:
        for seed in SPLIT_SEEDS:
            index = draw(labels, shots, task_rng(f"animals-fewshot/{shots}/{seed}"))
            write_list(folder / TRAIN_LIST.format(shots=shots, split_seed=seed), names[index].tolist(), labels[index])
            used.append(index)
    return np.unique(np.concatenate(used))


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
