"""What SLURM says: `squeue` on jobs that live, `sacct` on how others ended, `scontrol` on limits.

Only `squeue` decides whether a job lives. `sacct` lags by seconds, knows nothing of an array's task that was cancelled
while it waited, and calls a job ended by a node failure that has long been queued again.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slurm.errors import ClusterError

ATTEMPTS = 3
"""Calls of a command before SLURM is given up; a controller that restarts answers again after seconds."""

SLICE = 200
"""Names or ids in one call."""

USUAL_LIMIT = 1000
"""Jobs of an array by SLURM's default MaxArraySize."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A job that waits or runs."""

    id: str
    """`123`, or `123_4` for an array's task."""

    name: str
    state: str
    """PENDING, RUNNING, COMPLETING, ..."""

    reason: str
    """Why it waits."""

    left: str
    """Time left, as SLURM writes it."""

    node: str

    @property
    def runs(self) -> bool:
        """Whether it has a node."""
        return self.state not in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")


def call(*command: str, attempts: int = ATTEMPTS) -> str:
    """Output of a SLURM command. `ClusterError` with its words if it fails each time."""
    problem = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(2)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except FileNotFoundError:
            raise ClusterError(
                f"{command[0]} is not here: run this on a login node of a SLURM cluster, or with `--cluster local`"
            ) from None
        except subprocess.TimeoutExpired:
            problem = "no answer after 60 s"
            continue
        if done.returncode == 0:
            return done.stdout
        problem = done.stderr.strip() or f"exit status {done.returncode}"
    raise ClusterError(f"{command[0]} failed: {problem}")


def _sliced(values: Iterable[str]) -> list[str]:
    found = sorted(set(values))
    return [",".join(found[start : start + SLICE]) for start in range(0, len(found), SLICE)]


def live(names: Iterable[str]) -> dict[str, Live]:
    """Jobs of those names that wait or run, by id; an array's tasks each by their own."""
    found = {}
    for part in _sliced(names):
        text = call("squeue", "--noheader", "--array", f"--name={part}", "--format=%i|%j|%T|%r|%L|%N")
        for line in text.splitlines():
            if "|" in line:  # a federation's heading has none
                job = _row(line)
                found[job.id] = job
    return found


def _row(line: str) -> Live:
    try:
        id_, name, state, reason, left, node = (field.strip() for field in line.split("|"))
    except ValueError:
        raise ClusterError(f"squeue gave a line that cannot be read: {line!r}") from None
    return Live(id=id_, name=name, state=state, reason=reason, left=left, node=node)


def ended(ids: Iterable[str]) -> dict[str, str]:
    """The last state of jobs that accounting knows, by id: COMPLETED, FAILED, CANCELLED, TIMEOUT, NODE_FAIL, ...

    Empty where the cluster keeps no accounts.
    """
    found: dict[str, str] = {}
    for part in _sliced(ids):
        try:
            text = call("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", part, attempts=1)
        except ClusterError:
            return found
        for line in text.splitlines():
            job, _, state = line.partition("|")
            found[job] = state.split()[0] if state.strip() else ""  # `CANCELLED by 1000`
    return found


def max_array_size() -> int:
    """Jobs that an array may have: SLURM's MaxArraySize is one more than the highest index."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"))
    return max(1, int(match[1]) - 1) if match else USUAL_LIMIT


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs. Those that have ended meanwhile are no error."""
    for start in range(0, len(ids), SLICE):
        call("scancel", "--quiet", *ids[start : start + SLICE])
