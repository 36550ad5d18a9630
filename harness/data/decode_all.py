"""Decode the images of a list on all cores: in threads, or, of a long list, in processes.

Pillow decodes without holding Python's lock, but what is done around it holds it, so that threads leave most of many
cores idle. Processes take seconds to start, which a short list must not pay for. Each writes its images to their places
in the array's file itself, so that no pixels travel between processes; both ways give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.data import decoding
from harness.data.all_cores import in_parts, processes
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
    with processes(cores, preload=[__name__]) if apart else ThreadPoolExecutor(cores) as pool:
        for start, part in in_parts(pool, work, paths, IMAGES_AT_ONCE, 4 * cores):
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
