"""The store: one folder per run, completion is a valid record in it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import methodcaller
from pathlib import Path

from harness.errors import HarnessError
from harness.lease import LEASE_NAME
from harness.paths import write_atomically
from harness.schema.record import BadRecord, RunRecord, StoredFile
from harness.schema.spec import RunSpec

RECORD_NAME = "record.json"
PROGRESS_NAME = "progress.json"
TRACKING_NAME = "tracking"
PREDICTIONS_NAME = "predictions.safetensors"
WEIGHTS_NAME = "weights.safetensors"

KEPT_FILES = (PREDICTIONS_NAME, WEIGHTS_NAME)
"""What may lie beside a record and be named in it."""

CORRUPT, SUPERSEDED = "corrupt", "superseded"
"""Folders beside `runs`: of files that are no records, and of results that were replaced by others."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record file that was set aside."""

    path: Path
    reason: str


def read_record(path: Path, spec: RunSpec | None = None) -> RunRecord:
    """The record in a file, of that run if one is given. Raises `BadRecord`, or `OSError` if it cannot be read."""
    try:
        record = RunRecord.from_json(path.read_text())
    except UnicodeDecodeError as error:
        raise BadRecord(f"torn: {error}") from None
    if spec is not None and record.spec.run_id != spec.run_id:
        raise BadRecord(f"of another run ({record.spec.run_id})")
    return record


def read_stored(folder: Path, record: RunRecord, name: str, why_not: str = "") -> bytes:
    """The content of a file that the record of the run in `folder` names, compared with its digest.

    `HarnessError` if the record names no such file (`why_not`: what to do), or it is gone, cannot be read, or was
    changed.
    """
    path, stored = folder / name, record.files.get(name)
    if stored is None:
        raise HarnessError(f"{folder}: the run kept no {name}. {why_not}".rstrip(" ."))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise HarnessError(f"{path}: the record names it, but it cannot be read ({error.strerror})") from None
    if StoredFile.of(content) != stored:
        raise HarnessError(f"{path}: altered: its digest is not that in the record")
    return content


class Store:
    """Runs below `root`/runs/<suite>/<task>/<method>-<run id>/."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, spec: RunSpec) -> Path:
        return self.root / "runs" / spec.suite / spec.task / f"{spec.method}-{spec.run_id}"

    def write(self, record: RunRecord, files: Mapping[str, bytes] | None = None) -> Path:
        """Put the files that the record names and then the record in their place, each whole or not at all. A result
        that stood there is kept below `superseded` with its files.

        `files`: content by name. At no time does a record in its place name a file that is not the one it was written
        with: the old record goes before the first of its files does.
        """
        path, files = self.folder(record.spec) / RECORD_NAME, files or {}
        if record.files.keys() != files.keys():
            raise ValueError(f"the record names the files {list(record.files)}, and given are {list(files)}")
        old = self.complete(record.spec)
        if old and old != record:
            self._keep_superseded(path.parent, old)
        if old and old.files:
            path.unlink()
        for name in KEPT_FILES:
            if name in files:
                write_atomically(path.with_name(name), methodcaller("write", files[name]))
            else:
                path.with_name(name).unlink(missing_ok=True)
        write_atomically(path, methodcaller("write", record.to_json().encode()))
        return path

    def _keep_superseded(self, folder: Path, old: RunRecord) -> None:
        """Copies of a run's record and of its files in a folder below `superseded`, the record last."""
        to = self._aside(folder, SUPERSEDED)
        to.mkdir()
        for name in (*old.files, RECORD_NAME):
            with suppress(FileNotFoundError):  # a file that the user deleted
                _copy(folder / name, to / name)

    def read(self, spec: RunSpec) -> RunRecord | None:
        """The run's record, or None if there is no valid one. `OSError` if there is one that cannot be read."""
        try:
            return read_record(self.folder(spec) / RECORD_NAME, spec)
        except (FileNotFoundError, NotADirectoryError, BadRecord):
            return None

    def complete(self, spec: RunSpec) -> RunRecord | None:
        """The run's valid record of success, if there is one."""
        record = self.read(spec)
        return record if record is not None and record.status == "complete" else None

    def clear_place(self, spec: RunSpec) -> None:
        """Make the run's folder fit for a new record; only for the holder of its lease.

        Left-over temporary files are deleted. A record that is torn, altered or of another run is moved to `corrupt`,
        with the reason beside it. `HarnessError` for one that another version of this program wrote.
        """
        folder = self.folder(spec)
        for temporary in folder.glob(".*.tmp"):
            if not temporary.name.startswith(f".{LEASE_NAME}"):  # others may be about to ask for the lease
                temporary.unlink(missing_ok=True)
        path = folder / RECORD_NAME
        try:
            read_record(path, spec)
        except FileNotFoundError:
            return
        except BadRecord as error:
            if error.whole:
                raise HarnessError(f"{path}: {error}. It is left alone: use that version, or another --out") from None
            to, note = self._aside(folder, CORRUPT), f"{path.relative_to(self.root)}: {error}\n"
            write_atomically(to.with_name(f"{to.name}-record.reason.txt"), methodcaller("write", note.encode()))
            path.replace(to.with_name(f"{to.name}-{RECORD_NAME}"))

    def _aside(self, run: Path, folder: str) -> Path:
        """A place in a folder beside `runs`, under a name that says which run was put there and when."""
        when = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        to = self.root / folder / "-".join([*run.relative_to(self.root / "runs").parts, when])
        to.parent.mkdir(exist_ok=True)
        return to


def _copy(path: Path, to: Path) -> None:
    """A second name for a file that will be replaced, not written to; a copy where there can be no second name."""
    try:
        to.hardlink_to(path)
    except FileNotFoundError:
        raise
    except OSError:
        content = path.read_bytes()
        write_atomically(to, methodcaller("write", content))
