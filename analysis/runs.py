"""What a report is made of: the rows of all runs, and a way to the few whole records that figures need."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from analysis import index
from analysis.frame import frame_of
from harness.record import BadRecord, RunRecord
from harness.store import Rejected

Read = Callable[[pd.DataFrame], list[RunRecord]]
"""Whole records of rows; those that cannot be read any more are left out."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs, and what is no run."""

    rows: pd.DataFrame
    """As `analysis.frame.row` has them."""

    read: Read
    rejected: list[Rejected] = field(default_factory=list)
    """Files that are no valid records."""


def from_records(records: Iterable[RunRecord], rejected: Iterable[Rejected] = ()) -> Runs:
    """Runs whose records are in memory."""
    by_id = {record.spec.run_id: record for record in records}
    return Runs(frame_of(by_id.values()), lambda rows: [by_id[name] for name in rows["run_id"]], list(rejected))


def from_folder(root: Path) -> Runs:
    """Runs of a results folder, by its index; a record is read when a figure asks for it."""

    def read(rows: pd.DataFrame) -> list[RunRecord]:
        found = []
        for path in rows["path"]:
            try:
                found.append(RunRecord.from_json((root / path).read_text()))
            except (OSError, BadRecord):  # gone or rewritten since the index was read
                continue
        return found

    rows, rejected = index.load(root)
    return Runs(rows, read, rejected)
