"""What an index remembers of a results folder's records: 100,000 of them are listed in seconds.

A record is read and checked once; what matters of it is kept in a cache, and taken from there while the file's time and
size are the same. `read_changed` is the way to all such caches: that of `status` and `clean`, `.runs.json` beside
`runs/`, and that of the tables, `analysis.index`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from harness.records.files import UNREAD, Stamp, read_cache, run_folders, stamp, write_cache
from harness.records.store import RECORD_NAME, Rejected, read_record
from harness.schema.record import SCHEMA, RunRecord
from harness.terminal import Advance

T = TypeVar("T")

INDEX_NAME = ".runs.json"

VERSION = f"{SCHEMA}/3"
"""Of the records and of `IndexEntry`."""


def record_stamps(root: Path) -> dict[str, Stamp | None]:
    """Of the record in every run folder, by the record's path below `root`; None where there is none."""
    paths = (f"runs/{folder}/{RECORD_NAME}" for folder in run_folders(root))
    return {path: stamp(f"{root}/{path}") for path in paths}


def read_changed(
    root: Path,
    stamps: Mapping[str, Stamp | None],
    known: Mapping[str, Stamp | None],
    summarise: Callable[[RunRecord], T],
    advance: Advance | None = None,
) -> dict[str, T | Rejected]:
    """What `summarise` makes of every record that is not as an index knows it, or why the file cannot be used. Stamps
    and results are by the record's path below `root`. `advance` is told how many records of how many have been read."""
    changed = [path for path, at in stamps.items() if at and known.get(path) != at]
    outcomes: dict[str, T | Rejected] = {}
    for number, path in enumerate(changed, 1):
        outcomes[path] = _outcome(root / path, summarise)
        if advance:
            advance(number, len(changed))
    return outcomes


def _outcome(path: Path, summarise: Callable[[RunRecord], T]) -> T | Rejected:
    try:
        return summarise(read_record(path))
    except OSError as error:
        return Rejected(path, f"{UNREAD}: {error.strerror}")
    except (KeyError, TypeError, ValueError) as error:  # a `BadRecord`, or whole but with values that nobody writes
        return Rejected(path, str(error) or type(error).__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """What a record says, as far as `status` needs it."""

    stamp: Stamp | None = None
    """Of the file; None where the entry is not from an index."""

    state: str
    """`complete`, `failed`, or `bad` if the file cannot be used; `missing` if there is none."""

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
        """The entry of a valid record."""
        return cls(
            state=record.status,
            kind=record.failure.kind if record.failure else "",
            reason=record.reason,
            protocol=record.spec.protocol,
            seed=record.spec.seed,
            source=record.method_source,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(**values | {"stamp": tuple(values["stamp"])})


MISSING = IndexEntry(state="missing")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run's folder and what its record says."""

    path: str
    record: IndexEntry = MISSING

    @property
    def names(self) -> tuple[str, str, str, str]:
        """Suite, task, method and run id."""
        *_, suite, task, run = self.path.split("/")
        method, _, run_id = run.rpartition("-")
        return suite, task, method, run_id


def scan(root: Path, advance: Advance | None = None) -> dict[str, RunFolder]:
    """All run folders of a results folder, by path. `advance` is told how many records of how many new ones have been
    read."""
    cached, stamps = read_cache(root / INDEX_NAME, VERSION) or {}, record_stamps(root)
    known = {path: IndexEntry.from_json(values) for path, values in cached.items()}
    changed = read_changed(root, stamps, {path: e.stamp for path, e in known.items()}, IndexEntry.of, advance)
    entries = {path: known[path] for path, at in stamps.items() if at and path not in changed}
    entries |= {path: replace(_entry(outcome), stamp=stamps[path]) for path, outcome in changed.items()}
    if changed or len(entries) != len(known):
        lasting = {path: e.to_json() for path, e in entries.items() if not e.reason.startswith(UNREAD)}
        write_cache(root / INDEX_NAME, VERSION, lasting)
    folders = {str((root / path).parent): entries.get(path, MISSING) for path in stamps}
    return {folder: RunFolder(folder, entry) for folder, entry in folders.items()}


def scan_folder(folder: Path) -> RunFolder:
    """One run's folder as it is now."""
    path = folder / RECORD_NAME
    return RunFolder(str(folder), _entry(_outcome(path, IndexEntry.of)) if path.exists() else MISSING)


def _entry(outcome: IndexEntry | Rejected) -> IndexEntry:
    return IndexEntry(state="bad", reason=outcome.reason) if isinstance(outcome, Rejected) else outcome
