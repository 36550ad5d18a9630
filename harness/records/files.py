"""Where the records of a results folder lie, and caches beside them of what was read.

A cache is one file: a line with its version and the body's digest, then the body as JSON. It is made again when it is
damaged or of another version, and it may be deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from operator import methodcaller
from pathlib import Path
from typing import Any

from harness.paths import write_atomically
from harness.schema.failures import is_passing

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
