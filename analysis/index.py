"""An index of a results folder's records, so that a report over many runs does not read every file again.

One JSON file of columns, `index.json`, beside `runs/`. A record whose path, modification time and size are
those of the index is taken from it; all others are read, checked and flattened anew. The index is a cache: it is
ignored when it is damaged or of another version, written to a temporary file and renamed, and may be deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import frame as frame_module
from analysis.frame import row, typed
from harness.records.record import SCHEMA, BadRecord, RunRecord
from harness.records.store import RECORD_NAME, Rejected

INDEX_NAME = "index.json"
VERSION = f"{SCHEMA}/{hashlib.sha256(Path(frame_module.__file__).read_bytes()).hexdigest()[:16]}"
"""Of the records' schema and of the code that flattens them: an index that other code wrote is not used."""

FILE_COLUMNS = ["path", "mtime", "size", "rejected"]
"""Where a row comes from: path below the folder, mtime in ns, size, and why the file was set aside (empty if not)."""


def _record_files(root: Path) -> Iterator[tuple[str, int, int]]:
    """Path below `root`, modification time and size of every record file, by folders: suite, task, run."""
    folders = [root / "runs"]
    for _ in range(3):
        folders = [Path(entry.path) for folder in folders for entry in _entries(folder) if entry.is_dir()]
    for folder in folders:
        path = folder / RECORD_NAME
        try:
            status = path.stat()
        except OSError:
            continue
        yield str(path.relative_to(root)), status.st_mtime_ns, status.st_size


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _read(root: Path, path: str) -> dict[str, Any]:
    """The row of one record file, or the reason why it was set aside."""
    try:
        return {"rejected": "", **row(RunRecord.from_json((root / path).read_text()))}
    except (OSError, UnicodeDecodeError, BadRecord, KeyError, TypeError, ValueError) as error:
        return {"rejected": str(error) or type(error).__name__}


def _encode(frame: pd.DataFrame) -> bytes:
    """Columns as JSON; texts, which repeat, as codes into a list of the different ones."""
    columns: dict[str, Any] = {}
    for name in frame:
        values = frame[name].astype(object).where(frame[name].notna(), None)
        if values.map(lambda value: isinstance(value, str)).any():
            codes, texts = pd.factorize(values)
            columns[str(name)] = {"codes": codes.tolist(), "texts": list(texts)}
        else:
            columns[str(name)] = {"values": values.tolist()}
    body = json.dumps(columns, separators=(",", ":")).encode()
    head = json.dumps({"version": VERSION, "digest": hashlib.sha256(body).hexdigest()}).encode()
    return head + b"\n" + body


def _decode(data: bytes) -> pd.DataFrame:
    """Inverse of `_encode`. Raises `ValueError` or `KeyError` for anything else."""
    head, _, body = data.partition(b"\n")
    facts = json.loads(head)
    if facts["version"] != VERSION or facts["digest"] != hashlib.sha256(body).hexdigest():
        raise ValueError("damaged, or of another version")
    frame = {}
    for name, column in json.loads(body).items():
        if "codes" in column:
            texts = pd.Series([*column["texts"], None], dtype=object)  # code -1, the last: no value
            frame[name] = texts.to_numpy()[column["codes"]]
        else:
            frame[name] = column["values"]
    return pd.DataFrame(frame)


def _stored(root: Path) -> pd.DataFrame:
    try:
        return _decode((root / INDEX_NAME).read_bytes())
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return pd.DataFrame(columns=FILE_COLUMNS)


def _write(root: Path, frame: pd.DataFrame) -> None:
    """Put the index in its place; a folder that cannot be written to does without."""
    temporary = root / f".{INDEX_NAME}.{os.getpid()}.tmp"
    try:
        temporary.write_bytes(_encode(frame))
        temporary.replace(root / INDEX_NAME)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def load(root: Path) -> tuple[pd.DataFrame, list[Rejected]]:
    """All valid records of a results folder as a frame (`analysis.frame.row`, with `path`), and the files set aside.

    The first call reads every file; later ones only those that are new or changed.
    """
    files = pd.DataFrame(_record_files(root), columns=FILE_COLUMNS[:3])
    stored = _stored(root)
    known = files.merge(stored, on=FILE_COLUMNS[:3], how="left", indicator=True)
    new = known["_merge"] == "left_only"
    frame = known[~new].drop(columns="_merge")
    if new.any():
        facts = files[new.to_numpy()].to_dict("records")
        read = pd.DataFrame([{**fact, **_read(root, str(fact["path"]))} for fact in facts])
        frame = pd.concat([part for part in (frame, read) if len(part)]).sort_values("path", ignore_index=True)
    if new.any() or len(frame) != len(stored):
        _write(root, frame)
    bad = frame[frame["rejected"] != ""]
    rejected = [Rejected(root / path, reason) for path, reason in zip(bad["path"], bad["rejected"], strict=True)]
    good = frame[frame["rejected"] == ""].drop(columns=FILE_COLUMNS[1:]).reset_index(drop=True)
    return typed(good), rejected
