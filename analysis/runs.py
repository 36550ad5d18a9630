"""What a report is made of: the rows of all runs, and a way to the few whole records that figures need."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from analysis import index
from harness.records.store import Rejected, read_record
from harness.schema.record import BadRecord, RunRecord

Read = Callable[[pd.DataFrame], list[RunRecord]]
"""Whole records of rows; those that can no longer be read are left out."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs, and files that hold none."""

    rows: pd.DataFrame
    """As `analysis.frame.row` has them."""

    read: Read
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
