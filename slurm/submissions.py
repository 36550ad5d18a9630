"""The log of submissions: which run is in which job. One folder and one JSON file for each, written atomically."""

from __future__ import annotations

import fcntl
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.paths import write_atomically

SCHEMA = 1
"""Version of the file's layout."""

FILE_NAME = "submission.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as the log names it."""

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
    """What the trials search: recipe fields and knobs."""


@dataclass(slots=True, kw_only=True)
class Sent:
    """An array as it was submitted."""

    name: str
    """The jobs' name in SLURM. It is known before the id is: with it a job is found whose submission was cut off."""

    tasks: list[list[str]]
    """Keys of the runs of each job; empty for the job that writes the tables."""

    job: str = ""
    """SLURM's id of the array; for local execution, process ids of the jobs, joined by `+`."""

    cancelled: list[int] = field(default_factory=list)
    """Tasks that the user cancelled: of one that was still waiting, SLURM keeps no trace."""

    def job_id(self, task: int) -> str:
        """The id of a job; empty while the array's own is not known."""
        if not self.job or len(self.tasks) < 2:
            return self.job
        return self.job.split("+")[task] if "+" in self.job else f"{self.job}_{task}"

    def job_ids(self) -> list[str]:
        """The id of each job; none while the array's own is not known."""
        return [self.job_id(task) for task in range(max(1, len(self.tasks)))] if self.job else []


@dataclass(slots=True, kw_only=True)
class Submission:
    """One call of `sctbench submit`."""

    id: str
    cluster: str
    """`slurm` or `local`."""

    time: str
    code: dict[str, Any]
    """State of the code at submission."""

    profile: dict[str, Any]
    runs: list[Run]
    arrays: list[Sent]


def new_id() -> str:
    """A name that sorts by time."""
    return datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f-") + secrets.token_hex(1)


class Log:
    """All submissions of a results folder, below `root`/slurm/."""

    def __init__(self, root: Path) -> None:
        self.root = root / "slurm"
        self.unreadable: list[Path] = []
        """Files that were passed over."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the log's lock: two commands at once must not submit the same runs."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def folder(self, submission: Submission, array: Sent) -> Path:
        """Scripts, pickles and logs of an array's jobs."""
        return self.root / submission.id / array.name.rpartition(".")[2]

    def write(self, submission: Submission) -> None:
        """Put a submission's file in its place."""
        text = json.dumps({"schema": SCHEMA, **asdict(submission)}, indent=1) + "\n"
        write_atomically(self.root / submission.id / FILE_NAME, lambda file: file.write(text.encode()))

    def files(self) -> list[Path]:
        """The submissions' files, oldest first."""
        return sorted(self.root.glob(f"*/{FILE_NAME}"))

    def read(self) -> list[Submission]:
        """All submissions, oldest first; what cannot be read is passed over and kept in `unreadable`."""
        found = []
        for path in self.files():
            try:
                found.append(_parse(json.loads(path.read_text())))
            except (OSError, ValueError, TypeError, KeyError):
                self.unreadable.append(path)
        return found


def _parse(values: dict[str, Any]) -> Submission:
    if values.pop("schema") != SCHEMA:
        raise ValueError("written by another version")
    runs = [Run(**run) for run in values.pop("runs")]
    return Submission(runs=runs, arrays=[Sent(**array) for array in values.pop("arrays")], **values)
