"""Decode once: a split's pictures become one uint8 array on disk, which runs map into memory.

An array's name holds a digest of the list, of a sample of the pictures' bytes and of the preprocessing, so a changed
list, picture or size makes a new array. Several processes may ask for the same array: one builds it, the others wait.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.lists import Entry, ListFile
from harness.paths import cache_folder
from harness.preprocessing import Preprocessing
from harness.terminal import Advance

SAMPLE = 16
"""Pictures per list whose bytes go into the digest."""

SUFFIXES = {".npy", ".tmp", ".lock"}
"""What lies in the folder: arrays, arrays in the making, and the locks of their builders."""


def folder() -> Path:
    """Where the arrays are kept."""
    return cache_folder() / "arrays"


def list_digest(entries: Sequence[Entry]) -> str:
    """sha256 over names and labels."""
    return hashlib.sha256("".join(f"{e.name} {e.label}\n" for e in entries).encode()).hexdigest()


def sample_digest(source: ListFile, entries: Sequence[Entry]) -> str:
    """sha256 over the bytes of `SAMPLE` pictures, evenly spaced over the list."""
    sha, step = hashlib.sha256(), max(1, len(entries) // SAMPLE)
    for entry in entries[::step][:SAMPLE]:
        path = source.folder / entry.name
        sha.update(path.read_bytes() if path.is_file() else b"missing")
    return sha.hexdigest()


def array_bytes(count: int, preprocessing: Preprocessing) -> int:
    """Size of the array of so many pictures."""
    return count * preprocessing.image_size**2 * 3


def array_path(label: str, source: ListFile, entries: Sequence[Entry], preprocessing: Preprocessing) -> Path:
    """Where the array of this list lies; `label` makes the name readable."""
    key = "".join((list_digest(entries), sample_digest(source, entries), preprocessing.pixels_id))
    name = f"{label}-{preprocessing.pixels_id}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    return folder() / name


def load(
    label: str,
    source: ListFile,
    entries: Sequence[Entry],
    preprocessing: Preprocessing,
    advance: Advance | None = None,
) -> np.ndarray:
    """Pixels uint8 [N, size, size, 3] of a list's pictures in order, built if need be, mapped copy-on-write."""
    path = array_path(label, source, entries, preprocessing)
    if not path.is_file():
        with _lock(path):
            if not path.is_file():  # another process may have built it while this one waited
                _build(path, [source.folder / entry.name for entry in entries], preprocessing, advance)
    return np.load(path, mmap_mode="c")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the array's lock; the system frees it if this process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(path: Path, pictures: list[Path], preprocessing: Preprocessing, advance: Advance | None) -> None:
    """Decode on all cores into a temporary file, then rename it."""
    temporary = path.with_suffix(".tmp")
    size = preprocessing.image_size
    array = np.lib.format.open_memmap(temporary, "w+", np.uint8, (len(pictures), size, size, 3))
    with temporary.open("rb+") as file:  # a full disk is an error here, and no bus error when a page is written
        os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for index, pixels in enumerate(pool.map(preprocessing.decode, pictures)):
            array[index] = pixels
            if advance and (index % 100 == 99 or index + 1 == len(pictures)):
                advance(index + 1, len(pictures))
    array.flush()
    temporary.replace(path)


@dataclass(frozen=True, slots=True)
class Cached:
    """One array of the cache."""

    path: Path
    bytes: int


def cached() -> list[Cached]:
    """All arrays, largest first."""
    found = [Cached(path, path.stat().st_size) for path in folder().glob("*.npy")]
    return sorted(found, key=lambda array: -array.bytes)


def clear() -> int:
    """Delete all arrays, leftovers of killed builders and locks; returns the bytes freed.

    What another process is building at the moment stays: it would lose its lock, and a second builder its array.
    """
    freed = 0
    for lock in {path.with_suffix(".lock") for path in folder().glob("*") if path.suffix in SUFFIXES}:
        with lock.open("w") as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in (lock.with_suffix(".npy"), lock.with_suffix(".tmp"), lock):
                freed += path.stat().st_size if path.is_file() else 0
                path.unlink(missing_ok=True)
    return freed
