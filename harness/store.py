"""The store: one folder per run, completion is a valid record in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.paths import write_atomically
from harness.record import BadRecord, RunRecord
from harness.spec import RunSpec

RECORD_NAME = "record.json"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record file that was set aside."""

    path: Path
    reason: str


class Store:
    """Runs below `root`/runs/<suite>/<task>/<method>-<run id>/."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, spec: RunSpec) -> Path:
        """The run's folder."""
        return self.root / "runs" / spec.suite / spec.task / f"{spec.method}-{spec.run_id}"

    def write(self, record: RunRecord) -> Path:
        """Put the record in its place, whole or not at all."""
        path = self.folder(record.spec) / RECORD_NAME
        write_atomically(path, lambda file: file.write(record.to_json().encode()))
        return path

    def read(self, spec: RunSpec) -> RunRecord | None:
        """The run's record, or None if there is no valid one."""
        try:
            return RunRecord.from_json((self.folder(spec) / RECORD_NAME).read_text())
        except (OSError, UnicodeDecodeError, BadRecord):
            return None

    def is_complete(self, spec: RunSpec) -> bool:
        """Whether the run has a valid record of success."""
        record = self.read(spec)
        return record is not None and record.status == "complete" and record.spec.run_id == spec.run_id

    def records(self) -> tuple[list[RunRecord], list[Rejected]]:
        """All valid records, ordered by path, and the files that were set aside with the reason."""
        good, bad = [], []
        for path in sorted(self.root.glob(f"runs/*/*/*/{RECORD_NAME}")):
            try:
                good.append(RunRecord.from_json(path.read_text()))
            except (OSError, UnicodeDecodeError, BadRecord, KeyError, TypeError, ValueError) as error:
                bad.append(Rejected(path, str(error)))
        return good, bad
