"""A folder of class folders: `train/CLASS/*.jpg`, with `val/` and `test/` where they are there, or `CLASS/*.jpg`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from suites.base import SuiteError
from suites.own.found import ENDINGS, SPLITS, Found, checked, in_order, is_foreign, split_of

SHOWN = 3
"""Folders named in a message."""


@dataclass(slots=True)
class Inside:
    """What a folder holds, by name in order, without what is no part of the data."""

    folders: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def inside(folder: Path) -> Inside:
    """What a folder holds. `SuiteError` if it cannot be read."""
    held = Inside()
    try:
        with os.scandir(folder) as entries:
            for entry in (entry for entry in entries if not is_foreign(entry.name)):
                is_image = os.path.splitext(entry.name)[1].casefold() in ENDINGS  # noqa: PTH122 (four times as fast)
                (held.folders if entry.is_dir() else held.images if is_image else held.others).append(entry.name)
    except OSError as error:
        raise SuiteError(f"{folder}: cannot be read ({error.strerror})") from None
    for names in (held.folders, held.images, held.others):
        names.sort()
    return held


def split_folders(path: Path, held: Inside) -> dict[str, str]:
    """The folders that are splits, by split. `SuiteError` if two folders are one split."""
    folders: dict[str, str] = {}
    for name in held.folders:
        if (split := split_of(name)) and folders.setdefault(split, name) != name:
            raise SuiteError(f"{path}: {folders[split]} and {name} are both {split}: leave one of them")
    return {split: folders[split] for split in SPLITS if split in folders}


def read(path: Path) -> Found:
    """The images of a folder of class folders. `SuiteError` for whatever is in a wrong place."""
    held = inside(path)
    splits = split_folders(path, held)
    if not splits:
        _check_level(path, held)
        splits = {"train": ""}
    elif "train" not in splits:
        raise SuiteError(f"{path}: {' and '.join(splits.values())}, but no folder train to train on")
    names = {split: dict(_classes(path, folder)) for split, folder in splits.items()}
    return checked(Found(path=path, images=path, names=names, classes=in_order(names["train"])))


def _classes(path: Path, within: str) -> Iterator[tuple[str, list[str]]]:
    """Class and images of each class folder in `path`/`within`."""
    place = path / within
    held = inside(place)
    if held.images:
        raise SuiteError(f"{place / held.images[0]} lies in no class folder: put each image into that of its class")
    for name in held.folders:
        one = inside(place / name)
        if name != name.strip() or "\n" in name:
            raise SuiteError(f"{place / name}: a class name has no spaces around it and no line break: rename it")
        if one.folders:
            raise SuiteError(f"{place / name} holds the folder {one.folders[0]}: a class folder holds images alone")
        if one.others:
            raise SuiteError(f"{place / name / one.others[0]} is no image: move it out of the class folder")
        if not one.images:
            raise SuiteError(f"{place / name} is an empty class folder: put images into it or delete it")
        prefix = f"{within}/{name}" if within else name
        yield name, [f"{prefix}/{image}" for image in one.images]


def _check_level(path: Path, held: Inside) -> None:
    """`SuiteError` unless `path` is the folder of the class folders: it may be above it or below it."""
    whole = split_folders(path.parent, inside(path.parent)) if split_of(path.name) else {}
    if len(whole) > 1:
        raise SuiteError(f"{path} is one split of several ({', '.join(whole.values())}): did you mean {path.parent}?")
    if held.images and not held.folders:
        raise SuiteError(f"{path} holds images and no class folders: did you mean the folder above it, {path.parent}?")
    if not held.folders:
        table = next((name for name in held.others if name.endswith((".csv", ".tsv", ".jsonl"))), None)
        hint = f": did you mean {path / table}?" if table else " and no class folders"
        raise SuiteError(f"{path} holds no images{hint}")
    below = {name: inside(path / name) for name in held.folders}
    sets = [name for name, one in below.items() if one.folders and not one.images]
    if sets:
        what = "holds data sets" if len(sets) > 1 else "holds a data set"
        shown = ", ".join(sets[:SHOWN]) + (", ..." if len(sets) > SHOWN else "")
        raise SuiteError(f"{path} {what} ({shown}), not classes: did you mean {path / sets[0]}?")
