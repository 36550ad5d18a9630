"""SLURM, seen from a login node: `sbatch` by submitit, `squeue` for live jobs, `sacct` for how others ended.

Only `squeue` decides whether a job lives. `sacct` lags by seconds, knows nothing of an array's task that was cancelled
while it waited, and calls a job ended by a node failure that has long been queued again.
"""

from __future__ import annotations

import pickle
import re
import shlex
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import _make_sbatch_string

from slurm.job_payload import Payload
from slurm.profile import Profile
from slurm.schedulers.base import PYTHON, USUAL_LIMIT, ClusterError, EndedJob, LiveJob, Scheduler, outside_jobs
from slurm.submissions import ArrayEntry

if TYPE_CHECKING:
    from slurm.planning import Array
    from slurm.schedulers.base import Work

_sleep = time.sleep

ATTEMPTS = 3
"""Calls of a command before SLURM is given up; a controller that restarts answers again after seconds."""

SLICE = 200
"""Names or ids in one call."""

SHORT_MINUTES = 10
"""Up to this time limit submitit takes every preemption for a time-out."""

REPORT = {"time": 30, "signal_delay": 120, "gpus": 0, "cpus": 1, "mem": None, "constraint": None}
"""What the job that writes the tables asks for, whatever the profile says."""

WITHOUT = "Without a cluster, `--scheduler local` does the same on this machine"

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
"""States in which a job has no node."""


class Slurm(Scheduler):
    """The cluster that this machine is a login node of."""

    name = "slurm"
    job_word = "SLURM job"

    def limit(self) -> int:
        """SLURM's MaxArraySize is one more than the highest index."""
        match = re.search(r"MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"))
        return max(1, int(match[1]) - 1) if match else USUAL_LIMIT

    def warnings(self, profile: Profile) -> list[str]:
        if profile.time > SHORT_MINUTES:
            return []
        return [
            f"time limit {profile.time} min: with {SHORT_MINUTES} min or less every preemption counts as a time-out, "
            f"and after {profile.requeues} of them (`requeues`) a job is not queued again"
        ]

    def submit(self, array: Array, works: Sequence[Work], profile: Profile, folder: Path, after: Sequence[str]) -> str:
        """One call of sbatch, whatever the number of jobs."""
        with outside_jobs():
            try:
                executor = submitit.SlurmExecutor(folder, max_num_timeout=profile.requeues, python=PYTHON)
                executor.update_parameters(**parameters(array, profile, after))
                jobs = executor.submit_array([Payload(pickle.dumps(work)) for work in works])
            except (FailedJobError, FailedSubmissionError) as error:
                raise ClusterError(f"sbatch refused {array.name}: {str(error).strip()}") from None
            except RuntimeError as error:  # no srun
                raise ClusterError(f"{error} {WITHOUT}") from None
        return _array_id(jobs[0].job_id)

    def job_id(self, array: ArrayEntry, task: int) -> str:
        """`123_4`; `123` for the only job of its array."""
        return array.job if len(array.tasks) < 2 else f"{array.job}_{task}"

    def live(self, arrays: Iterable[ArrayEntry]) -> dict[str, LiveJob]:
        """By name, which is known even of jobs whose submission was cut off; the array is then given its id."""
        arrays = list(arrays)
        jobs: dict[str, LiveJob] = {}
        for names in _sliced(array.name for array in arrays):
            text = call("squeue", "--noheader", "--array", f"--name={names}", "--format=%i|%j|%T|%r|%L|%N")
            # The heading of a federation has no bar.
            jobs |= {job.id: job for job in (_live_job(line) for line in text.splitlines() if "|" in line)}
        ids = {job.name: _array_id(job.id) for job in jobs.values()}
        for array in arrays:
            array.job = array.job or ids.get(array.name, "")
        return jobs

    def ended(self, arrays: Iterable[ArrayEntry]) -> dict[str, EndedJob]:
        """COMPLETED, FAILED, CANCELLED, TIMEOUT, NODE_FAIL, ...; empty where the cluster keeps no accounts."""
        jobs: dict[str, EndedJob] = {}
        for ids in _sliced(array.job for array in arrays if array.job):
            try:
                text = call("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ids, attempts=1)
            except ClusterError:
                return jobs
            for line in text.splitlines():
                job, _, state = line.partition("|")
                word = state.partition(" ")[0]  # of `CANCELLED by 1000`
                jobs[job] = EndedJob(state=word, cancelled=word.startswith("CANCELLED"))
        return jobs

    def cancel(self, array: ArrayEntry, jobs: Sequence[str]) -> None:
        """A whole array is cancelled by its own id."""
        ids = [array.job] if len(jobs) == len(array.tasks) else jobs
        for start in range(0, len(ids), SLICE):
            call("scancel", "--quiet", *ids[start : start + SLICE])

    def script(self, array: Array, profile: Profile, folder: Path, after: Sequence[str]) -> str:
        """The batch script that submitit writes; needs no SLURM."""
        command = f"{PYTHON} -u -m submitit.core._submit {shlex.quote(str(folder))}"
        count = len(array.jobs) if len(array.jobs) > 1 else None
        return _make_sbatch_string(command=command, folder=folder, map_count=count, **parameters(array, profile, after))


SCHEDULER = Slurm()


def call(*command: str, attempts: int = ATTEMPTS) -> str:
    """Output of a SLURM command. `ClusterError` with its words if it fails each time."""
    problem = ""
    for attempt in range(attempts):
        if attempt:
            _sleep(2)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except FileNotFoundError:
            raise ClusterError(f"there is no {command[0]} here: use a login node of the cluster. {WITHOUT}") from None
        except subprocess.TimeoutExpired:
            problem = "no answer after 60 s"
            continue
        if done.returncode == 0:
            return done.stdout
        problem = done.stderr.strip() or f"exit status {done.returncode}"
    raise ClusterError(f"{command[0]} failed: {problem}")


def _array_id(job: str) -> str:
    return job.partition("_")[0]


def _sliced(values: Iterable[str]) -> list[str]:
    unique = sorted(set(values))
    return [",".join(unique[start : start + SLICE]) for start in range(0, len(unique), SLICE)]


def _live_job(line: str) -> LiveJob:
    try:
        id_, name, state, reason, left, node = (field.strip() for field in line.split("|"))
    except ValueError:
        raise ClusterError(f"squeue printed a line that cannot be read: {line!r}") from None
    return LiveJob(id=id_, name=name, runs=state not in WAITING, reason=reason, left=left, node=node)


def parameters(array: Array, profile: Profile, after: Sequence[str]) -> dict[str, Any]:
    """Parameters of submitit's executor for an array."""
    if not array.jobs:
        partition = profile.report_partition or profile.partition
        profile = Profile.from_dict(profile.as_dict() | REPORT | {"partition": partition})
    given = {
        "job_name": array.name,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "time": profile.time,
        "gpus_per_node": profile.gpus or None,
        "cpus_per_task": profile.cpus,
        # Since 22.05 srun does not take the number over from sbatch.
        "srun_args": ["--cpus-per-task", str(profile.cpus)],
        "mem": profile.mem,
        "constraint": profile.constraint,
        "setup": list(profile.setup) or None,
        "signal_delay_s": profile.signal_delay,
        "array_parallelism": array.parallel or max(1, len(array.jobs)),
        # Of a single task the whole array is waited for: 5,000 ids would be too long for a line.
        "dependency": ":".join(["afterany", *dict.fromkeys(map(_array_id, after))]) if after else None,
        "stderr_to_stdout": True,
        # Whatever the site's default: a job must be able to queue up again.
        "additional_parameters": {"requeue": True, **profile.sbatch},
    }
    return {key: value for key, value in given.items() if value is not None}
