"""What is on disk of every run of a results folder, for `status` and `clean`: 100,000 records in seconds.

A record is read and checked once; what matters of it is kept in `.runs.json` beside `runs/`, and taken from there while
the file's time and size are the same. That file is a cache: damaged or of another version it is made again, and it may
be deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.record import SCHEMA, BadRecord, RunRecord
from harness.store import RECORD_NAME, read_record
from harness.terminal import Advance

INDEX_NAME = ".runs.json"

VERSION = f"{SCHEMA}/1"
"""Of the records and of `Found`."""


@dataclass(frozen=True, slots=True, kw_only=True)
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
    """A run's folder and the record in it, if there is one."""

    folder: Path
    found: Found | None

    @property
    def suite(self) -> str:
        """The suite, from the folder's path."""
        return self.folder.parent.parent.name

    @property
    def task(self) -> str:
        """The task, likewise."""
        return self.folder.parent.name

    @property
    def method(self) -> str:
        """The method, from the folder's name."""
        return self.folder.name.rpartition("-")[0]


def places(root: Path, advance: Advance | None = None) -> dict[str, Place]:
    """All run folders below `root`, by their path below `root`/runs. `advance` is told how many records of how many
    new ones have been read."""
    known = _stored(root)
    found: dict[str, Any] = {}
    unread: list[tuple[str, list[int]]] = []
    for name in _run_folders(root / "runs"):
        stamp = _stamp(root / "runs" / name / RECORD_NAME)
        if stamp and known.get(name, [None])[0] != stamp:
            unread.append((name, stamp))
        found[name] = known[name] if stamp and name in known else [stamp, None]
    for number, (name, stamp) in enumerate(unread, 1):
        found[name] = [stamp, asdict(_read(root / "runs" / name / RECORD_NAME))]
        if advance:
            advance(number, len(unread))
    if found != known:
        _write(root, found)
    return {name: Place(root / "runs" / name, _found(facts)) for name, (_, facts) in found.items()}


def _found(facts: dict[str, Any] | None) -> Found | None:
    return Found(**facts) if facts else None


def _run_folders(runs: Path) -> Iterator[str]:
    """`suite/task/run` of every run folder, in order."""
    names = [""]
    for _ in range(3):
        names = [f"{name}/{entry}".lstrip("/") for name in names for entry in _subfolders(runs / name)]
    yield from names


def _subfolders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []


def _stamp(path: Path) -> list[int] | None:
    """Modification time in ns and size of a file; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
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
