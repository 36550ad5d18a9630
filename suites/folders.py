"""Writing images and lists; a task's folder appears complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from suites.base import VTAB_LISTS

LabelledImages = tuple[list[Image.Image], np.ndarray]
"""Images, and their labels int64 [n]."""


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `folder` at the end; after an error it is deleted."""
    partial_folder = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    try:
        yield partial_folder
        partial_folder.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first, with the same content
            raise
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)


def write_images(root: Path, names: Sequence[str], images: Iterable[Image.Image]) -> None:
    """PNG files `root`/name."""
    for name, image in zip(names, images, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name, compress_level=1)


def write_list(path: Path, names: Sequence[str], labels: Iterable[int]) -> None:
    """Lines `name label`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name} {label}\n" for name, label in zip(names, labels, strict=True)))


def write_vtab(splits: Callable[[], Mapping[str, LabelledImages]], folder: Path) -> None:
    """Splits `train`, `val` and `test` as `suites.base` describes."""
    with atomic_folder(folder) as new:
        listed: dict[str, tuple[list[str], list[int]]] = {}
        for split, (images, labels) in splits().items():
            names = [f"images/{split}/{i:06d}.png" for i in range(len(labels))]
            write_images(new, names, images)
            listed[split] = (names, list(labels))
        listed["trainval"] = (listed["train"][0] + listed["val"][0], listed["train"][1] + listed["val"][1])
        for split, file in VTAB_LISTS.items():
            write_list(new / file, *listed[split])
