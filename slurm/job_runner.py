"""What a job does: runs, one after the other, that survive whatever happens to the job.

State lies in the run folders, where the trainer puts it. When the job is told to make room (submitit's signal, USR2
by default), the run under way saves its state at the next step boundary, and only then does submitit's handler ask
SLURM to queue the job again. On SIGTERM alone the state is saved and the job waits to be ended: it may have been
cancelled, so it must not come back on its own; and a preempted one is queued again by SLURM only if it has not ended
by itself before.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from submitit.core.job_environment import JobEnvironment

from harness import environment, lease
from harness.errors import Interrupted
from harness.execution import worker
from harness.execution.progress import describe
from harness.execution.worker import Busy, Setup
from harness.plans.tuning import WorkItem, representative_spec
from harness.records.store import Store
from harness.schema.failures import CLASSES, FailureClass
from harness.schema.record import RunRecord
from harness.schema.spec import RunSpec
from slurm.report_job import wait_for

GRACE_SECONDS = 20
"""Time that a run has to reach its next step boundary before the job queues up again without it."""

RETRY_SECONDS = 5.0
"""Time between two looks at runs that other processes hold."""

WAIT_SECONDS = lease.STALE_SECONDS + 60
"""How long a job waits when others hold all the runs that it has left: a lease that nobody keeps alive is stale by
then."""

HOLD_SECONDS = 600
"""How long a job that has received SIGTERM and saved its state waits to be ended."""

RESTARTS = 3
"""How often a job whose GPU fails is queued again."""


class Unfinished(RuntimeError):
    """A job ended with runs not done; the message says which and why."""


class Requeue:
    """Submitit's signal, held back until the run under way has saved its state."""

    def __init__(self) -> None:
        self.number = signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]
        self.asked = False
        self._submitit = signal.getsignal(self.number)

    def listen(self) -> None:
        """From now on the signal first asks the run to stop."""
        signal.signal(self.number, self._ask)
        signal.signal(signal.SIGALRM, self._wait_no_longer)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        worker.STOP.request(f"received {self.number.name}")
        signal.alarm(GRACE_SECONDS)

    def _wait_no_longer(self, number: int, frame: FrameType | None) -> None:
        try:
            self.now()
        except Exception as error:  # it must not look like a failure of the run that it comes up in
            raise SystemExit(f"not queued again: {error}") from None

    def hold(self) -> None:
        """Queue the job again if that was asked for, or is asked for in the time that SLURM leaves after SIGTERM."""
        end = time.monotonic() + (HOLD_SECONDS if environment.slurm_job() else 0)
        while not self.asked and time.monotonic() < end:
            _sleep(0.5)
        if self.asked:
            self.now()

    def now(self) -> None:
        """Let submitit queue the job again, which ends this process. Raises what its handler does: after too many
        time-outs, or where the node has no `scontrol`."""
        signal.alarm(0)
        if callable(self._submitit):
            self._submitit(self.number, None)


def sweep() -> None:
    """Delete submitit's temporary files that a kill has left: with one there it could not save, nor queue up again.

    Nothing to do in a job that was not started by submitit.
    """
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return
    paths = JobEnvironment().paths
    for path in (paths.submitted_pickle, paths.result_pickle):
        path.with_name(path.name + ".save_tmp").unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsJob:
    """Does runs."""

    setup: Setup
    items: tuple[WorkItem, ...]
    code: dict[str, Any] = field(default_factory=dict)
    """State of the code at submission."""

    after_processes: tuple[int, ...] = ()
    """Processes of this machine that must have ended, where no scheduler knows dependencies."""

    def __call__(self) -> None:
        """Do the runs. Raises `Unfinished` if some failed or are not done, `Interrupted` after SIGTERM."""
        sweep()
        environment.submitted_with(self.code)
        requeue = Requeue()
        try:
            worker.stop_on_signals()
            requeue.listen()
            wait_for(self.after_processes, worker.STOP.check)
            worker.init_worker(self.setup)
            problems = self._work(requeue)
        except Interrupted as stop:
            say(f"stopped with its state saved: {stop}")
            requeue.hold()
            raise
        if problems:
            raise Unfinished("; ".join(problems))

    def _work(self, requeue: Requeue) -> list[str]:
        """Do all runs, asking again for those that others hold; returns what went wrong, in words."""
        problems: list[str] = []
        waiting, moved = list(self.items), time.monotonic()
        while waiting:
            held: list[tuple[WorkItem, str]] = []
            for item in waiting:
                try:
                    outcome = self._do(item)
                except OSError as error:  # a record that cannot be read: asked again, as for runs that others hold
                    outcome = f"{describe(representative_spec(item))}: {error}"
                if isinstance(outcome, str):
                    held.append((item, outcome))
                    continue
                moved = time.monotonic()
                if outcome.failure:
                    problems.append(f"{describe(outcome.spec)} failed: {outcome.reason}")
                    kind = CLASSES[outcome.failure.kind]
                    if kind.ends_process or kind.ends_all:
                        return self._end(kind, requeue, problems)
            if held and time.monotonic() - moved > WAIT_SECONDS:
                return problems + [reason for _, reason in held]
            waiting = [item for item, _ in held]
            if waiting:
                _sleep(RETRY_SECONDS)
                worker.STOP.check()
        return problems

    def _end(self, kind: FailureClass, requeue: Requeue, problems: list[str]) -> list[str]:
        """The other runs would fail in the same way in this process: queue up again, perhaps for another node."""
        if kind.ends_process and int(os.environ.get("SLURM_RESTART_COUNT", 0)) < RESTARTS:
            requeue.now()
        return [*problems, f"the runs after it were not started: {kind.about}"]

    def _do(self, item: WorkItem) -> RunRecord | str:
        """Do one run; returns the reason if it cannot be done now."""
        read = Store(self.setup.root).read
        spec = item if isinstance(item, RunSpec) else item.spec(read)
        if spec is None:
            return f"{describe(representative_spec(item))} waits for trials that have no record"
        done = worker.settled(spec, self.setup)
        earlier = done or read(spec)
        if earlier is not None and (done or _failed_here(earlier)):
            say(f"{describe(spec)}  {earlier.status} already")
            return earlier
        outcome = worker.execute_run(item, self.setup)
        if isinstance(outcome, Busy):
            return f"{describe(spec)} is held by {outcome.holder}"
        say(f"{describe(spec)}  {outcome.status}  {outcome.reason}")
        return outcome


_sleep = time.sleep


def _failed_here(record: RunRecord) -> bool:
    """Whether this very job, before it was queued again, had the run fail in a way that it would fail again."""
    mine, theirs = environment.slurm_job(), record.environment.get("slurm", {})
    same = bool(mine) and theirs.get("job") == mine["job"]
    return same and record.failure is not None and not CLASSES[record.failure.kind].again


def say(text: str) -> None:
    """A line in the job's log."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)
