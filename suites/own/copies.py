"""A copy of the package `datasets`, written with `save_to_disk`. Its images lie in Arrow files and become files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from suites.base import SuiteError
from suites.own.found import MULTI_LABEL, Found, Names, checked, in_order, split_of

LABELS = ("label", "labels", "fine_label", "class", "category")


def is_copy(folder: Path) -> bool:
    """Whether the package `datasets` wrote this folder with `save_to_disk`."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def read(path: Path) -> Found:
    """The images of a copy. `SuiteError` if it has no images or no labels, or if the package is not there."""
    tables = _tables(path)
    image, label = _columns(path, next(iter(tables.values())))
    known = getattr(next(iter(tables.values())).features[label], "names", None)
    names: Names = {}
    for split, table in tables.items():
        for number, value in enumerate(table[label]):
            if value is None or value == -1:
                raise SuiteError(f"{path}: image {number} of {split} has no label")
            name = str(known[value] if known else value)
            names.setdefault(split, {}).setdefault(name, []).append(_file_name(split, number))
    states = sorted(path.rglob("state.json"))
    stamp = hashlib.sha256(b"".join(state.read_bytes() for state in states)).hexdigest()
    held = {name for by_class in names.values() for name in by_class}
    classes = tuple(map(str, known)) if known and held == set(known) else in_order(held)
    write = partial(_write_images, tables, image)
    return checked(Found(path=path, images=None, names=names, classes=classes, stamp=stamp, write_images=write))


def _file_name(split: str, number: int) -> str:
    return f"images/{split}/{number:06d}"


def _tables(path: Path) -> dict[str, Any]:
    """The tables of a copy by split; a lone one is train."""
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError:
        raise SuiteError(f'{path} is a copy of the package datasets: pip install "sctbench[datasets]"') from None
    try:
        data = load_from_disk(str(path))
    except Exception as error:  # damaged Arrow files fail in many ways
        raise SuiteError(f"{path}: the copy cannot be read ({error})") from None
    parts: Mapping[str, Any] = data if isinstance(data, DatasetDict) else {"train": data}
    if len(parts) == 1:
        return {"train": next(iter(parts.values()))}
    tables = {split: table for name, table in parts.items() if (split := split_of(name))}
    if "train" not in tables:
        raise SuiteError(f"{path}: {', '.join(parts)}, but no split train to train on")
    return tables


def _columns(path: Path, table: Any) -> tuple[str, str]:
    """The columns of images and labels."""
    features = table.features
    image = next((name for name, kind in features.items() if type(kind).__name__ == "Image"), None)
    label = next((name for name in LABELS if name in features), None)
    if image is None or label is None:
        what = "images" if image is None else f"labels ({', '.join(LABELS)})"
        raise SuiteError(f"{path}: no column of {what}; it has {', '.join(features)}")
    if type(features[label]).__name__ not in ("ClassLabel", "Value"):
        raise SuiteError(f"{path}: column {label!r} holds several labels; {MULTI_LABEL}")
    return image, label


def _write_images(tables: Mapping[str, Any], image: str, folder: Path) -> None:
    """The bytes of each image as they are."""
    from datasets import Image

    for split, table in tables.items():
        (folder / _file_name(split, 0)).parent.mkdir(parents=True)
        for number, row in enumerate(table.select_columns([image]).cast_column(image, Image(decode=False))):
            content = row[image]["bytes"] or Path(row[image]["path"]).read_bytes()
            (folder / _file_name(split, number)).write_bytes(content)
