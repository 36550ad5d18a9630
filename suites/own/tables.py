"""A table that names images and labels: CSV (`image,label[,split]`), TSV, JSON lines, or the `metadata` file of a
Hugging Face image folder."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from suites.base import SuiteError
from suites.own.folders import inside, split_folders
from suites.own.found import MULTI_LABEL, Found, Names, alike, checked, in_order, split_of

FORMS = (".csv", ".tsv", ".jsonl")
METADATA = ("metadata.csv", "metadata.jsonl")

COLUMNS = {
    "image": (
        "image", "images", "file_name", "filename", "file", "file_path", "filepath", "path", "image_path",
        "image_file", "image_name", "img", "img_path",
    ),
    "label": ("label", "labels", "class", "class_name", "category", "target", "label_name"),
    "split": ("split", "set", "subset", "partition"),
}  # fmt: skip
"""What each column may be called, in small letters with `_` for spaces and hyphens."""

SEPARATORS = "|;"
"""What stands between several labels in one cell, and never in one."""

EXAMPLE = "`image,label` or `image,label,split`"


@dataclass(frozen=True, slots=True)
class Row:
    """One image of a table."""

    line: int
    image: str
    label: str
    split: str | None
    """As the table has it; None where it has no such column."""


def read(path: Path) -> Found:
    """The images of a table, relative to its folder. `SuiteError` names file and line of what is wrong."""
    return _found(path, path.parent, _Images(file=path, root=path.parent).sorted_in(rows(path)))


def metadata_of(path: Path) -> dict[str, Path]:
    """The metadata files of an image folder by split, `""` for one that is about the whole folder; none if it has
    none."""
    for name in METADATA:
        if (path / name).is_file():
            return {"": path / name}
    splits = split_folders(path, inside(path))
    return {
        split: path / folder / name
        for split, folder in splits.items()
        for name in METADATA
        if (path / folder / name).is_file()
    }


def read_folder(path: Path, files: Mapping[str, Path]) -> Found:
    """The images of a Hugging Face image folder with these metadata files."""
    names: Names = {}
    for split, file in files.items():
        images = _Images(file=file, root=path, split=split, by_folder=True)
        for key, by_class in images.sorted_in(rows(file)).items():
            names.setdefault(key, {}).update(by_class)
    return _found(path, path, names)


def _found(path: Path, images: Path, names: Names) -> Found:
    if "train" not in names:
        raise SuiteError(f"{path}: {' and '.join(names)}, but no image to train on (split train)")
    return checked(Found(path=path, images=images, names=names, classes=in_order(names["train"])))


@dataclass(slots=True, kw_only=True)
class _Images:
    """The images that a table names, as they are read row by row."""

    file: Path
    root: Path
    """Folder that the names of the images become relative to."""

    split: str = ""
    """That of all rows, where the table does not say it."""

    by_folder: bool = False
    """Whether an image's first folder may be its split."""

    names: Names = field(default_factory=dict)
    by_name: dict[str, Row] = field(default_factory=dict)
    by_label: dict[str, Row] = field(default_factory=dict)
    """The first row with each label, by what is the same for labels that are `alike`."""

    missing: list[Row] = field(default_factory=list)
    """Rows whose image is not there."""

    def sorted_in(self, table: Iterable[Row]) -> Names:
        """The images of all rows by split and class. `SuiteError` for the first thing that is wrong."""
        for row in table:
            self._check_label(row)
            path = self.file.parent / row.image
            if os.path.isfile(path):  # noqa: PTH113 (never raises)
                name = row.image if Path(row.image).is_absolute() else Path(os.path.relpath(path, self.root)).as_posix()
                self._check_once(row, self.by_name.setdefault(name, row))
                self.names.setdefault(self._split(row, name), {}).setdefault(row.label.strip(), []).append(name)
            else:
                self.missing.append(row)
        self._check_all()
        return {split: {name: sorted(images) for name, images in one.items()} for split, one in self.names.items()}

    def _refuse(self, row: Row, what: str) -> NoReturn:
        raise SuiteError(f"{self.file}:{row.line}: {what}")

    def _split(self, row: Row, name: str) -> str:
        """The split of a row: its own, else that of the folder of its image, else train."""
        if self.split or row.split is None:
            return self.split or (self.by_folder and split_of(PurePosixPath(name).parts[0])) or "train"
        return split_of(row.split) or self._refuse(row, f"split {row.split!r} is none of train, val and test")

    def _check_label(self, row: Row) -> None:
        if not row.label.strip() or not row.image:
            self._refuse(row, f"no {'label' if row.image else 'image'}")
        if any(mark in row.label for mark in SEPARATORS) or row.label.lstrip().startswith("["):
            self._refuse(row, f"label {row.label!r} reads as several; {MULTI_LABEL}")
        if "\n" in row.image or "\n" in row.label:
            self._refuse(row, "a name with a line break is not read: rename it")
        first = self.by_label.setdefault(alike(row.label), row)
        if first.label != row.label:
            differ = f"label {row.label!r} differs from {first.label!r} in line {first.line} in case or spaces alone"
            self._refuse(row, f"{differ}: make them one")

    def _check_once(self, row: Row, first: Row) -> None:
        """`SuiteError` unless the row is the first of its image."""
        here = f"{row.image} is already in line {first.line}"
        if row.split != first.split:
            self._refuse(row, f"{here}, there for {first.split} and here for {row.split}: an image has one split")
        if row.label != first.label:
            self._refuse(row, f"{here} with the label {first.label!r}, not {row.label!r}; {MULTI_LABEL}")
        if row is not first:
            self._refuse(row, f"{here}: name it once")

    def _check_all(self) -> None:
        """`SuiteError` for images that are not there, for labels that are lists, with commas, of other labels, and for
        an empty table."""
        if self.missing:
            more = f" (and {len(self.missing) - 1} more)" if len(self.missing) > 1 else ""
            first = self.missing[0]
            self._refuse(first, f"there is no file {first.image!r} in {self.file.parent}{more}")
        for row in self.by_label.values():
            parts = row.label.split(",")
            if len(parts) > 1 and all(alike(part) in self.by_label for part in parts):
                self._refuse(row, f"label {row.label!r} reads as several; {MULTI_LABEL}")
        if not self.names:
            raise SuiteError(f"{self.file}: no image in it, only a header")


def rows(file: Path) -> Iterator[Row]:
    """The rows of a table, with their lines from 1."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            yield from _json_rows(file, opened) if file.suffix == ".jsonl" else _csv_rows(file, opened)
    except OSError as error:
        raise SuiteError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise SuiteError(f"{file}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None
    except csv.Error as error:
        raise SuiteError(f"{file}: not a CSV file ({error})") from None


def _csv_rows(file: Path, opened: Iterable[str]) -> Iterator[Row]:
    lines = iter(opened)
    head = next(lines, "")
    delimiter = max(",;\t", key=head.count)
    (header,) = csv.reader([head], delimiter=delimiter) if head.strip() else ([],)
    reader = csv.reader(lines, delimiter=delimiter)
    columns: dict[str, int] | None = None
    for cells in reader:
        line = reader.line_num + 1
        columns = columns or _columns(file, header, cells)
        if not any(map(str.strip, cells)):
            continue
        if len(cells) != len(header):
            raise SuiteError(f"{file}:{line}: {len(cells)} cells, where the header has {len(header)}")
        yield _row(line, {key: cells[place] for key, place in columns.items()})
    if columns is None:
        _columns(file, header, [])


def _json_rows(file: Path, opened: Iterable[str]) -> Iterator[Row]:
    for line, text in enumerate(opened, 1):
        if not text.strip():
            continue
        try:
            values = dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise SuiteError(f"{file}:{line}: not a JSON object ({error})") from None
        columns = _columns(file, list(values), list(values.values()), line)
        cells = list(values.values())
        yield _row(line, {key: cells[place] for key, place in columns.items()})


def _row(line: int, cells: Mapping[str, Any]) -> Row:
    label = cells["label"]
    text = json.dumps(label) if isinstance(label, list | dict) else "" if label is None else str(label)
    split = str(cells["split"]).strip() if "split" in cells else None
    return Row(line, str(cells["image"]).strip(), text, split)


def _columns(file: Path, header: list[str], first: list[Any], line: int = 1) -> dict[str, int]:
    """The place of each column. `SuiteError` for a table without a header, or with several columns of labels; `first`:
    cells of the first image."""
    names = [name.strip().casefold().replace(" ", "_").replace("-", "_") for name in header]
    places = {key: [names.index(name) for name in known if name in names] for key, known in COLUMNS.items()}
    shown = ", ".join(map(repr, header))
    if not places["image"]:
        raise SuiteError(f"{file}:{line}: no header: the first line names the columns, {EXAMPLE}; this one is {shown}")
    numbered = [name for name in names if name.rstrip("0123456789_") in COLUMNS["label"]]
    if len(places["label"]) > 1 or (not places["label"] and len(numbered) > 1):
        several = ", ".join(header[place] for place in places["label"]) or ", ".join(numbered)
        raise SuiteError(f"{file}:{line}: several columns of labels ({several}): keep one; {MULTI_LABEL}")
    if not places["label"]:
        flags = [cell for place, cell in enumerate(first) if place not in places["image"] + places["split"]]
        if len(flags) > 1 and all(str(cell).strip() in ("0", "1", "0.0", "1.0") for cell in flags):
            raise SuiteError(f"{file}:{line}: a column of zeros and ones for each class; {MULTI_LABEL}")
        raise SuiteError(
            f"{file}:{line}: no column of labels: the first line names the columns, {EXAMPLE}, not {shown}"
        )
    return {key: place[0] for key, place in places.items() if place}
