"""The runs of a results folder, and an index of them, so that a report over many does not read every file again.

A cache of columns, `index.json`, beside `runs/`. A record whose path, modification time and size are those of the index
is taken from it; all others are read, checked and flattened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import columns as columns_module
from analysis.columns import row, typed
from analysis.paired import ReadPredictions, none_kept
from harness.errors import HarnessError
from harness.records.index import UNREAD, read_cache, read_changed, record_stamps, write_cache
from harness.records.pack import Pack
from harness.records.predictions import Predictions
from harness.records.predictions import read as predictions_of
from harness.records.store import PREDICTIONS_NAME, Rejected, read_record
from harness.schema.metrics import METRICS
from harness.schema.record import SCHEMA, BadRecord, RunRecord

INDEX_NAME = "index.json"
VERSION = f"{SCHEMA}/{','.join(METRICS)}/{hashlib.sha256(Path(columns_module.__file__).read_bytes()).hexdigest()[:16]}"
"""Of the records' schema, the metrics and the code that flattens them: an index that other code wrote is not used."""

FILE_COLUMNS = ["path", "mtime", "size", "rejected"]
"""Where a row comes from: path below the folder, mtime in ns, size, and why the file was set aside (empty if not)."""


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
    columns = read_cache(root / INDEX_NAME, VERSION)
    stored = _decode(columns) if columns else pd.DataFrame(columns=FILE_COLUMNS)
    known = dict(zip(stored["path"], zip(stored["mtime"], stored["size"], strict=True), strict=True))
    stamps = {path: stamp for path, stamp in record_stamps(root).items() if stamp}
    changed = read_changed(root, stamps, known, row)
    lasting = stored["path"].isin(stamps.keys() - changed.keys())
    frame = stored[lasting]
    if changed:
        new = pd.DataFrame([_new_row(path, *stamps[path], outcome) for path, outcome in changed.items()])
        frame = pd.concat([part for part in (frame, new) if len(part)]).sort_values("path", ignore_index=True)
    if changed or not lasting.all():
        write_cache(root / INDEX_NAME, VERSION, _encode(frame[~frame["rejected"].str.startswith(UNREAD)]))
    return _parted(frame, root)


def _parted(frame: pd.DataFrame, root: Path) -> tuple[pd.DataFrame, list[Rejected]]:
    """The rows of valid records, and the files below `root` that were set aside."""
    bad = frame[frame["rejected"] != ""]
    rejected = [Rejected(root / path, reason) for path, reason in zip(bad["path"], bad["rejected"], strict=True)]
    good = frame[frame["rejected"] == ""].drop(columns=FILE_COLUMNS[1:], errors="ignore").reset_index(drop=True)
    return typed(good), rejected


def load_pack(pack: Pack) -> tuple[pd.DataFrame, list[Rejected]]:
    """The same of a pack. The first call reads and checks every record; later ones take what it found from the cache,
    where it lies under the digest of the whole file."""
    if not pack.records:
        return pd.DataFrame(), []
    place = pack.index_path()
    columns = read_cache(place, VERSION)
    if not columns:
        columns = _encode(pd.DataFrame([_packed_row(pack, name) for name in pack.records]))
        write_cache(place, VERSION, columns)
    return _parted(_decode(columns), pack.path)


def _packed_row(pack: Pack, name: str) -> dict[str, Any]:
    """One whose predictions were left out counts as having kept none."""
    try:
        facts = row(pack.record(name))
    except (KeyError, TypeError, ValueError) as error:  # a `BadRecord`, or whole but with values that nobody writes
        return {"path": name, "rejected": str(error) or type(error).__name__}
    kept = facts["predictions"] and pack.holds(name, PREDICTIONS_NAME)
    return {"path": name, "rejected": "", **facts, "predictions": kept}


def _new_row(path: str, mtime: int, size: int, outcome: dict[str, Any] | Rejected) -> dict[str, Any]:
    facts = {"rejected": outcome.reason} if isinstance(outcome, Rejected) else {"rejected": "", **outcome}
    return {"path": path, "mtime": mtime, "size": size, **facts}


ReadRecords = Callable[[pd.DataFrame], list[RunRecord]]
"""Whole records of rows; those that cannot be read any more are left out."""


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of a results folder, and the files that are not valid records."""

    rows: pd.DataFrame
    """As `analysis.columns.row` has them."""

    read: ReadRecords
    rejected: list[Rejected] = field(default_factory=list)
    """Files that are no valid records."""

    predictions: ReadPredictions = none_kept
    """Reads what runs of `rows` said of every image."""

    folders: Mapping[str, Path] = field(default_factory=dict)
    """Results folders by their name in the column `results`, see `analysis.sources`; packs are no folders."""

    remarks: list[str] = field(default_factory=list)
    """What is to be said of runs that several places hold."""


def from_folder(root: Path) -> Runs:
    """Runs of a results folder, by its index; a record is read when a figure asks for it."""

    def read(rows: pd.DataFrame) -> list[RunRecord]:
        records = []
        for path in rows["path"]:
            with suppress(OSError, BadRecord):  # gone or rewritten since the index was read
                records.append(read_record(root / path))
        return records

    def read_predictions(rows: pd.DataFrame) -> list[dict[str, Predictions]]:
        try:
            return [predictions_of((root / path).parent, read_record(root / path)) for path in rows["path"]]
        except (OSError, BadRecord) as error:
            raise HarnessError(f"a record that was there is not readable any more: {error}") from None

    rows, rejected = load(root)
    return Runs(rows, read, rejected, read_predictions)
