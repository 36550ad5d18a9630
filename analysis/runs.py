"""What a report is made of: the rows of all runs, and a reader of the few whole records that figures need."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from analysis import index
from harness.records.store import Rejected, read_record
from harness.schema.record import BadRecord, RunRecord

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


def from_folder(root: Path) -> Runs:
    """Runs of a results folder, by its index; a record is read when a figure asks for it."""

    def read(rows: pd.DataFrame) -> list[RunRecord]:
        records = []
        for path in rows["path"]:
            with suppress(OSError, BadRecord):  # gone or rewritten since the index was read
                records.append(read_record(root / path))
        return records

    rows, rejected = index.load(root)
    return Runs(rows, read, rejected)
