"""Decode the images of a list on all cores: in threads, or, of a long list, in processes.

Pillow decodes without holding Python's lock, but what is done around it holds it, so that threads leave most of many
cores idle. Processes take seconds to start, which a short list must not pay for. Each writes its images to their places
in the array's file itself, so that no pixels travel between processes; both ways give the same bytes.
"""

from __future__ import annotations

import hashlib
import multiprocessing as mp
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread

import numpy as np
from numpy.typing import NDArray

from harness import children
from harness.data import decoding
from harness.errors import HarnessError
from harness.schema.preprocessing import Preprocessing
from harness.terminal import Advance

PROCESSES_FROM = 10_000
"""Images of a list from which on it is decoded in processes, where there are enough cores."""

CORES_FROM = 5
"""Cores from which on processes are worth their start: two threads are 1.8 times as fast as one, sixteen 4.5 times."""

IMAGES_AT_ONCE = 32
"""Images that a thread or process is given at a time."""

DIGEST_BYTES = hashlib.sha256().digest_size


def decode_all(
    paths: Iterable[str],
    count: int,
    preprocessing: Preprocessing,
    to: Path | None = None,
    offset: int = 0,
    advance: Advance | None = None,
) -> NDArray[np.uint8]:
    """sha256 of each image's pixels, uint8 [N, 32], in order. With `to` the pixels are written there, uint8 [N, size,
    size, 3] from byte `offset` on.

    `DataError` names the first image that cannot be decoded; `HarnessError` if a process was killed.
    """
    cores, digests = len(os.sched_getaffinity(0)), np.zeros((count, DIGEST_BYTES), np.uint8)
    work = partial(_decode, preprocessing=preprocessing, to=to, offset=offset)
    apart = count >= PROCESSES_FROM and cores >= CORES_FROM
    with _processes(cores) if apart else ThreadPoolExecutor(cores) as pool:
        for start, part in _in_order(pool, work, iter(paths), 4 * cores):
            digests[start : start + len(part)] = part
            if advance:
                advance(start + len(part), count)
    return digests


def digests_of(images: Iterable[np.ndarray]) -> NDArray[np.uint8]:
    """sha256 of each image's pixels, uint8 [N, 32]."""
    content = b"".join(hashlib.sha256(image.tobytes()).digest() for image in images)
    return np.frombuffer(content, np.uint8).reshape(-1, DIGEST_BYTES)


def _decode(
    start: int, paths: list[str], preprocessing: Preprocessing, to: Path | None, offset: int
) -> NDArray[np.uint8]:
    images = np.stack([decoding.decode(Path(path), preprocessing=preprocessing) for path in paths])
    if to:
        with to.open("r+b") as file:
            file.seek(offset + start * images[0].nbytes)
            file.write(images.data)
    return digests_of(images)


def _in_order(
    pool: Executor, work: Callable[[int, list[str]], NDArray[np.uint8]], paths: Iterator[str], ahead: int
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Number of the first image, and result, of each part, with at most `ahead` of them given to the pool at a time."""
    jobs, start = deque[tuple[int, Future[NDArray[np.uint8]]]](), 0
    try:
        while True:
            while len(jobs) < ahead and (some := list(islice(paths, IMAGES_AT_ONCE))):
                jobs.append((start, pool.submit(work, start, some)))
                start += len(some)
            if not jobs:
                return
            begin, job = jobs.popleft()
            yield begin, job.result()
    except BrokenProcessPool:
        what = "a process that decoded images was killed, perhaps for want of memory: start again"
        raise HarnessError(what) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _processes(count: int) -> Iterator[Executor]:
    """A pool of processes, which end when this one does, however that ends."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(theirs,))
    with theirs, ours, children.apart(), pool:
        yield pool


def _begin(connection: Connection) -> None:
    """In a new process: Ctrl-C, which reaches all processes of a terminal, is for the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(connection,), daemon=True).start()


def _end_with(connection: Connection) -> None:
    with suppress(EOFError, OSError):
        connection.recv_bytes()  # nothing is ever sent: this returns when the other end is closed
    os._exit(1)
