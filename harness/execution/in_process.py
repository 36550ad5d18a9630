"""Runs one after the other in the process that asks for them: a script or a notebook."""

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
            worker.withdraw_stop()
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
            worker.check_stop()
        return
    backlog.settle(spec)
    kind = CLASSES[answer.failure.kind] if answer.failure else None
    if kind and (kind.ends_all or kind.ends_process):
        backlog.end(kind)


def _stop(number: int, frame: FrameType | None) -> None:
    if worker.stop_requested():
        raise KeyboardInterrupt
    worker.request_stop("interrupted")
    print("Stopping at the next step; interrupt once more to stop at once.", file=sys.stderr)


@contextmanager
def _preserve_state(device: torch.device) -> Iterator[None]:
    """Inside, the process may be prepared for runs as a worker is; afterwards it is as it was before."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    tf32, states = torch.backends.cudnn.allow_tf32, devices.random_states(device)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32
        devices.set_random_states(states, device)
