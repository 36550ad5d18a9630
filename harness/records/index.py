"""What is on disk of every run of a results folder, for `status` and `clean`: 100,000 records in seconds.

A record is read and checked once; what matters of it is kept in a cache, `.runs.json` beside `runs/`, and taken from
there while the file's time and size are the same.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from pathlib import Path

from harness.records.files import UNREAD, read_cache, run_folders, stamp, write_cache
from harness.records.store import RECORD_NAME, read_record
from harness.schema.record import SCHEMA, BadRecord, RunRecord
from harness.terminal import Advance

INDEX_NAME = ".runs.json"

VERSION = f"{SCHEMA}/2"
"""Of the records and of `Found`."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a record file says, as far as `status` needs it."""

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
    known, runs = read_cache(root / INDEX_NAME, VERSION) or {}, str(root / "runs")
    stamps = {name: stamp(f"{runs}/{name}/{RECORD_NAME}") for name in run_folders(root)}
    facts = {name: known[name] for name, at in stamps.items() if at and name in known and known[name][:2] == [*at]}
    unread = [(name, at) for name, at in stamps.items() if at and name not in facts]
    for number, (name, at) in enumerate(unread, 1):
        facts[name] = [*at, *astuple(_read(Path(runs, name, RECORD_NAME)))]
        if advance:
            advance(number, len(unread))
    if unread or len(facts) != len(known):
        lasting = {name: fact for name, fact in facts.items() if not str(fact[4]).startswith(UNREAD)}
        write_cache(root / INDEX_NAME, VERSION, lasting)
    return {name: Place(f"{runs}/{name}", Found(*facts[name][2:]) if name in facts else None) for name in stamps}


def look(folder: Path) -> Place:
    """One run's folder as it is now."""
    return Place(str(folder), _read(folder / RECORD_NAME) if (folder / RECORD_NAME).exists() else None)


def _read(path: Path) -> Found:
    try:
        record: RunRecord = read_record(path)
    except OSError as error:
        return Found(state="bad", reason=f"{UNREAD}: {error.strerror}")
    except BadRecord as error:
        return Found(state="bad", reason=str(error))
    kind = record.failure.kind if record.failure else ""
    spec = record.spec
    return Found(
        state=record.status,
        kind=kind,
        reason=record.reason,
        protocol=spec.protocol,
        seed=spec.seed,
        source=record.method_source,
    )
