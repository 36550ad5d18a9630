"""What an index remembers of a results folder's records: 100,000 of them are listed in seconds.

A record is read and checked once; what matters of it is kept in a cache, and taken from there while the file's time and
size are the same. `read_changed` is the way to all such caches: that of `status` and `clean`, `.runs.json` beside
`runs/`, and that of the tables, `analysis.index`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from harness.records.files import RECORD_NAME, UNREAD, Stamp, read_cache, record_stamps, write_cache
from harness.records.store import Rejected, read_record
from harness.schema.record import SCHEMA, RunRecord
from harness.terminal import Advance

T = TypeVar("T")

INDEX_NAME = ".runs.json"

VERSION = f"{SCHEMA}/3"
"""Of the records and of `IndexEntry`."""


def read_changed(
    root: Path,
    stamps: Mapping[str, Stamp | None],
    known: Mapping[str, Stamp],
    summarise: Callable[[RunRecord], T],
    advance: Advance | None = None,
) -> dict[str, T | Rejected]:
    """What `summarise` makes of every record that is not as an index knows it, or why the file cannot be used. Stamps
    and results are by the record's path below `root`. `advance` is told how many records of how many have been read."""
    changed = [path for path, stamp in stamps.items() if stamp and known.get(path) != stamp]
    summaries: dict[str, T | Rejected] = {}
    for number, path in enumerate(changed, 1):
        summaries[path] = _summary(root / path, summarise)
        if advance:
            advance(number, len(changed))
    return summaries


def _summary(path: Path, summarise: Callable[[RunRecord], T]) -> T | Rejected:
    try:
        return summarise(read_record(path))
    except OSError as error:
        return Rejected(path, f"{UNREAD}: {error.strerror}")
    except (KeyError, TypeError, ValueError) as error:  # a `BadRecord`, or whole but with values that nobody writes
        return Rejected(path, str(error) or type(error).__name__)


@dataclass(frozen=True, slots=True)
class RecordSummary:
    """What a record says, as far as `status` needs it."""

    state: str
    """`complete`, `failed`, or `bad` if the file cannot be used."""

    kind: str = ""
    """Failure class, see `harness.schema.failures`."""

    reason: str = ""
    """Why it failed, or why it cannot be used."""

    protocol: str = ""
    seed: int | None = None
    source: str = ""
    """Digest of the method's source."""

    @classmethod
    def of(cls, record: RunRecord) -> Self:
        """The summary of a valid record."""
        return cls(
            state=record.status,
            kind=record.failure.kind if record.failure else "",
            reason=record.reason,
            protocol=record.spec.protocol,
            seed=record.spec.seed,
            source=record.method_source,
        )


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A record's summary, and the file that it is of."""

    stamp: Stamp
    summary: RecordSummary

    def to_json(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        values = {name: getattr(self.summary, name) for name in RecordSummary.__slots__}
        return {"stamp": self.stamp, **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        summary = {name: value for name, value in values.items() if name != "stamp"}
        return cls((values["stamp"][0], values["stamp"][1]), RecordSummary(**summary))


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run's folder and what its record says, if there is one."""

    path: str
    record: RecordSummary | None

    @property
    def names(self) -> tuple[str, str, str, str]:
        """Suite, task, method and run id."""
        *_, suite, task, run = self.path.split("/")
        method, _, run_id = run.rpartition("-")
        return suite, task, method, run_id


def scan(root: Path, advance: Advance | None = None) -> dict[str, RunFolder]:
    """All run folders of a results folder, by path. `advance` is told how many records of how many new ones have been
    read."""
    cached = read_cache(root / INDEX_NAME, VERSION) or {}
    known = {path: IndexEntry.from_json(values) for path, values in cached.items()}
    stamps = record_stamps(root)
    changed = read_changed(root, stamps, {path: e.stamp for path, e in known.items()}, RecordSummary.of, advance)
    entries = {
        path: IndexEntry(stamp, _usable(changed[path])) if path in changed else known[path]
        for path, stamp in stamps.items()
        if stamp
    }
    if changed or len(entries) != len(known):
        lasting = {path: e.to_json() for path, e in entries.items() if not e.summary.reason.startswith(UNREAD)}
        write_cache(root / INDEX_NAME, VERSION, lasting)
    folders = {str((root / path).parent): entries.get(path) for path in stamps}
    return {folder: RunFolder(folder, entry.summary if entry else None) for folder, entry in folders.items()}


def scan_folder(folder: Path) -> RunFolder:
    """One run's folder as it is now."""
    path = folder / RECORD_NAME
    return RunFolder(str(folder), _usable(_summary(path, RecordSummary.of)) if path.exists() else None)


def _usable(summary: RecordSummary | Rejected) -> RecordSummary:
    return RecordSummary(state="bad", reason=summary.reason) if isinstance(summary, Rejected) else summary
