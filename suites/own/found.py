"""What is in the user's own data: images by split and class, and the mistakes that all forms of data have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from suites.base import SuiteError

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What each split is called in folders and tables."""

FOREIGN = {
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "thumbs.db", "desktop.ini",
    "system volume information",
}  # fmt: skip
"""What operating systems and file servers leave beside data, in small letters; the rest of it starts with a dot."""

ENDINGS = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".pgm"}
"""What the names of image files end with."""

MULTI_LABEL = "an image has one label here: multi-label data are not supported yet"

Names = dict[str, dict[str, list[str]]]
"""Names of images by split and class."""


def is_foreign(name: str) -> bool:
    """Whether a file or folder of this name is no part of the data."""
    return name.startswith(".") or name.casefold() in FOREIGN


def split_of(name: str) -> str | None:
    """The split that a folder or a cell of this name stands for; None if it stands for none."""
    return next((split for split, names in SPLITS.items() if name.strip().casefold() in names), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The images that were found."""

    path: Path
    """What was read."""

    images: Path | None
    """Folder that the names are relative to; None if `write_images` makes it."""

    names: Names
    classes: tuple[str, ...]
    """Class names; the label of a class is its place here."""

    stamp: str = ""
    """What stands for the content of images that are not files."""

    write_images: Callable[[Path], None] | None = None
    """Writes images that are not files under their names below a folder."""


def in_order(classes: Iterable[str]) -> tuple[str, ...]:
    """Class names in the order of their labels: as numbers where all are whole numbers, else as texts."""
    names = set(classes)
    return tuple(sorted(names, key=int) if all(map(str.isdecimal, names)) else sorted(names))


def alike(name: str) -> str:
    """The same for names that differ in case or spaces alone."""
    return "".join(name.split()).casefold()


def checked(found: Found) -> Found:
    """The same. `SuiteError` for one class only, classes with nearly the same name, and held-out classes that are not
    trained on."""
    where, train = found.path, found.names["train"]
    first: dict[str, str] = {}
    for name in sorted({name for by_class in found.names.values() for name in by_class}):
        other = first.setdefault(alike(name), name)
        if other != name:
            raise SuiteError(f"{where}: classes {other!r} and {name!r} differ in case or spaces alone: make them one")
    for split, by_class in found.names.items():
        if unknown := sorted(by_class.keys() - train):
            more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
            raise SuiteError(f"{where}: class {unknown[0]!r} of {split} has no image in train{more}")
    if len(train) < 2:
        only = f"only one class, {next(iter(train))!r}" if train else "no class"
        raise SuiteError(f"{where}: {only}; at least two are needed")
    return found
