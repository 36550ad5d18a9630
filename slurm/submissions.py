"""The log of submissions: which run is in which job. Each has a folder with one JSON file, written atomically."""

from __future__ import annotations

import fcntl
import json
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.paths import write_atomically

SCHEMA = 2
"""Version of the file's layout. Version 1 named the scheduler beside the profile, as `cluster`."""

FILE_NAME = "submission.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEntry:
    """A submitted run."""

    key: str
    """Run id, or `planning.key_of` where the trials decide the run."""

    suite: str
    task: str
    method: str
    seed: int
    protocol: str
    seconds: float | None = None
    """Estimated duration."""

    trials: list[str] = field(default_factory=list)
    """Run ids of the trials that decide it."""

    budget: int = 0
    """Trials that were allowed."""

    searched: list[str] = field(default_factory=list)
    """What the trials search: recipe fields and settings of the method."""


@dataclass(slots=True, kw_only=True)
class ArrayEntry:
    """A submitted array."""

    name: str
    """The jobs' name for the scheduler, known before the id is: it finds jobs whose submission was cut off."""

    tasks: list[list[str]]
    """Keys of the runs of each job; empty for the job that writes the tables."""

    job: str = ""
    """The scheduler's id of the array; `Scheduler.job_ids` gives those of its jobs."""

    cancelled: list[int] = field(default_factory=list)
    """Tasks that the user cancelled: SLURM keeps no trace of one that was still waiting."""


@dataclass(slots=True, kw_only=True)
class Submission:
    """One call of `sctbench submit`."""

    id: str
    time: str
    code: dict[str, Any]
    """State of the code at submission."""

    profile: dict[str, Any]
    """`Profile.as_dict`."""

    runs: list[RunEntry]
    arrays: list[ArrayEntry]

    @property
    def scheduler(self) -> str:
        return str(self.profile["scheduler"])

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Submission:
        """A file's content, of this version or the one before. Raises `ValueError`, `TypeError` or `KeyError`."""
        values = dict(values)
        schema = values.pop("schema")
        if schema == 1:
            values["profile"] = {"scheduler": values.pop("cluster"), **values["profile"]}
        elif schema != SCHEMA:
            raise ValueError("written by another version")
        runs = [RunEntry(**run) for run in values.pop("runs")]
        return cls(runs=runs, arrays=[ArrayEntry(**array) for array in values.pop("arrays")], **values)


def by_scheduler(submissions: Iterable[Submission]) -> dict[str, list[ArrayEntry]]:
    """All arrays of some submissions, by the name of the scheduler."""
    unique = {submission.id: submission for submission in submissions}
    arrays: dict[str, list[ArrayEntry]] = {}
    for submission in unique.values():
        arrays.setdefault(submission.scheduler, []).extend(submission.arrays)
    return arrays


def new_id() -> str:
    """A name that sorts by time."""
    return datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f-") + secrets.token_hex(1)


class Log:
    """All submissions of a results folder, below `root`/slurm/."""

    def __init__(self, root: Path) -> None:
        self.root = root / "slurm"
        self.unreadable: list[Path] = []
        """Files that were skipped."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the log's lock: two commands at once must not submit the same runs."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def folder(self, array: str) -> Path:
        """Scripts, pickles and logs of the jobs of an array, given its name."""
        return self.root.joinpath(*array.split("."))

    def write(self, submission: Submission) -> None:
        text = json.dumps({"schema": SCHEMA, **asdict(submission)}, indent=1) + "\n"
        write_atomically(self.root / submission.id / FILE_NAME, lambda file: file.write(text.encode()))

    def files(self) -> list[Path]:
        """The submissions' files, oldest first."""
        return sorted(self.root.glob(f"*/{FILE_NAME}"))

    def read(self) -> list[Submission]:
        """All submissions, oldest first; files that cannot be read are skipped and listed in `unreadable`."""
        submissions = []
        for path in self.files():
            try:
                submissions.append(Submission.from_dict(json.loads(path.read_text())))
            except (OSError, ValueError, TypeError, KeyError):
                self.unreadable.append(path)
        return submissions
