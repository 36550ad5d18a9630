"""An index of a results folder's records, so that a report over many runs does not read every file again.

A cache of columns, `index.json`, beside `runs/`. A record whose path, modification time and size are those of the index
is taken from it; all others are read, checked and flattened anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import columns as columns_module
from analysis.columns import row, typed
from harness.records.files import UNREAD, read_cache, run_folders, stamp, write_cache
from harness.records.store import RECORD_NAME, Rejected
from harness.schema.metrics import METRICS
from harness.schema.record import SCHEMA, BadRecord, RunRecord

INDEX_NAME = "index.json"
VERSION = f"{SCHEMA}/{','.join(METRICS)}/{hashlib.sha256(Path(columns_module.__file__).read_bytes()).hexdigest()[:16]}"
"""Of the records' schema, the metrics and the code that flattens them: an index that other code wrote is not used."""

FILE_COLUMNS = ["path", "mtime", "size", "rejected"]
"""Where a row comes from: path below the folder, mtime in ns, size, and why the file was set aside (empty if not)."""


def _record_files(root: Path) -> Iterator[tuple[str, int, int]]:
    """Path below `root`, modification time and size of every record file."""
    for folder in run_folders(root):
        path = f"runs/{folder}/{RECORD_NAME}"
        if at := stamp(f"{root}/{path}"):
            yield path, *at


def _read(root: Path, path: str) -> dict[str, Any]:
    """The row of one record file, or the reason why it was set aside."""
    try:
        return {"rejected": "", **row(RunRecord.from_json((root / path).read_text()))}
    except OSError as error:
        return {"rejected": f"{UNREAD}: {error.strerror}"}
    except (UnicodeDecodeError, BadRecord, KeyError, TypeError, ValueError) as error:
        return {"rejected": str(error) or type(error).__name__}


def _encode(frame: pd.DataFrame) -> dict[str, Any]:
    """Columns for JSON; texts, which repeat, as codes into a list of the different ones."""
    columns: dict[str, Any] = {}
    for name in frame:
        values = frame[name].astype(object).where(frame[name].notna(), None)
        if values.map(lambda value: isinstance(value, str)).any():
            codes, texts = pd.factorize(values)
            columns[str(name)] = {"codes": codes.tolist(), "texts": list(texts)}
        else:
            columns[str(name)] = {"values": values.tolist()}
    return columns


def _decode(columns: dict[str, Any]) -> pd.DataFrame:
    """Inverse of `_encode`."""
    frame = {}
    for name, column in columns.items():
        if "codes" in column:
            texts = pd.Series([*column["texts"], None], dtype=object)  # code -1, the last: no value
            frame[name] = texts.to_numpy()[column["codes"]]
        else:
            frame[name] = column["values"]
    return pd.DataFrame(frame)


def load(root: Path) -> tuple[pd.DataFrame, list[Rejected]]:
    """All valid records of a results folder as a frame (`analysis.columns.row`, with `path`), and the files set aside.

    The first call reads every file; later ones only those that are new or changed.
    """
    files = pd.DataFrame(_record_files(root), columns=FILE_COLUMNS[:3])
    columns = read_cache(root / INDEX_NAME, VERSION)
    stored = _decode(columns) if columns else pd.DataFrame(columns=FILE_COLUMNS)
    known = files.merge(stored, on=FILE_COLUMNS[:3], how="left", indicator=True)
    new = known["_merge"] == "left_only"
    frame = known[~new].drop(columns="_merge")
    if new.any():
        facts = files[new.to_numpy()].to_dict("records")
        read = pd.DataFrame([{**fact, **_read(root, str(fact["path"]))} for fact in facts])
        frame = pd.concat([part for part in (frame, read) if len(part)]).sort_values("path", ignore_index=True)
    if new.any() or len(frame) != len(stored):
        write_cache(root / INDEX_NAME, VERSION, _encode(frame[~frame["rejected"].str.startswith(UNREAD)]))
    bad = frame[frame["rejected"] != ""]
    rejected = [Rejected(root / path, reason) for path, reason in zip(bad["path"], bad["rejected"], strict=True)]
    good = frame[frame["rejected"] == ""].drop(columns=FILE_COLUMNS[1:]).reset_index(drop=True)
    return typed(good), rejected
