"""Runs one after the other in the calling process: a script or a notebook."""

from __future__ import annotations

import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

import torch

from harness import children
from harness import device as devices
from harness.errors import Interrupted
from harness.execution import worker
from harness.execution.backlog import RETRY_SECONDS, Backlog, Listener, Outcome
from harness.execution.worker import Busy, Setup
from harness.plans.tuning import TunedRun, WorkItem
from harness.records.store import Store
from harness.schema.failures import CLASSES


def execute(ready: Iterable[WorkItem], setup: Setup, listen: Listener, blocked: Iterable[TunedRun] = ()) -> Outcome:
    """Do all runs; those of `blocked` as soon as their own trials are done.

    Ctrl-C once: the run under way saves its state and stops; twice: `KeyboardInterrupt`. The process is left as it was:
    threads, precision of products, random states, warnings, handlers of signals.
    """
    backlog = Backlog(ready, blocked, Store(setup.root))
    with _preserve_state(torch.device(setup.device)), children.handling(_stop, signal.SIGINT):
        worker.init_worker(setup)
        try:
            while (item := backlog.take()) is not None:
                _do(item, backlog, setup, listen)
        except Interrupted:
            backlog.interrupt()
        finally:
            worker.STOP.reason = ""  # the process goes on to other runs
    return backlog.outcome


def _do(item: WorkItem, backlog: Backlog, setup: Setup, listen: Listener) -> None:
    """Do one run, and note what it means for the others."""
    spec = backlog.spec_of(item)
    answer = worker.execute_run(item, setup, partial(listen, spec))
    listen(spec, answer)
    if isinstance(answer, Busy):
        backlog.put_back(item)
        if not backlog.ready:
            time.sleep(RETRY_SECONDS)
            worker.STOP.check()
        return
    backlog.settle(spec)
    kind = CLASSES[answer.failure.kind] if answer.failure else None
    if kind and (kind.ends_all or kind.ends_process):
        backlog.end(kind)


def _stop(number: int, frame: FrameType | None) -> None:
    if worker.STOP.reason:
        raise KeyboardInterrupt
    worker.STOP.request("interrupted")
    print("Stopping at the next step; interrupt once more to stop at once.", file=sys.stderr)


@contextmanager
def _preserve_state(device: torch.device) -> Iterator[None]:
    """Restores afterwards what preparing the process for runs changes."""
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    states = devices.random_states(device)
    try:
        with warnings.catch_warnings(), devices.threads(torch.get_num_threads()):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32
        devices.set_random_states(states, device)
