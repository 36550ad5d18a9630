"""What is on disk of every run of a results folder, for `status` and `clean`: 100,000 records in seconds.

A record is read and checked once; what matters of it is kept in `.runs.json` beside `runs/`, and taken from there while
the file's time and size are the same. That file is a cache: damaged or of another version it is made again, and it may
be deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from harness.records.record import SCHEMA, BadRecord, RunRecord
from harness.records.store import RECORD_NAME, read_record
from harness.terminal import Advance

INDEX_NAME = ".runs.json"

VERSION = f"{SCHEMA}/1"
"""Of the records and of `Found`."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a record file says, as far as `status` needs it."""

    state: str
    """`complete`, `failed`, or `bad` if the file cannot be used."""

    kind: str = ""
    """Failure class, see `harness.failures`."""

    reason: str = ""
    """Why it failed, or why it cannot be used."""

    protocol: str = ""
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A run's folder and what its record says, if there is one."""

    folder: str
    found: Found | None

    @property
    def names(self) -> tuple[str, str, str, str]:
        """Suite, task, method and run id, from the folder's path."""
        *_, suite, task, run = self.folder.split("/")
        method, _, run_id = run.rpartition("-")
        return suite, task, method, run_id


def places(root: Path, advance: Advance | None = None) -> dict[str, Place]:
    """All run folders below `root`, by their path below `root`/runs. `advance` is told how many records of how many
    new ones have been read."""
    known, runs = _stored(root), str(root / "runs")
    stamps = {name: _stamp(f"{runs}/{name}/{RECORD_NAME}") for name in _run_folders(runs)}
    facts = {name: known[name] for name, stamp in stamps.items() if name in known and known[name][:2] == stamp}
    unread = [name for name, stamp in stamps.items() if stamp and name not in facts]
    for number, name in enumerate(unread, 1):
        facts[name] = [*stamps[name], *astuple(_read(Path(runs, name, RECORD_NAME)))]
        if advance:
            advance(number, len(unread))
    if unread or len(facts) != len(known):
        _write(root, facts)
    return {name: Place(f"{runs}/{name}", Found(*facts[name][2:]) if name in facts else None) for name in stamps}


def look(folder: Path) -> Place:
    """One run's folder as it is now."""
    return Place(str(folder), _read(folder / RECORD_NAME) if (folder / RECORD_NAME).exists() else None)


def _run_folders(runs: str) -> list[str]:
    """`suite/task/run` of every run folder, in order."""
    suites = _subfolders(runs)
    tasks = [f"{suite}/{task}" for suite in suites for task in _subfolders(f"{runs}/{suite}")]
    return [f"{task}/{run}" for task in tasks for run in _subfolders(f"{runs}/{task}")]


def _subfolders(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []


def _stamp(path: str) -> list[int]:
    """Modification time in ns and size of a file; empty if it is not there."""
    try:
        status = os.stat(path)  # noqa: PTH116 (a hundred thousand times)
    except OSError:
        return []
    return [status.st_mtime_ns, status.st_size]


def _read(path: Path) -> Found:
    try:
        record: RunRecord = read_record(path)
    except (OSError, BadRecord) as error:
        return Found(state="bad", reason=str(error))
    kind = record.failure.kind if record.failure else ""
    spec = record.spec
    return Found(state=record.status, kind=kind, reason=record.reason, protocol=spec.protocol, seed=spec.seed)


def _stored(root: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        head, _, body = (root / INDEX_NAME).read_bytes().partition(b"\n")
        if json.loads(head) == {"version": VERSION, "digest": hashlib.sha256(body).hexdigest()}:
            return json.loads(body)
    return {}


def _write(root: Path, found: dict[str, Any]) -> None:
    """Put the index in its place; a folder that cannot be written to does without."""
    body = json.dumps(found, separators=(",", ":")).encode()
    head = json.dumps({"version": VERSION, "digest": hashlib.sha256(body).hexdigest()}).encode()
    temporary = root / f"{INDEX_NAME}.{os.getpid()}.tmp"
    with suppress(OSError):
        try:
            temporary.write_bytes(head + b"\n" + body)
            temporary.replace(root / INDEX_NAME)
        finally:
            temporary.unlink(missing_ok=True)
