"""Where a run is: its folder, and the record in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from harness.errors import HarnessError
from harness.records.store import RECORD_NAME, Store, read_record
from harness.schema.record import BadRecord, RunRecord


@dataclass(frozen=True, slots=True)
class Place:
    """A run's folder and its record."""

    folder: Path
    record: RunRecord

    @classmethod
    def of(cls, run: RunRecord | str | Path, out: Path) -> Self:
        """The place of a record in the results folder `out`; or that of a record's file, or of a run's folder.

        `HarnessError` if there is no valid record.
        """
        if isinstance(run, RunRecord):
            return cls(Store(out).folder(run.spec), run)
        path = Path(run).expanduser()
        return cls(path if path.is_dir() else path.parent, read(path))


def read(path: Path) -> RunRecord:
    """The record in a file, or in a run's folder. `HarnessError` if there is no valid one."""
    file = path / RECORD_NAME if path.is_dir() else path
    try:
        return read_record(file)
    except OSError as error:
        raise HarnessError(f"{file}: cannot be read ({error.strerror})") from None
    except BadRecord as error:
        raise HarnessError(f"{file}: no valid record: {error}") from None
