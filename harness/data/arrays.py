"""Decode once: a split's images become one uint8 array on disk, which runs map into memory.

An array's name holds a digest of the list, of all images' inodes, sizes and times, of the bytes of some of them, of
the preprocessing and of the decoding's versions, so a changed list, image, size or library makes a new array.
Several processes may ask for the same array: one builds it, the others wait. The file ends with its checksum, which
each process compares once: a damaged array is built anew.

Beside an array lie digests of each image's decoded pixels, for the fingerprint of the data. They are small, and stay
when the arrays are deleted: what a file decodes to is known as long as it is not touched.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import stat
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from harness.data import decoding
from harness.data.lists import Entry, ListFile
from harness.errors import DataError
from harness.lease import lies_at
from harness.paths import cache_folder, write_atomically, writing_cache
from harness.schema.preprocessing import Preprocessing
from harness.terminal import Advance

SAMPLE = 16
"""Images per list whose bytes go into the digest."""

SUFFIXES = {".npy", ".tmp", ".lock"}
"""What lies in the folder: arrays, arrays in the making, and the locks of their builders."""


def folder() -> Path:
    """Where the arrays are kept."""
    return cache_folder() / "arrays"


def list_digest(entries: Sequence[Entry]) -> str:
    """sha256 over names and labels."""
    return hashlib.sha256("".join(f"{e.name} {e.label}\n" for e in entries).encode()).hexdigest()


def sample_digest(source: ListFile, entries: Sequence[Entry]) -> str:
    """sha256 over the bytes of `SAMPLE` images, evenly spaced over the list."""
    sha, count = hashlib.sha256(), min(SAMPLE, len(entries))
    for number in range(count):
        path = source.folder / entries[number * len(entries) // count].name
        with _reading(path):
            sha.update(path.read_bytes())
    return sha.hexdigest()


@contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """Inside, `DataError` names an image that is not there or cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: listed, but there is no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _stamps_digest(source: ListFile, entries: Sequence[Entry]) -> str:
    """sha256 over inode, size and times of all images: 0.1 s for 20,000 on a local disk. The time of the last change
    of anything (ctime) cannot be set by hand, as that of the content (mtime) can."""
    sha = hashlib.sha256()
    for entry in entries:
        path = os.path.join(source.folder, entry.name)  # noqa: PTH118 (twice as fast)
        with _reading(path):
            at = os.stat(path)  # noqa: PTH116
        sha.update(f"{entry.name} {at.st_ino} {at.st_size} {at.st_mtime_ns} {at.st_ctime_ns}\n".encode())
    return sha.hexdigest()


def array_bytes(count: int, preprocessing: Preprocessing) -> int:
    """Size of the array of so many images."""
    return count * preprocessing.image_size**2 * 3


def array_path(label: str, source: ListFile, entries: Sequence[Entry], preprocessing: Preprocessing) -> Path:
    """Where the array of this list lies; `label` makes the name readable."""
    digests = list_digest(entries), sample_digest(source, entries), _stamps_digest(source, entries)
    key = "".join((*digests, preprocessing.pixels_id, decoding.versions_digest()))
    name = f"{label}-{preprocessing.pixels_id}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    return folder() / name


def load(
    label: str,
    source: ListFile,
    entries: Sequence[Entry],
    preprocessing: Preprocessing,
    advance: Advance | None = None,
) -> np.ndarray:
    """Pixels uint8 [N, size, size, 3] of a list's images in order, built if need be, mapped copy-on-write."""
    return np.load(build(label, source, entries, preprocessing, advance), mmap_mode="c")


def build(
    label: str,
    source: ListFile,
    entries: Sequence[Entry],
    preprocessing: Preprocessing,
    advance: Advance | None = None,
) -> Path:
    """The file of the array, which is there and whole afterwards."""
    path = array_path(label, source, entries, preprocessing)
    if not _is_whole(path):
        with writing_cache(), _lock(path):
            if not _is_whole(path):  # another process may have built it while this one waited
                _decode(path, [source.folder / entry.name for entry in entries], preprocessing, advance)
                if array_path(label, source, entries, preprocessing) != path:
                    path.unlink()
                    raise DataError(f"{source.path}: images changed while they were decoded; start again")
    return path


def is_known(array: Path) -> bool:
    """Whether `image_digests` need not decode an image for this array, which may be there itself or not."""
    return array.is_file() or _digests_file(array).is_file()


def image_digests(
    array: Path, images: Sequence[Path], preprocessing: Preprocessing, advance: Advance | None = None
) -> list[bytes]:
    """sha256 of each image's decoded pixels: as kept, else out of the array where it is there, else by decoding,
    which keeps the digests and makes no array.

    `array`: `array_path` of the list that `images` are from.
    """
    file = _digests_file(array)
    if (kept := _kept_digests(file, len(images))) is None:
        with writing_cache(), _lock(array):
            if (kept := _kept_digests(file, len(images))) is None:  # see `build`
                whole = np.load(array, mmap_mode="r") if _is_whole(array) else None
                found = iter(whole) if whole is not None else _decoded(images, preprocessing, advance)
                kept = [hashlib.sha256(pixels.tobytes()).digest() for pixels in found]
                body = b"".join(kept)
                write_atomically(file, lambda out: out.write(body + hashlib.sha256(body).digest()))
    return kept


def _digests_file(array: Path) -> Path:
    return array.with_suffix(".sha256")


def _kept_digests(file: Path, count: int) -> list[bytes] | None:
    """The digests in a file that is whole; None if it is not, or not there."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    size = hashlib.sha256().digest_size
    *found, last = (content[start : start + size] for start in range(0, max(1, len(content)), size))
    return found if len(found) == count and hashlib.sha256(content[:-size]).digest() == last else None


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the array's lock; the system frees it if this process dies."""
    lock = path.with_suffix(".lock")
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if lies_at(lock, file.fileno()):  # else `clear` has deleted it meanwhile
                yield
                return


def _decoded(images: Sequence[Path], preprocessing: Preprocessing, advance: Advance | None) -> Iterator[np.ndarray]:
    """The pixels of each image in order, decoded on all cores."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for index, pixels in enumerate(pool.map(partial(decoding.decode, preprocessing=preprocessing), images)):
            yield pixels
            if advance and (index % 100 == 99 or index + 1 == len(images)):
                advance(index + 1, len(images))


def _decode(path: Path, images: list[Path], preprocessing: Preprocessing, advance: Advance | None) -> None:
    """Decode into a temporary file, then rename it."""
    temporary = path.with_suffix(f".{os.getpid()}-{secrets.token_hex(4)}.tmp")
    size = preprocessing.image_size
    try:
        array = np.lib.format.open_memmap(temporary, "w+", np.uint8, (len(images), size, size, 3))
        with temporary.open("rb+") as file:  # a full disk is an error here, and no bus error when a page is written
            os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        for index, pixels in enumerate(_decoded(images, preprocessing, advance)):
            array[index] = pixels
        array.flush()
        with temporary.open("ab") as file:
            file.write(_checksum(temporary, temporary.stat().st_size))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


CHECKSUM_BYTES = 4
"""At the end of the file, behind the array."""

CHUNK = 1 << 20

_WHOLE: set[tuple[str, int, int, int]] = set()
"""Files that this process has found whole: path, inode, size and time."""


def _is_whole(path: Path) -> bool:
    """Whether the array is there as it was written. Each process reads it once for that, at 1.4 GB/s or more."""
    try:
        status = path.stat()
        stamp = (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
        if stamp not in _WHOLE:
            size = max(0, status.st_size - CHECKSUM_BYTES)
            with path.open("rb") as file:
                file.seek(size)
                if file.read() != _checksum(path, size):
                    return False
            _WHOLE.add(stamp)
    except (FileNotFoundError, NotADirectoryError):
        return False  # any other error says nothing of the array: a sound one must not be built anew for it
    return True


def _checksum(path: Path, size: int) -> bytes:
    """CRC-32 of the first `size` bytes: it guards against damage, not against malice."""
    crc = 0
    with path.open("rb") as file:
        while size and (chunk := file.read(min(CHUNK, size))):
            crc, size = zlib.crc32(chunk, crc), size - len(chunk)
    return crc.to_bytes(CHECKSUM_BYTES, "little")


@dataclass(frozen=True, slots=True)
class Cached:
    """One array of the cache."""

    path: Path
    bytes: int


def _there() -> list[Path]:
    """What lies in the folder; `PlaceError` if that cannot be told."""
    with writing_cache(), suppress(FileNotFoundError):
        return list(folder().iterdir())
    return []


def cached() -> list[Cached]:
    """All arrays, largest first. What is no file (any more), such as a link to nothing, is none."""
    found = []
    for path in (path for path in _there() if path.suffix == ".npy"):
        with suppress(FileNotFoundError):
            status = path.stat()
            found += [Cached(path, status.st_size)] if stat.S_ISREG(status.st_mode) else []
    return sorted(found, key=lambda array: -array.bytes)


def clear() -> int:
    """Delete all arrays, leftovers of killed builders and locks, not the digests; returns the bytes freed.

    What another process is building at the moment stays: it would lose its lock, and a second builder its array.
    """
    freed = 0
    ours = [path for path in _there() if path.suffix in SUFFIXES and (path.is_symlink() or not path.is_dir())]
    for lock in {_lock_of(path) for path in ours}:
        with writing_cache(), lock.open("w") as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            parts = [path for path in ours if _lock_of(path) == lock and path != lock]
            for path in (*parts, lock) if lies_at(lock, file.fileno()) else ():
                freed += path.stat().st_size if path.is_file() else 0
                path.unlink(missing_ok=True)
    return freed


def _lock_of(path: Path) -> Path:
    """The lock of an array, `x.npy`, or of one in the making, `x.<process>.tmp`."""
    return (path.with_suffix("") if path.suffix == ".tmp" else path).with_suffix(".lock")
