"""A look at image files: can each be read to its end, and what has it in common with its copies?"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.data import copies
from harness.data.all_cores import in_parts, processes
from harness.data.decoding import MAY_BE_REFUSED, UNREADABLE, as_rgb
from harness.data.files import file_problem
from harness.data.lists import ImageList
from harness.terminal import Advance

END_MARKS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
"""What the last bytes of a complete file contain. A file without it, and one of any other format, is decoded to see
whether it is truncated: Pillow detects that in all formats."""

TAIL = 64
"""So many last bytes."""

PROCESSES_FROM = 10_000
"""Images from which on processes are worth their start: a look is so short that threads wait for Python's lock, and are
slower than one."""

IMAGES_AT_ONCE = 128
"""Images that a thread or process is given at a time."""

MOST = 32
"""Threads or processes; two per core, for files that are far away."""


@dataclass(slots=True)
class Look:
    """The result of looking at an image file."""

    problem: str | None = None
    """What is wrong with it."""

    likeness: bytes = bytes(copies.LIKENESS_BYTES)
    """The same for copies, see `copies.LIKENESS_BYTES`; zeros if something is wrong."""


@dataclass(slots=True, kw_only=True)
class Looks:
    """The result of looking at the images of several lists, at each file once."""

    images: int = 0
    """How many files there are."""

    problems: list[tuple[int, int, str]] = field(default_factory=list)
    """Number of a list, number of its first entry with the file, and what is wrong with that."""

    identity: dict[str, bytes] = field(default_factory=dict)
    """See `copies.identities`."""


def look(path: Path, deep: bool = False) -> Look:
    """What is wrong with an image file or, if nothing is, what it has in common with its copies: by its size and end,
    or with `deep`, for which it is decoded, by its pixels."""
    if problem := file_problem(path):
        return Look(problem)
    try:
        with path.open("rb") as file:
            size, end = copies.end_of(file)
            file.seek(0)
            with Image.open(file) as image:
                if deep:
                    pixels = as_rgb(image)
                    return Look(likeness=hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).digest())
                whole = image.format in END_MARKS and END_MARKS[image.format] in end[-TAIL:]
                if not whole or image.mode in MAY_BE_REFUSED:
                    as_rgb(image)
    except UNREADABLE as error:
        return Look(f"cannot be decoded ({error})")
    return Look(likeness=copies.digest_of(size, end))


def look_at(lists: Sequence[ImageList], deep: bool = False, advance: Advance | None = None) -> Looks:
    """Look at each file of the lists once, on all cores; `advance` is told of every part of them."""
    keys = np.concatenate([*(one.path_keys for one in lists), np.zeros(0, np.int64)])
    is_first = np.zeros(len(keys), bool)
    is_first[np.unique(keys, return_index=True)[1]] = True
    first, ends = np.flatnonzero(is_first), np.cumsum([0, *(len(one.entries) for one in lists)])
    looks = Looks(images=len(first))
    likeness = np.zeros((looks.images, copies.LIKENESS_BYTES), np.uint8)

    def paths() -> Iterator[str]:
        return compress(chain.from_iterable(one.paths for one in lists), is_first)

    count = min(2 * len(os.sched_getaffinity(0)), MOST)
    with processes(count) if looks.images >= PROCESSES_FROM else ThreadPoolExecutor(count) as pool:
        work = partial(_look_at_part, deep=deep)
        for start, (problems, part) in in_parts(pool, work, paths(), IMAGES_AT_ONCE, 4 * count):
            likeness[start : start + len(part)] = part
            for number, problem in problems:
                which = int(np.searchsorted(ends, first[number], side="right")) - 1
                looks.problems.append((which, int(first[number] - ends[which]), problem))
            if advance:
                advance(start + len(part), looks.images)
    looks.identity = copies.identities(paths(), likeness, deep)
    return looks


def _look_at_part(start: int, paths: list[str], deep: bool) -> tuple[list[tuple[int, str]], NDArray[np.uint8]]:
    """Number and problem of each path with one, and what all have in common with their copies, uint8 [N, 32]."""
    looks = [look(Path(path), deep) for path in paths]
    problems = [(number, one.problem) for number, one in enumerate(looks, start) if one.problem]
    content = b"".join(one.likeness for one in looks)
    return problems, np.frombuffer(content, np.uint8).reshape(-1, copies.LIKENESS_BYTES)
