"""Local execution: worker processes, one per GPU or per CPU core, that do the runs of a plan.

On a CPU every worker computes with one thread: for models of this size several runs side by side are faster than one
run on all cores, and a result does not depend on how many cores there are.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import torch

from harness import children
from harness.errors import USER_ERRORS, HarnessError, Interrupted
from harness.execution import worker
from harness.execution.worker import Busy, Setup
from harness.plans.stages import Waiting
from harness.plans.tuning import TunedRun, WorkItem, representative_spec, resolve
from harness.records.store import Store
from harness.schema.failures import CLASSES, FailureClass
from harness.schema.record import RunRecord
from harness.schema.spec import RunSpec
from harness.training.callbacks import Progress

Listener = Callable[[RunSpec, Progress | RunRecord | Busy], None]
"""Called with each run's progress, at last with its record, and when somebody else is at it."""

READY = "ready"
"""What a worker says before anything else; another text is the reason why it cannot work."""

RETRY_SECONDS = 2.0
"""Time until it is asked again whether a run that somebody else was at is done."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How an execution ended, beside the records."""

    interrupted: bool = False
    """Whether it was asked to stop before all was done."""

    ended_by: FailureClass | None = None
    """The failure that the runs not started would have met too."""

    not_started: int = 0


def worker_devices(device: torch.device, jobs: int | None) -> list[str]:
    """The device of each worker: GPUs in turn, or as many CPU workers as there are cores to use."""
    if device.type != "cuda":
        return [device.type] * (jobs or len(os.sched_getaffinity(0)))
    gpus = [device.index] if device.index is not None else list(range(torch.cuda.device_count()))
    return [f"cuda:{gpus[i % len(gpus)]}" for i in range(jobs or len(gpus))]


def _work(connection: Connection, setup: Setup, environment: dict[str, str]) -> None:
    """A worker's life: receive a job, do it, send its record back; until None comes, or a stop is requested."""
    os.environ.clear()
    os.environ.update(environment)
    try:
        worker.init_worker(setup)
    except Exception as error:  # every other worker would meet it too
        connection.send(str(error) if isinstance(error, USER_ERRORS) else f"{type(error).__name__}: {error}")
        return
    worker.stop_on_signals()
    connection.send(READY)

    def report(progress: Progress) -> None:
        try:
            connection.send(progress)
        except OSError:
            worker.request_stop("the command that started this process is gone")

    try:
        while (job := connection.recv()) is not None:
            connection.send(worker.execute_run(job, setup, report))
    except (Interrupted, EOFError, OSError):
        return


def _processes(device: str) -> Any:
    """How a worker of that device is started: on a CPU by a fork of one process that has imported what all need, which
    takes seconds; afresh where there is CUDA, which does not survive a fork."""
    if torch.device(device).type != "cpu":
        return mp.get_context("spawn")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["harness.execution.worker", "methods.peft_library"])
    return context


class _Worker:
    """A worker process and the run it is at."""

    def __init__(self, setup: Setup) -> None:
        context = _processes(setup.device)
        self.setup = setup
        self.job: WorkItem | None = None
        self.spec: RunSpec | None = None
        """The run that the job stands for."""

        self.share: Any = None
        """What its runs have in common, see `shared`."""

        self.ready = False

        self.connection, theirs = context.Pipe()
        arguments = theirs, setup, dict(os.environ)  # of now: a process to fork from may be an earlier one
        self.process: BaseProcess = context.Process(target=_work, args=arguments)
        # Ctrl-C reaches all processes of a terminal. The workers inherit that it is ignored: this process tells them.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        with children.apart():
            self.process.start()
        signal.signal(signal.SIGINT, before)
        theirs.close()

    def give(self, job: WorkItem | None) -> None:
        """Hand over the next run, or None to end."""
        self.job = job
        self.spec = None
        if job is not None:
            self.spec, self.share = representative_spec(job), shared(job)
            with suppress(OSError):  # what the trials chose cannot be read: the worker tries it again
                self.spec = resolve(job, Store(self.setup.root).read)[0]
        with suppress(OSError):  # it may have died: the next read says so
            self.connection.send(job)


def shared(job: WorkItem) -> tuple[Any, ...]:
    """What runs must have in common to share decoded data and loaded weights in one process."""
    spec = job if isinstance(job, RunSpec) else job.trials[0]
    return spec.suite, spec.task, spec.shots, spec.split_seed, spec.preprocessing, spec.backbone


class _Queue:
    """The runs that wait, by what they share."""

    def __init__(self, jobs: Iterable[WorkItem]) -> None:
        self.groups: dict[Any, deque[WorkItem]] = {}
        self.add(jobs)

    def add(self, jobs: Iterable[WorkItem]) -> None:
        """Put further runs behind those that wait."""
        for job in jobs:
            self.groups.setdefault(shared(job), deque()).append(job)

    def __len__(self) -> int:
        return sum(map(len, self.groups.values()))

    def take(self, own: Any, others: set[Any]) -> WorkItem | None:
        """The next run for a worker whose last runs shared `own`: of the same kind, or of a kind that no other worker
        is at, or of the kind that has most left."""
        if not self.groups:
            return None
        free = [share for share in self.groups if share not in others]
        if own in self.groups:
            share = own
        else:
            share = free[0] if free else max(self.groups, key=lambda share: len(self.groups[share]))
        job = self.groups[share].popleft()
        if not self.groups[share]:
            del self.groups[share]
        return job

    def clear(self) -> int:
        """Drop all; returns how many there were."""
        count = len(self)
        self.groups.clear()
        return count


class _Interrupts:
    """Counts Ctrl-C and SIGTERM while it is in use as a context manager. The second raises `KeyboardInterrupt`."""

    def __init__(self) -> None:
        self.count = 0
        self.reader, self.writer = os.pipe()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        os.write(self.writer, b"!")  # wakes up whoever waits for `reader`
        if self.count > 1:
            raise KeyboardInterrupt

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Within: signals are counted here."""
        before = [(number, signal.signal(number, self._handle)) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)
            os.close(self.reader)
            os.close(self.writer)


class _Execution:
    """One call of `execute`."""

    def __init__(
        self, ready: list[WorkItem], blocked: Iterable[TunedRun], setups: list[Setup], listen: Listener
    ) -> None:
        self.queue, self.setups, self.listen, self.outcome = _Queue(ready), setups, listen, Outcome()
        self.waiting = Waiting(ready, blocked)
        self.busy: deque[WorkItem] = deque()
        self.workers: list[_Worker] = []
        self.interrupts = _Interrupts()
        self.refusal = ""

    def run(self) -> Outcome:
        """Until all is done, or until it is interrupted and the workers have saved their states."""
        with self.interrupts.counted():
            try:
                for setup in self.setups[: len(self.queue) + len(self.waiting)]:
                    self.workers.append(_Worker(setup))
                    self._next(self.workers[-1])
                while any(one.spec for one in self.workers) or (self.busy and not self.outcome.interrupted):
                    self._step()
            finally:
                self._end()
        if self.refusal:
            raise HarnessError(f"a worker process cannot work: {self.refusal}")
        return self.outcome

    def _step(self) -> None:
        """Hear what the workers say; ask again for the runs of others."""
        connections = [one.connection for one in self.workers]
        ready = wait([*connections, *([] if self.outcome.interrupted else [self.interrupts.reader])], RETRY_SECONDS)
        if self.interrupts.count and not self.outcome.interrupted:
            self._interrupt()
        for one in [one for one in self.workers if one.connection in ready]:
            self._receive(one)
        for one in [one for one in self.workers if one.spec is None and len(self.queue)]:
            self._next(one)  # a record may have set free what waited for it
        if not ready and not self.outcome.interrupted:
            for one in [one for one in self.workers if one.spec is None]:
                self._next(one)

    def _interrupt(self) -> None:
        self.outcome.interrupted = True
        self.outcome.not_started = self.queue.clear() + self.waiting.clear()
        for one in self.workers:
            if one.spec is not None:
                one.process.terminate()  # SIGTERM: it saves at the next step boundary

    def _next(self, one: _Worker) -> None:
        """Give a worker a run that waits, else one that somebody else was at, else nothing for now."""
        others = {other.share for other in self.workers if other is not one and other.spec is not None}
        job = self.queue.take(one.share, others)
        if job is None and self.busy:
            job = self.busy.popleft()
        if job is not None:
            one.give(job)

    def _receive(self, one: _Worker) -> None:
        """Take one message from a worker; give it the next run when it has finished one."""
        job, spec = one.job, one.spec
        try:
            message: Progress | RunRecord | Busy | str = one.connection.recv()
        except (EOFError, OSError):
            self._died(one)
            return
        if isinstance(message, str):
            one.ready = message == READY
            if not one.ready:
                self._refused(one, message)
            return
        assert job is not None and spec is not None
        self.listen(spec, message)
        if isinstance(message, Progress):
            return
        one.job = one.spec = None
        if isinstance(message, Busy):
            self.busy.append(job)
            if not len(self.queue):
                return  # asked again after a while
        else:
            self._release(spec, one.setup)
            if message.failure is not None:
                self._handle_failure(one, CLASSES[message.failure.kind])
        if one in self.workers and not self.outcome.interrupted:
            self._next(one)

    def _release(self, spec: RunSpec, setup: Setup) -> None:
        """Put behind the others what waited for this run alone. A final with a trial that gave no verdict is left."""
        read = Store(setup.root).read
        free, ready = self.waiting.done(spec.run_id), []
        for final in free:
            with suppress(OSError):  # a trial whose record cannot be read gives no verdict either
                if final.spec(read):
                    ready.append(final)
        self.queue.add(ready)
        self.outcome.not_started += len(free) - len(ready)

    def _handle_failure(self, one: _Worker, kind: FailureClass) -> None:
        """What a failure means for the process that met it and for the runs that wait."""
        if kind.ends_all and not self.outcome.interrupted:
            self.outcome.ended_by = kind
            self.outcome.not_started += self.queue.clear() + self.waiting.clear() + len(self.busy)
            self.busy.clear()
        if kind.ends_process:
            one.give(None)
            self._replace(one)

    def _refused(self, one: _Worker, reason: str) -> None:
        """A new process cannot work, so none could: those that are at work end their runs, and that is all."""
        self.refusal = reason
        self.workers.remove(one)
        self.queue.clear()
        self.waiting.clear()
        self.busy.clear()

    def _died(self, one: _Worker) -> None:
        """A worker takes one run with it, which is recorded as failed, and is replaced."""
        one.process.join()
        if not one.ready and (one.process.exitcode or 0) > 0:
            self._refused(one, f"it ended with exit code {one.process.exitcode}, see what it printed")
            return
        if one.spec is not None and not self.outcome.interrupted:
            reason = f"the worker process ended with exit code {one.process.exitcode} (out of memory, or killed)"
            self.listen(one.spec, worker.record_killed(one.spec, one.setup, reason))
            self._release(one.spec, one.setup)
        self._replace(one)

    def _replace(self, one: _Worker) -> None:
        self.workers.remove(one)
        if (len(self.queue) or len(self.waiting) or self.busy) and not self.outcome.interrupted:
            self.workers.append(_Worker(one.setup))
            self._next(self.workers[-1])

    def _end(self) -> None:
        for one in self.workers:
            one.give(None) if one.spec is None else one.process.kill()
        for one in self.workers:
            one.process.join()


def execute(
    ready: Iterable[WorkItem], setups: list[Setup], listen: Listener, blocked: Iterable[TunedRun] = ()
) -> Outcome:
    """Do all runs; those of `blocked` as soon as their own trials are done.

    Ctrl-C (or SIGTERM) once: the workers save their states and stop; twice: `KeyboardInterrupt`.
    """
    return _Execution(list(ready), blocked, setups, listen).run()
