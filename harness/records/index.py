"""The index of a results folder's records: 100,000 of them are listed in seconds.

A record is read and checked once; what matters of it is kept in a cache, and taken from there while the file's time and
size are the same. All such caches use `read_changed`: that of `status` and `clean`, `.runs.json` beside
`runs/`, and that of the tables, `analysis.index`. A cache is one file: a line with its version and the body's digest,
then the body as JSON. It is rebuilt when it is damaged or of another version, and may be deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from operator import methodcaller
from pathlib import Path
from typing import Any, Self, TypeVar

from harness.paths import write_atomically
from harness.records.store import RECORD_NAME, Rejected, read_record
from harness.schema.failures import is_passing
from harness.schema.record import SCHEMA, RunRecord
from harness.terminal import Advance

T = TypeVar("T")

INDEX_NAME = ".runs.json"

VERSION = f"{SCHEMA}/4"
"""Version of the records and of `IndexEntry`."""

UNREAD = "cannot be read now"
"""How the reason begins for a record that was set aside and may be sound: no cache keeps it."""

Stamp = tuple[int, int]
"""Modification time in ns and size of a file."""


def run_folders(root: Path) -> list[str]:
    """`suite/task/run` of every run folder below `root`/runs, in order."""
    runs = str(root / "runs")
    suites = _subfolders(runs)
    tasks = [f"{suite}/{task}" for suite in suites for task in _subfolders(f"{runs}/{suite}")]
    return [f"{task}/{run}" for task in tasks for run in _subfolders(f"{runs}/{task}")]


def _subfolders(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        if is_passing(error):  # else runs would be missing without a word
            raise
        return []


def stamp(path: str) -> Stamp | None:
    """The stamp of a file; None if it is not there."""
    try:
        status = os.stat(path)  # noqa: PTH116 (a hundred thousand times)
    except OSError as error:
        if is_passing(error):
            raise
        return None
    return status.st_mtime_ns, status.st_size


def read_cache(path: Path, version: str) -> Any:
    """What was written; None if the file is missing, damaged, or of another version."""
    with suppress(OSError, ValueError):
        head, _, body = path.read_bytes().partition(b"\n")
        if json.loads(head) == {"version": version, "digest": hashlib.sha256(body).hexdigest()}:
            return json.loads(body)
    return None


def write_cache(path: Path, version: str, value: Any) -> None:
    """Put a cache in its place in one step; a folder that cannot be written to is left without one."""
    body = json.dumps(value, separators=(",", ":")).encode()
    head = json.dumps({"version": version, "digest": hashlib.sha256(body).hexdigest()}).encode()
    with suppress(OSError):
        write_atomically(path, methodcaller("write", head + b"\n" + body))


def record_stamps(root: Path) -> dict[str, Stamp | None]:
    """Stamp of each run folder's record, by the record's path below `root`; None where there is no record."""
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
    and results are by the record's path below `root`. `advance` is called as in `scan`."""
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

    files: list[str] = field(default_factory=list)
    """Names of the files that it has beside it."""

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
            files=list(record.files),
        )


MISSING = IndexEntry(state="missing")


def scan(root: Path, advance: Advance | None = None) -> dict[str, IndexEntry]:
    """What the records of a results folder say, by the path of the run's folder. `advance` is called with the number of
    new records read so far and their total."""
    cached, stamps = read_cache(root / INDEX_NAME, VERSION) or {}, record_stamps(root)
    known = {path: IndexEntry(**values | {"stamp": tuple(values["stamp"])}) for path, values in cached.items()}
    changed = read_changed(root, stamps, {path: e.stamp for path, e in known.items()}, IndexEntry.of, advance)
    entries = {path: known[path] for path, at in stamps.items() if at and path not in changed}
    entries |= {path: replace(_entry(outcome), stamp=stamps[path]) for path, outcome in changed.items()}
    if changed or len(entries) != len(known):
        lasting = {path: asdict(e) for path, e in entries.items() if not e.reason.startswith(UNREAD)}
        write_cache(root / INDEX_NAME, VERSION, lasting)
    return {str((root / path).parent): entries.get(path, MISSING) for path in stamps}


def scan_folder(folder: Path) -> IndexEntry:
    """What the record in a run's folder says now."""
    path = folder / RECORD_NAME
    return _entry(_outcome(path, IndexEntry.of)) if path.exists() else MISSING


def _entry(outcome: IndexEntry | Rejected) -> IndexEntry:
    return IndexEntry(state="bad", reason=outcome.reason) if isinstance(outcome, Rejected) else outcome
