"""From a path to a suite: one task, whose lists are written into the cache by whoever needs them first."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

from suites.base import Suite, SuiteError, Task
from suites.folders import atomic_folder
from suites.own import copies, folders, tables
from suites.own.found import Found
from suites.own.lists import FEW_SHOT, LISTS, SPLIT_SEEDS, Lists

FEW_SHOT_ENDING = "-fewshot"
"""Of the name of a suite with shots, so that its numbers and those of all images never share a table."""


def is_place(text: str) -> bool:
    """Whether a text is the path of data: a folder, or a table."""
    path = Path(text).expanduser()
    return path.is_dir() or (path.suffix in tables.FORMS and path.is_file())


def name_of(path: Path) -> str:
    """The name of a path's suite: that of the folder or file, as a name that suites may have."""
    own = path.expanduser().absolute()
    own = own if own.name else own.resolve()
    name = own.resolve().name if path.name in ("", "..") else own.name
    stem = name if own.is_dir() else name.rpartition(".")[0]
    return re.sub(r"[^\w.-]+", "_", stem).strip("._") or "data"


def read_suite(path: Path, shots: tuple[int, ...] = ()) -> Suite:
    """The suite of a path. `SuiteError` says in a sentence what is wrong with the data.

    `shots`: numbers of training images per class, for few-shot runs on as many drawn lists as NOAH's suites have.
    """
    if any(type(count) is not int or count < 1 for count in shots):
        raise SuiteError(f"shots={','.join(map(str, shots))}: numbers of images per class are at least 1")
    path = path.expanduser().absolute()
    lists = Lists(_found(path), shots)
    name = name_of(path) + (FEW_SHOT_ENDING if shots else "")
    sizes = {split: count for split, count in lists.sizes.items() if split != "train" or not shots}
    task = Task(
        name=name_of(path),
        num_classes=len(lists.found.classes),
        class_names=lists.found.classes,
        sizes=sizes,
        lists=FEW_SHOT if shots else LISTS,
        build=partial(_build, path, shots, lists.digest),
    )
    return Suite(
        name=name,
        title=name,
        about=_about(path, lists),
        tasks=(task,),
        shots=shots,
        split_seeds=SPLIT_SEEDS if shots else (),
        final_split="train" if shots else "trainval",
        path=path,
        images=lists.found.images,
        digest=lists.digest,
    )


def _about(path: Path, lists: Lists) -> str:
    """`12 classes in data/birds: train 70, val 20, test 20 images; val drawn from train ...`."""
    counts = ", ".join(f"{split} {count}" for split, count in lists.sizes.items())
    drawn = f"; {lists.note}" if lists.note else ""
    return f"{len(lists.found.classes)} classes in {path}: {counts} images{drawn}"


def _found(path: Path) -> Found:
    """The images of a path, in whatever form they are."""
    if path.is_file() and path.suffix in tables.FORMS:
        return tables.read(path)
    if not path.is_dir():
        raise SuiteError(f"{path}: no folder, nor a file that ends with {', '.join(tables.FORMS)}")
    if copies.is_copy(path):
        return copies.read(path)
    metadata = tables.metadata_of(path)
    return tables.read_folder(path, metadata) if metadata else folders.read(path)


def _unchanged(path: Path, shots: tuple[int, ...], digest: str) -> Lists:
    """The lists of a path. `SuiteError` if they are not those of that digest."""
    lists = Lists(_found(path), shots)
    if lists.digest != digest:
        raise SuiteError(
            f"{path} has changed since these runs were planned (its lists were {digest[:8]} and are "
            f"{lists.digest[:8]}): start the command again"
        )
    return lists


def check_unchanged(suite: Suite) -> None:
    """`SuiteError` if a suite was read from a path and that path now gives other lists."""
    if suite.path is not None:
        _unchanged(suite.path, suite.shots, suite.digest)


def _build(path: Path, shots: tuple[int, ...], digest: str, folder: Path) -> None:
    """Write the lists of a path into a new folder."""
    lists = _unchanged(path, shots, digest)
    with atomic_folder(folder) as new:
        lists.write(new)


YAML = """\
# A suite of the data in {path}, to be edited. Run it with
#
#     sctbench run --suite {file} --root {root} --lists {to} --methods linear,lora
#
# Further keys, and what they mean: suites/base.py. A suite may have several tasks, each with its lists.
name: {name}
title: {name}
about: Images of {path}.
# What the final model is trained on: trainval, which is train followed by val, or train.
final_split: {final_split}
tasks:
  - name: {name}
    num_classes: {num_classes}
    # In the order of the labels 0, 1, 2 ...
    class_names: {class_names}
    # Folder of the images below --root, and of the lists below --lists.
    folders: [.]
    list_folders: [{name}]
    # Lines `name label`; names are relative to the folder of the images.
    lists: {lists}
    sizes: {sizes}
"""


def write_lists(path: Path, to: Path) -> tuple[Suite, Path]:
    """Write the lists of a path and a YAML suite that names them into the folder `to`, made if need be; returns the
    suite and its file. `SuiteError`, with nothing written, if that is there already."""
    suite = read_suite(path)
    (task,), file = suite.tasks, to / f"{suite.name}.yaml"
    for place in (file, to / task.name):
        if place.exists():
            raise SuiteError(f"{place} is there already; nothing is overwritten")
    assert task.build is not None
    task.build(to / task.name)
    text = YAML.format(
        path=suite.path,
        file=file,
        root=suite.images or to / task.name,
        to=to,
        name=json.dumps(suite.name),
        final_split=suite.final_split,
        num_classes=task.num_classes,
        class_names=json.dumps(task.class_names, ensure_ascii=False),
        lists=json.dumps(task.lists),
        sizes=json.dumps(task.sizes),
    )
    file.write_text(text)
    return suite, file
