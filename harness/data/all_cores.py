"""A long list worked on part by part on all cores, in threads or in processes."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing.connection import Connection
from threading import Thread
from typing import TypeVar

from harness import children
from harness.errors import HarnessError

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parts(
    pool: Executor, work: Callable[[int, list[Item]], Result], items: Iterable[Item], at_once: int, ahead: int
) -> Iterator[tuple[int, Result]]:
    """Number of the first item, and result, of each part of `at_once` items, in order. At most `ahead` parts are given
    to the pool at a time, which is shut down at the end.

    `HarnessError` if a process was killed.
    """
    jobs, start, left = deque[tuple[int, Future[Result]]](), 0, iter(items)
    try:
        while True:
            while len(jobs) < ahead and (some := list(islice(left, at_once))):
                jobs.append((start, pool.submit(work, start, some)))
                start += len(some)
            if not jobs:
                return
            begin, job = jobs.popleft()
            yield begin, job.result()
    except BrokenProcessPool:
        what = "a process that read images was killed, perhaps for want of memory: start again"
        raise HarnessError(what) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def processes(count: int, preload: Sequence[str] = ()) -> Iterator[Executor]:
    """A pool of processes, which end when this one does, however that ends. What takes long to import is named in
    `preload`, and imported once for all of them."""
    context = mp.get_context("forkserver" if preload else "spawn")
    if preload:
        context.set_forkserver_preload(list(preload))
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=begin, initargs=(theirs,))
    with theirs, ours, children.apart(), pool:
        yield pool


def begin(connection: Connection) -> None:
    """In a new process: Ctrl-C, which reaches all processes of a terminal, is for the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(connection,), daemon=True).start()


def _end_with(connection: Connection) -> None:
    with suppress(EOFError, OSError):
        connection.recv_bytes()  # nothing is ever sent: this returns when the other end is closed
    os._exit(1)
