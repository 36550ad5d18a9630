"""Clean a results folder: what killed processes left behind, and failed records where that is asked for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import lease
from harness.lease import LEASE_NAME
from harness.records import index
from harness.records.index import IndexEntry
from harness.records.store import KEPT_FILES, PROGRESS_NAME, RECORD_NAME, TRACKING_NAME
from harness.terminal import Advance


@dataclass(frozen=True, slots=True)
class Litter:
    """A file or folder that is no longer needed."""

    path: Path
    what: str
    bytes: int


def litter(root: Path, failed: bool = False, advance: Advance | None = None) -> list[Litter]:
    """What `remove` may delete: stale leases, temporary files, kept files that no record names, states and progress of
    runs that are complete, and with `failed` also failed records, their states and curves with them. Folders that a
    process works on and `corrupt` are left out."""
    items: list[Litter] = []
    for path, record in index.scan(root, advance).items():
        held = lease.read(Path(path))
        if held is None or lease.is_stale(held):
            items += _litter(Path(path), record, failed)
    return items


def _litter(folder: Path, record: IndexEntry, failed: bool) -> Iterator[Litter]:
    state = record.state
    forget = state == "complete" or (failed and state == "failed")
    for path in sorted(folder.iterdir()):
        if path.name == LEASE_NAME:
            yield Litter(path, "stale lease", path.stat().st_size)
        elif path.name.endswith(".tmp"):
            yield Litter(path, "temporary file", path.stat().st_size)
        elif path.name in KEPT_FILES and state != "bad" and path.name not in record.files:
            yield Litter(path, "file of no record", path.stat().st_size)
        elif path.name in ("state", PROGRESS_NAME) and forget:
            yield Litter(path, f"training state of a {state} run", _size(path))
        elif path.name == RECORD_NAME and state == "failed" and failed:
            yield Litter(path, "failed record", path.stat().st_size)
        elif path.name == TRACKING_NAME and state == "failed" and failed:
            yield Litter(path, "curves of a failed run", _size(path))


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def remove(unneeded: list[Litter]) -> list[Litter]:
    """Delete, folder by folder under its lease; returns what was deleted. Folders that a process has taken meanwhile
    stay, and so does what a record written meanwhile makes worth keeping."""
    folders: dict[Path, list[Litter]] = {}
    for item in unneeded:
        folders.setdefault(item.path.parent, []).append(item)
    deleted = []
    for folder, items in folders.items():
        try:
            with lease.acquire(folder):  # takes over a stale one, and leaves none
                record = index.scan_folder(folder)
                now = {(item.path, item.what) for item in _litter(folder, record, failed=True)}
                gone = [item for item in items if item.path.name == LEASE_NAME or (item.path, item.what) in now]
                for item in gone:
                    if item.path.name != LEASE_NAME:
                        _delete(item.path)
        except lease.Taken:
            continue
        deleted += gone
    return deleted


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
