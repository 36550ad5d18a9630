"""Local execution: worker processes, one per GPU or per CPU core, that do the runs of a plan.

On a CPU every worker computes with one thread: for models of this size several runs side by side are faster than one
run on all cores, and a result does not depend on how many cores there are.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import Enum, auto
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import torch

from harness import children
from harness.errors import USER_ERRORS, HarnessError, Interrupted
from harness.execution import worker
from harness.execution.backlog import RETRY_SECONDS, Backlog, Listener, Outcome, shared
from harness.execution.worker import Busy, Setup
from harness.plans.tuning import TunedRun, WorkItem
from harness.records.store import Store
from harness.schema.failures import CLASSES
from harness.schema.record import RunRecord
from harness.schema.spec import RunSpec
from harness.training.callbacks import Decoding, Progress

KILLED_STARTS = 3
"""After this many workers were killed before they were ready, no further one is started."""


class State(Enum):
    """What a worker process is doing."""

    STARTING = auto()
    IDLE = auto()
    WORKING = auto()


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker can take a run."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A worker cannot work, and no other could."""

    reason: str


def worker_devices(device: torch.device, jobs: int | None) -> list[str]:
    """The device of each worker: GPUs in turn, or as many CPU workers as there are cores to use."""
    if device.type != "cuda":
        return [device.type] * (jobs or len(os.sched_getaffinity(0)))
    gpus = [device.index] if device.index is not None else list(range(torch.cuda.device_count()))
    return [f"cuda:{gpus[i % len(gpus)]}" for i in range(jobs or len(gpus))]


def _work(connection: Connection, setup: Setup, environment: dict[str, str]) -> None:
    """A worker's life: receive a run, do it, send its record back; until None comes, or a stop is requested."""
    os.environ.clear()
    os.environ.update(environment)
    try:
        worker.init_worker(setup)
    except Exception as error:
        reason = str(error) if isinstance(error, USER_ERRORS) else f"{type(error).__name__}: {error}"
        connection.send(Refusal(reason))
        return
    worker.stop_on_signals()
    connection.send(Ready())

    def report(progress: Progress | Decoding) -> None:
        try:
            connection.send(progress)
        except OSError:
            worker.STOP.request("the command that started this process is gone")

    try:
        while (item := connection.recv()) is not None:
            connection.send(worker.execute_run(item, setup, report))
    except (Interrupted, EOFError, OSError):
        return


def _processes(device: str) -> Any:
    """How a worker of that device is started: on a CPU by a fork of one process that has imported what all need, which
    takes seconds; spawned where there is CUDA, which does not survive a fork."""
    if torch.device(device).type != "cpu":
        return mp.get_context("spawn")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["harness.execution.worker", "methods.peft_library"])
    return context


class _Worker:
    """A worker process, its state and its run."""

    item: WorkItem
    spec: RunSpec
    """The run that the item stands for. Both are of the current run, or of the last one."""

    def __init__(self, setup: Setup) -> None:
        context = _processes(setup.device)
        self.setup, self.state = setup, State.STARTING
        self.share: Any = None
        """What its runs have in common, see `backlog.shared`."""

        self.connection, theirs = context.Pipe()
        arguments = theirs, setup, dict(os.environ)  # of now: a process to fork from may be an earlier one
        self.process: BaseProcess = context.Process(target=_work, args=arguments)
        # Ctrl-C reaches all processes of a terminal. The workers inherit that it is ignored: this process tells them.
        with children.handling(signal.SIG_IGN, signal.SIGINT), children.apart():
            self.process.start()
        theirs.close()

    def give(self, item: WorkItem, spec: RunSpec) -> None:
        self.state, self.item, self.spec, self.share = State.WORKING, item, spec, shared(item)
        self._send(item)

    def dismiss(self) -> None:
        """Let the process end, once it has finished its run."""
        self._send(None)

    def _send(self, item: WorkItem | None) -> None:
        with suppress(OSError):  # it may have died: the next read says so
            self.connection.send(item)


class _Interrupts:
    """Counts Ctrl-C and SIGTERM. The second raises `KeyboardInterrupt`."""

    def __init__(self) -> None:
        self.count = 0
        self.reader, self._writer = os.pipe()
        """`reader` can be read as soon as there was one."""

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        os.write(self._writer, b"!")
        if self.count > 1:
            raise KeyboardInterrupt

    def close(self) -> None:
        os.close(self.reader)
        os.close(self._writer)


class _Execution:
    """One call of `execute`: what workers say, and what follows from it, one method for each event."""

    def __init__(self, backlog: Backlog, setups: list[Setup], listen: Listener) -> None:
        self.backlog, self.setups, self.listen = backlog, setups, listen
        self.workers: list[_Worker] = []
        self.interrupts = _Interrupts()
        self.killed_starts = 0
        self.refusal = ""

    def run(self) -> Outcome:
        """Until all is done, or until it is interrupted and the workers have saved their states."""
        handling = children.handling(self.interrupts.handle, signal.SIGINT, signal.SIGTERM)
        with closing(self.interrupts), handling:
            try:
                self.workers += map(_Worker, self.setups[: len(self.backlog)])
                while self._at_work() or self.backlog.can_go_on:
                    self._step()
            finally:
                self._end()
        if self.refusal:
            raise HarnessError(f"a worker process cannot work: {self.refusal}")
        return self.backlog.outcome

    def _at_work(self) -> list[_Worker]:
        return [one for one in self.workers if one.state is State.WORKING]

    @property
    def _interrupted(self) -> bool:
        return self.backlog.outcome.interrupted

    def _step(self) -> None:
        workers: dict[Any, _Worker] = {one.connection: one for one in self.workers}
        spoke = wait([*workers, *([] if self._interrupted else [self.interrupts.reader])], RETRY_SECONDS)
        if self.interrupts.count and not self._interrupted:
            self._on_interrupt()
        for connection in spoke:
            if connection in workers:
                self._hear(workers[connection])
        for one in self.workers:  # a record may have set free what waited for it; a run that was held may be done
            if one.state is State.IDLE and (self.backlog.ready or not spoke):
                self._give_next(one)

    def _hear(self, one: _Worker) -> None:
        try:
            message: Ready | Refusal | Progress | Decoding | RunRecord | Busy = one.connection.recv()
        except (EOFError, OSError):
            self._on_death(one)
            return
        match message:
            case Ready():
                self._on_ready(one)
            case Refusal():
                self._on_refusal(one, message.reason)
            case Progress() | Decoding():
                self.listen(one.spec, message)
            case Busy():
                self._on_busy(one, message)
            case RunRecord():
                self._on_record(one, message)

    def _give_next(self, one: _Worker) -> None:
        """Give a worker a run, if there is one that it may do now."""
        item = self.backlog.take(one.share, {other.share for other in self._at_work() if other is not one})
        if item is not None:
            one.give(item, self.backlog.spec_of(item))

    def _on_interrupt(self) -> None:
        """The user wants to stop: a run under way saves its state at the next step boundary."""
        self.backlog.interrupt()
        for one in self._at_work():
            one.process.terminate()

    def _on_ready(self, one: _Worker) -> None:
        one.state, self.killed_starts = State.IDLE, 0
        self._give_next(one)

    def _on_refusal(self, one: _Worker, reason: str) -> None:
        """A new process cannot work, so none could: those that are at work end their runs, and that is all."""
        self.refusal = reason
        self.workers.remove(one)
        self.backlog.drop()

    def _on_busy(self, one: _Worker, message: Busy) -> None:
        """Another process holds the run: another run first, and this one again after a while."""
        one.state = State.IDLE
        self.listen(one.spec, message)
        if not self._interrupted:
            self.backlog.put_back(one.item)

    def _on_record(self, one: _Worker, record: RunRecord) -> None:
        one.state = State.IDLE
        self.listen(one.spec, record)
        self.backlog.settle(one.spec)
        kind = CLASSES[record.failure.kind] if record.failure else None
        if kind and kind.ends_all:
            self.backlog.end(kind)
        if kind and kind.ends_process:
            one.dismiss()
            self._replace(one)
        elif not self._interrupted:
            self._give_next(one)

    def _on_death(self, one: _Worker) -> None:
        """A worker takes its run with it, which is recorded as failed, and is replaced."""
        one.process.join()
        code = one.process.exitcode or 0
        if one.state is State.STARTING:
            self.killed_starts += 1
            if code > 0 or self.killed_starts >= KILLED_STARTS:
                self._on_refusal(one, f"it ended with exit code {code} while it started, see what it printed")
                return
        if one.state is State.WORKING and not self._interrupted:
            reason = f"the worker process ended with exit code {code} (out of memory, or killed)"
            self.listen(one.spec, worker.record_killed(one.spec, one.setup, reason))
            self.backlog.settle(one.spec)
        self._replace(one)

    def _replace(self, one: _Worker) -> None:
        self.workers.remove(one)
        if len(self.backlog) and not self._interrupted:
            self.workers.append(_Worker(one.setup))

    def _end(self) -> None:
        for one in self.workers:
            one.dismiss() if one.state is State.IDLE else one.process.kill()
        for one in self.workers:
            one.process.join()


def execute(
    ready: Iterable[WorkItem], setups: list[Setup], listen: Listener, blocked: Iterable[TunedRun] = ()
) -> Outcome:
    """Do all runs; those of `blocked` as soon as their own trials are done.

    Ctrl-C (or SIGTERM) once: the workers save their states and stop; twice: `KeyboardInterrupt`.
    """
    return _Execution(Backlog(ready, blocked, Store(setups[0].root)), setups, listen).run()
