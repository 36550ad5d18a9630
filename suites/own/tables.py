"""A table that names images and labels: CSV (`image,label[,split]`), TSV, JSON lines, or the `metadata` file of a
Hugging Face image folder."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

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
    split: str
    """As the table has it; empty where it has none."""


def read(path: Path) -> Found:
    """The images of a table, relative to its folder. `SuiteError` names file and line of what is wrong."""
    return _found(path, path.parent, _sorted_in(path, path.parent, "", rows(path)))


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
        for key, by_class in _sorted_in(file, path, split, rows(file)).items():
            names.setdefault(key, {}).update(by_class)
    return _found(path, path, names)


def _found(path: Path, images: Path, names: Names) -> Found:
    if "train" not in names:
        raise SuiteError(f"{path}: {' and '.join(names)}, but no image to train on (split train)")
    return checked(Found(path=path, images=images, names=names, classes=in_order(names["train"])))


def _sorted_in(file: Path, root: Path, split: str, table: Iterable[Row]) -> Names:
    """The rows by split and class, names relative to `root`. `split`: that of all rows, where it is known."""
    names: Names = {}
    seen: dict[str, Row] = {}
    labels: dict[str, Row] = {}
    missing: list[Row] = []
    for row in table:
        path = file.parent / row.image
        name = Path(os.path.relpath(path, root)).as_posix() if not PurePosixPath(row.image).is_absolute() else row.image
        label = row.label.strip()
        _check_label(file, row, labels)
        if not os.path.isfile(path):  # noqa: PTH113 (never raises)
            missing.append(row)
            continue
        _check_once(file, row, split, seen.setdefault(name, row))
        part = split or _split(file, row, name)
        names.setdefault(part, {}).setdefault(label, []).append(name)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        first = missing[0]
        raise SuiteError(f"{file}:{first.line}: there is no file {first.image!r} in {file.parent}{more}")
    _check_several(file, labels)
    if not names:
        raise SuiteError(f"{file}: no image in it, only a header")
    return {part: {label: sorted(images) for label, images in by_class.items()} for part, by_class in names.items()}


def _split(file: Path, row: Row, name: str) -> str:
    """The split of a row: its own, else that of the folder of its image, else train."""
    if not row.split:
        return split_of(PurePosixPath(name).parts[0]) or "train"
    if split := split_of(row.split):
        return split
    raise SuiteError(f"{file}:{row.line}: split {row.split!r} is none of train, val and test")


def _check_label(file: Path, row: Row, labels: dict[str, Row]) -> None:
    if not row.label.strip() or not row.image:
        raise SuiteError(f"{file}:{row.line}: no {'label' if row.image else 'image'}")
    if any(mark in row.label for mark in SEPARATORS) or row.label.lstrip().startswith("["):
        raise SuiteError(f"{file}:{row.line}: label {row.label!r} reads as several; {MULTI_LABEL}")
    if "\n" in row.image or "\n" in row.label:
        raise SuiteError(f"{file}:{row.line}: a name with a line break is not read: rename it")
    first = labels.setdefault(alike(row.label), row)
    if first.label != row.label:
        raise SuiteError(
            f"{file}:{row.line}: label {row.label!r} differs from {first.label!r} in line {first.line} in case or "
            "spaces alone: make them one"
        )


def _check_several(file: Path, labels: Mapping[str, Row]) -> None:
    """`SuiteError` for a label that is a list, with commas, of other labels."""
    for row in labels.values():
        parts = row.label.split(",")
        if len(parts) > 1 and all(alike(part) in labels for part in parts):
            raise SuiteError(f"{file}:{row.line}: label {row.label!r} reads as several; {MULTI_LABEL}")


def _check_once(file: Path, row: Row, split: str, first: Row) -> None:
    if first is row:
        return
    here = f"{file}:{row.line}: {row.image} is already in line {first.line}"
    if not split and row.split != first.split:
        raise SuiteError(f"{here}, there for {first.split} and here for {row.split}: an image belongs to one split")
    if row.label != first.label:
        raise SuiteError(f"{here} with the label {first.label!r}, not {row.label!r}; {MULTI_LABEL}")
    raise SuiteError(f"{here}: name it once")


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
    return Row(line, str(cells["image"]).strip(), text, str(cells.get("split") or "").strip())


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
