"""Miniature copies of every suite in circulation, in the folders and with the names that users have."""

import dataclasses
import json
import zlib

import numpy as np
from PIL import Image

from harness.data.lists import Roots
from harness.data.splits import TaskData
from harness.schema.preprocessing import Preprocessing
from suites import SUITES, packages
from suites.base import VTAB_LISTS, Suite, Task

SMALL = Preprocessing(image_size=14, mean=(0.5,) * 3, std=(0.5,) * 3)
HALF = Preprocessing(image_size=16, mean=(0.5,) * 3, std=(0.5,) * 3)

IMAGES = list(packages.photos().values())


def image(path, number):
    """A small piece of a bundled photograph, with a corner in a colour of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = IMAGES[number % len(IMAGES)]
    left, top = (number * 7) % (source.width - 24), (number * 5) % (source.height - 20)
    piece = source.crop((left, top, left + 24, top + 20)).convert("RGB")
    piece.paste(tuple(number.to_bytes(4, "little")[:3]), (0, 0, 8, 8))
    piece.save(path)


def write_list(path, rows, windows=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    end = "\r\n" if windows else "\n"
    path.write_bytes("".join(f"{name} {label}{end}" for name, label in rows).encode() + end.encode() * windows)


def shrunk(suite, classes=3, **sizes):
    """The suite with few classes and small splits, its folders and lists as they are."""
    tasks = tuple(
        dataclasses.replace(
            task,
            num_classes=classes,
            sizes=sizes,
            targets=tuple(dataclasses.replace(target, size=2 * classes) for target in task.targets),
        )
        for task in suite.tasks
    )
    return dataclasses.replace(suite, tasks=tasks)


def rows_of(folder, names, classes=3):
    """Write images of these names, no two alike; rows `(name, label)`."""
    for name in names:
        image(folder / name, zlib.crc32(f"{folder.name}/{name}".encode()))
    return [(name, number % classes) for number, name in enumerate(names)]


def vtab(root, folder, extension="png", sizes=(6, 3, 6)):
    """One VTAB task as NOAH's script writes it."""
    splits = {}
    for split, size in zip(("train", "val", "test"), sizes, strict=True):
        splits[split] = rows_of(root / folder, [f"images/{split}/{i:06d}.{extension}" for i in range(size)])
    for split, file in (("train", "train800"), ("val", "val200"), ("test", "test")):
        write_list(root / folder / f"{file}.txt", splits[split])
    write_list(root / folder / "train800val200.txt", splits["train"] + splits["val"])
    return root / folder


def few_shot(images, lists, suite, subfolder=""):
    """One few-shot task: NOAH's lists apart from the images."""
    for split in ("val", "test"):
        rows = rows_of(images, [f"{subfolder}{split} {i}.jpg" for i in range(6)])
        write_list(lists / f"{split}_meta.list", rows)
    for shots, seed in suite.draws():
        names = [f"{subfolder}{shots}_{seed}_{i}.jpg" for i in range(3 * shots)]
        rows = rows_of(images, names)
        write_list(lists / f"train_meta.list.num_shot_{shots}.seed_{seed}", rows, windows=True)


def imagenet(root, lists):
    """ImageNet with train/ and val/ that the lists leave out, and four shifted sets, names with spaces among them."""
    images = root / "imagenet" / "images"
    notes = lists / "few-shot" / "imagenet" / "annotations"
    for seed in range(3):
        names = [f"n0144{i % 3}/{seed}_{i}.JPEG" for i in range(48)]
        write_list(notes / f"train_meta.list.num_shot_16.seed_{seed}", rows_of(images / "train", names))
    names = [f"n0144{i % 3}/v_{i}.JPEG" for i in range(3)]
    write_list(notes / "unofficial_val_list_4_shot16seed0", rows_of(images / "train", names))
    names = [f"n0144{i % 3}/ILSVRC2012_val_{i}.JPEG" for i in range(6)]
    write_list(notes / "val_meta.list", rows_of(images / "val", names))
    places = {
        "imagenetv2": "imagenetv2-matched-frequency-format-val",
        "imagenet-sketch": "images",
        "imagenet-adversarial": "imagenet-a",
        "imagenet-rendition": "imagenet-r",
    }
    for name, folder in places.items():
        few = 2 if name in ("imagenet-adversarial", "imagenet-rendition") else 3
        names = [f"n0144{i % few}/0.0{i}_digital clock _ wall clock.jpg" for i in range(6)]
        rows = rows_of(root / name / folder, names, few)
        write_list(lists / "domain-generalization" / name / "annotations" / "val_meta.list", rows)


def fgvc(root, folder, images):
    """One set with VPT's split files; class ids of the original set, which do not begin at 0."""
    for split, size in (("train", 6), ("val", 3), ("test", 6)):
        rows = rows_of(root / folder / images, [f"{i % 3}.some bird/{split}_{i}.jpg" for i in range(size)])
        (root / folder / f"{split}.json").write_text(json.dumps({name: label * 10 + 1 for name, label in rows}))


VTAB = shrunk(SUITES["vtab1k"], train=6, val=3, test=6)
FEWSHOT = shrunk(SUITES["fewshot"], val=6, test=6)
DG = shrunk(SUITES["domain_generalization"], train=48, val=3, test=6)
FGVC = shrunk(SUITES["fgvc"], train=6, val=3, test=6)


def random_image(path, size=(20, 30)):
    """Noise, which no compression makes small."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


TOY = Task(name="toy", group="toys", num_classes=3)
TOYS = Suite(name="toys", title="Toys", about="", tasks=(TOY,), recipe={"epochs": 1, "batch_size": 4})


def noise(folder, list_file, split, size, rng, height=20):
    """Random images of three classes, `height` pixels high, and their list; its lines."""
    (folder / "images" / split).mkdir(parents=True)
    for number in range(size):
        pixels = rng.integers(0, 256, (height, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / split / f"{number}.png", compress_level=0)
    lines = [f"images/{split}/{number}.png {number % 3}" for number in range(size)]
    (folder / list_file).write_text("\n".join(lines) + "\n")
    return lines


def toy(root, test=9, rng=None):
    """The task `toy` of three classes, with 6 images in train and 3 in val; its folder."""
    folder, rng = root / "toy", rng or np.random.default_rng(0)
    lines = []
    for split, size in (("train", 6), ("val", 3), ("test", test)):
        lines += noise(folder, VTAB_LISTS[split], split, size, rng)
    (folder / VTAB_LISTS["trainval"]).write_text("\n".join(lines[:9]) + "\n")
    return folder


def toy_data(root, preprocessing=HALF):
    return TaskData(TOYS, TOY, preprocessing, Roots(data=root))
