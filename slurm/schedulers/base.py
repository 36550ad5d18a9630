"""What submitting, watching and cancelling ask of a scheduler."""

from __future__ import annotations

import os
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.helpers import clean_env

from harness.children import SAFE
from harness.errors import HarnessError
from slurm.job_payload import Payload
from slurm.profile import Profile
from slurm.submissions import ArrayEntry

if TYPE_CHECKING:  # torch takes seconds, and `sctbench status` needs none of it
    from slurm.job_runner import RunsJob
    from slurm.planning import Array
    from slurm.report_job import ReportJob

    Work = RunsJob | ReportJob

PYTHON = f"{shlex.quote(sys.executable)} {SAFE}"
"""How a job starts Python: it must not import from the folder that it starts in."""

USUAL_LIMIT = 1000
"""Jobs of an array where a scheduler does not say: SLURM's default."""


class ClusterError(HarnessError):
    """A scheduler cannot be reached, or refuses what was asked for; the message quotes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveJob:
    """A job that waits or runs."""

    id: str
    name: str
    """Of its array."""

    runs: bool
    """Whether it has been started."""

    reason: str = ""
    """Why it waits."""

    left: str = ""
    """Time left, as the scheduler writes it."""

    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedJob:
    """How a job ended, by the scheduler's accounting."""

    state: str
    """In the scheduler's own word."""

    cancelled: bool


class Scheduler(ABC):
    """A place that jobs are submitted to. Its methods raise `ClusterError` if it does not answer or refuses."""

    name: ClassVar[str]
    """What profiles, `--scheduler` and the log of submissions call it."""

    job_word: ClassVar[str]
    """What an id stands for, for the user."""

    queues: ClassVar[bool] = True
    """Whether jobs wait in a queue of its own. If not, as many jobs are made as may run at a time."""

    on_this_machine: ClassVar[bool] = False
    """Whether jobs run on the machine that submits, whose device is known."""

    unused: ClassVar[tuple[str, ...]] = ()
    """Keys of a profile that mean nothing to it."""

    def limit(self) -> int:
        """Jobs that one array may have."""
        return sys.maxsize

    def warnings(self, profile: Profile) -> list[str]:
        """What the user should know of a profile before submitting with it."""
        idle = [key for key in self.unused if getattr(profile, key) != getattr(Profile(), key)]
        return [f"scheduler {self.name!r} makes no use of {', '.join(idle)}"] if idle else []

    @abstractmethod
    def submit(self, array: Array, works: Sequence[Work], profile: Profile, folder: Path, after: Sequence[str]) -> str:
        """Submit an array with a job for each of `works`, to start once the arrays and jobs with the ids `after` have
        ended, well or not. Scripts, pickles and logs lie in `folder`. Returns the array's id."""

    @abstractmethod
    def job_id(self, array: ArrayEntry, task: int) -> str:
        """The id of one job of an array whose own id is known."""

    def job_ids(self, array: ArrayEntry) -> list[str]:
        """The id of each job of an array; none while the array's own is not known."""
        return [self.job_id(array, task) for task in range(max(1, len(array.tasks)))] if array.job else []

    @abstractmethod
    def live(self, arrays: Iterable[ArrayEntry]) -> dict[str, LiveJob]:
        """Jobs of those arrays that wait or run, by id. An array whose submission was cut off may be given its id."""

    def ended(self, arrays: Iterable[ArrayEntry]) -> dict[str, EndedJob]:
        """How jobs of those arrays ended, by id, as far as it is known."""
        return {}

    @abstractmethod
    def cancel(self, array: ArrayEntry, jobs: Sequence[str]) -> None:
        """Cancel some of an array's jobs; those that have ended meanwhile are no error."""

    def script(self, array: Array, profile: Profile, folder: Path, after: Sequence[str]) -> str:
        """What `submit` would hand to the scheduler, for the user to read; empty if there is nothing to show."""
        return ""

    def log_name(self, job: str) -> str:
        """The name of a job's log in the array's folder."""
        return JobPaths(".", job_id=job).stdout.name

    def payload(self, folder: Path, job: str) -> Payload:
        """What was submitted as that job."""
        payload = DelayedSubmission.load(JobPaths(folder, job_id=job).submitted_pickle).function
        assert isinstance(payload, Payload)
        return payload


@contextmanager
def outside_jobs() -> Iterator[None]:
    """Hide the variables of the job that this runs in, if any: a job submitted there would inherit its shape.

    Outside of jobs they stay, for they are the user's or the site's (SBATCH_ACCOUNT); SLURM_CONF always stays.
    """
    config = os.environ.get("SLURM_CONF")
    with clean_env() if "SLURM_JOB_ID" in os.environ else nullcontext():
        if config is not None:
            os.environ["SLURM_CONF"] = config
        yield
