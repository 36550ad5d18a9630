"""Local execution: worker processes, one per GPU or per CPU core, that do the runs of a plan.

On a CPU every worker computes with one thread: for models of this size several runs side by side are faster than one
run on all cores, and a result does not depend on how many cores there are.
"""

from __future__ import annotations

import multiprocessing as mp
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from harness import backbones
from harness.lists import Roots
from harness.record import RunRecord
from harness.run import attempt
from harness.spec import RunSpec
from harness.store import Store
from harness.trainer import Progress
from methods import registry
from suites import SUITES
from suites.base import Suite


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a worker process must know."""

    device: str
    root: Path
    """Folder of the results."""

    data: Roots
    """Folders of the user's data."""

    weight_files: dict[str, Path]
    method_files: list[str]
    suites: list[Suite]
    """Suites that were read from the user's own files."""


Listener = Callable[[RunSpec, Progress | RunRecord], None]
"""Called with each run's progress, and at last with its record."""


def worker_devices(device: torch.device, jobs: int | None) -> list[str]:
    """The device of each worker: GPUs in turn, or as many CPU workers as there are cores to use."""
    if device.type != "cuda":
        return [device.type] * (jobs or len(os.sched_getaffinity(0)))
    gpus = [device.index] if device.index is not None else list(range(torch.cuda.device_count()))
    return [f"cuda:{gpus[i % len(gpus)]}" for i in range(jobs or len(gpus))]


def _work(connection: Connection, setup: Setup) -> None:
    """A worker's life: receive a spec, do it, write the record, send it back; until None comes."""
    backbones.remember_files(setup.weight_files)
    for reference in setup.method_files:
        registry.add_file(reference)
    SUITES.update({suite.name: suite for suite in setup.suites})
    device, store = torch.device(setup.device), Store(setup.root)
    if device.type == "cpu":
        torch.set_num_threads(1)
    while (spec := connection.recv()) is not None:
        record = attempt(spec, device, setup.data, connection.send)
        store.write(record)
        connection.send(record)


class _Worker:
    """A worker process and the run it is at."""

    def __init__(self, setup: Setup) -> None:
        context = mp.get_context("spawn")
        self.setup = setup
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(theirs, setup), daemon=True)
        self.process.start()
        theirs.close()
        self.spec: RunSpec | None = None

    def give(self, spec: RunSpec | None) -> None:
        """Hand over the next run, or None to end."""
        self.spec = spec
        self.connection.send(spec)


def execute(specs: Iterable[RunSpec], setups: list[Setup], listen: Listener) -> None:
    """Do all runs. A worker that dies takes one run with it, which is recorded as failed, and is replaced."""
    waiting = list(specs)
    workers = [_Worker(setup) for setup in setups[: len(waiting)]]
    for worker in workers:
        worker.give(waiting.pop(0))
    try:
        while workers:
            ready = wait([worker.connection for worker in workers])
            for worker in [w for w in workers if w.connection in ready]:
                _hear(worker, workers, waiting, listen)
    finally:
        for worker in workers:
            worker.process.terminate()


def _hear(worker: _Worker, workers: list[_Worker], waiting: list[RunSpec], listen: Listener) -> None:
    """Take one message from a worker; give it the next run when it has finished one."""
    spec = worker.spec
    assert spec is not None
    try:
        message: Progress | RunRecord = worker.connection.recv()
    except (EOFError, ConnectionResetError):
        message = _killed(worker)
        workers.remove(worker)
        if waiting:
            worker = _Worker(worker.setup)
            workers.append(worker)
    listen(spec, message)
    if isinstance(message, RunRecord) and worker in workers:
        if waiting:
            worker.give(waiting.pop(0))
        else:
            worker.give(None)
            workers.remove(worker)
            worker.process.join()


def _killed(worker: _Worker) -> RunRecord:
    """Record of a run whose process died."""
    assert worker.spec is not None
    worker.process.join()
    title = registry.get(worker.spec.method).title
    reason = f"the worker process ended with exit code {worker.process.exitcode} (out of memory, or killed)"
    record = RunRecord(spec=worker.spec, method_title=title, status="failed", reason=reason)
    Store(worker.setup.root).write(record)
    return record
