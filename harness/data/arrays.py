"""Decode once: the images of a list become one uint8 array on disk, which runs map into memory.

An array's name holds a digest of the list, of all images' inodes, sizes and times, of the bytes of some of them, of
the preprocessing and of the decoder's versions, so a changed list, image, size or library makes a new array. Several
processes may ask for the same array: one builds it, the others wait. The file ends with its checksum, which each
process verifies once: a damaged array is rebuilt.

Beside an array lie digests of each image's decoded pixels, for the fingerprint of the data. They are small, and are
kept when the arrays are deleted: what a file decodes to is known as long as it is not changed.
"""

import fcntl
import hashlib
import os
import secrets
import stat
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.data import decoding
from harness.data.decode_all import DIGEST_BYTES, IMAGES_AT_ONCE, decode_all, digests_of
from harness.data.files import reading
from harness.data.lists import Entries, ImageList
from harness.errors import DataError
from harness.lease import lies_at
from harness.paths import cache_folder, write_atomically, writing_cache
from harness.schema.preprocessing import Preprocessing
from harness.terminal import Advance

SAMPLE = 16
"""Images per list whose bytes go into the digest."""

LINES_AT_ONCE = 4096

SUFFIXES = {".npy", ".tmp", ".lock"}
"""What is in the folder: arrays, arrays being built, and the locks of their builders."""


def folder() -> Path:
    """Where the arrays are kept."""
    return cache_folder() / "arrays"


def list_digest(entries: Entries) -> str:
    """sha256 over names and labels."""
    sha = hashlib.sha256()
    lines = (f"{name} {label}\n" for name, label in zip(entries.names, entries.labels, strict=True))
    while text := "".join(islice(lines, LINES_AT_ONCE)):
        sha.update(text.encode())
    return sha.hexdigest()


def sample_digest(images: ImageList) -> str:
    """sha256 over the bytes of `SAMPLE` images, evenly spaced over the list."""
    sha, count = hashlib.sha256(), min(SAMPLE, len(images.entries))
    for number in range(count):
        path = images.file.folder / images.entries.name(number * len(images.entries) // count)
        with reading(path):
            sha.update(path.read_bytes())
    return sha.hexdigest()


def _stamps_digest(images: ImageList) -> str:
    """sha256 over inode, size and times of all images: 0.1 s for 20,000 on a local disk. The time of the last change
    of any kind (ctime) cannot be set by hand, as that of the content (mtime) can."""
    sha = hashlib.sha256()
    for name, path in zip(images.entries.names, images.paths, strict=True):
        with reading(path):
            at = os.stat(path)  # noqa: PTH116 (twice as fast)
        sha.update(f"{name} {at.st_ino} {at.st_size} {at.st_mtime_ns} {at.st_ctime_ns}\n".encode())
    return sha.hexdigest()


def array_bytes(count: int, preprocessing: Preprocessing) -> int:
    """Size of the array of so many images."""
    return count * preprocessing.image_size**2 * 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageArray:
    """The decoded images of a list, uint8 [N, size, size, 3] in its order."""

    label: str
    """Makes the file's name readable."""

    images: ImageList
    preprocessing: Preprocessing

    def path(self) -> Path:
        """The array's file, for the images as they are now."""
        digests = list_digest(self.images.entries), sample_digest(self.images), _stamps_digest(self.images)
        key = "".join((*digests, self.preprocessing.pixels_id, decoding.versions_digest()))
        name = f"{self.label}-{self.preprocessing.pixels_id}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
        return folder() / name

    def load(self, path: Path | None = None, advance: Advance | None = None) -> np.ndarray:
        """The pixels, mapped copy-on-write; the array is built if need be. `path`: see `build`."""
        pixels: np.ndarray = np.load(self.build(path, advance), mmap_mode="c")
        return pixels

    def build(self, path: Path | None = None, advance: Advance | None = None) -> Path:
        """The array's file, which exists and is complete afterwards. `path`: that of `ImageArray.path`, where it was
        just asked for."""
        path = path or self.path()
        if not _is_whole(path):
            with writing_cache(), _lock(path):
                if not _is_whole(path):  # another process may have built it while this one waited
                    digests = self._write(path, advance)
                    if self.path() != path:
                        path.unlink()
                        raise DataError(f"{self.images.file.path}: images changed while they were decoded; start again")
                    _store_digests(_digests_file(path), digests)
        return path

    def pixel_digests(self, path: Path, advance: Advance | None = None) -> NDArray[np.uint8]:
        """sha256 of each image's decoded pixels, uint8 [N, 32]: as stored, else from the array if there is one, else by
        decoding, which stores the digests and builds no array. `path`: that of `ImageArray.path`."""
        file, count = _digests_file(path), len(self.images.entries)
        if (digests := _stored_digests(file, count)) is None:
            with writing_cache(), _lock(path):
                if (digests := _stored_digests(file, count)) is None:  # see `build`
                    array = np.load(path, mmap_mode="r") if _is_whole(path) else None
                    own = _digests_of(array) if array is not None else self._decode(advance=advance)
                    _store_digests(file, own)
                    return own
        return digests

    def _write(self, path: Path, advance: Advance | None) -> NDArray[np.uint8]:
        """Fill a temporary file, its checksum last, then rename it. The images' digests."""
        size, temporary = self.preprocessing.image_size, path.with_suffix(f".{os.getpid()}-{secrets.token_hex(4)}.tmp")
        shape = len(self.images.entries), size, size, 3
        try:
            with temporary.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
                file.flush()
                digests = self._decode(temporary, file.tell(), advance)
                file.write(_checksum(temporary, file.seek(0, os.SEEK_END)))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return digests

    def _decode(self, to: Path | None = None, offset: int = 0, advance: Advance | None = None) -> NDArray[np.uint8]:
        return decode_all(self.images.paths, len(self.images.entries), self.preprocessing, to, offset, advance)


def has_digests(array: Path) -> bool:
    """Whether `pixel_digests` need not decode any image for the array of this path, whether that exists or not."""
    return array.is_file() or _digests_file(array).is_file()


def _digests_file(array: Path) -> Path:
    return array.with_suffix(".sha256")


def _stored_digests(file: Path, count: int) -> NDArray[np.uint8] | None:
    """The digests in a file, uint8 [N, 32]; None if it is damaged or missing."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    body, last = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if len(body) != count * DIGEST_BYTES or hashlib.sha256(body).digest() != last:
        return None
    return np.frombuffer(body, np.uint8).reshape(count, DIGEST_BYTES)


def _store_digests(file: Path, digests: NDArray[np.uint8]) -> None:
    body = digests.tobytes()
    write_atomically(file, lambda out: out.write(body + hashlib.sha256(body).digest()))


def _digests_of(array: np.ndarray) -> NDArray[np.uint8]:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        starts = range(0, len(array), IMAGES_AT_ONCE)
        parts = pool.map(lambda start: digests_of(array[start : start + IMAGES_AT_ONCE]), starts)
        return np.concatenate([*parts, np.zeros((0, DIGEST_BYTES), np.uint8)])


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds the array's lock; the system releases it if this process dies."""
    lock = path.with_suffix(".lock")
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if lies_at(lock, file.fileno()):  # else `clear` has deleted it in the meantime
                yield
                return


CHECKSUM_BYTES = 4
"""At the end of the file, after the array."""

CHUNK = 1 << 20

_WHOLE: set[tuple[str, int, int, int]] = set()
"""Files that this process has verified: path, inode, size and time."""


def _is_whole(path: Path) -> bool:
    """Whether the array is there as it was written. Each process reads it once to tell, at 1.4 GB/s or more."""
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
        return False  # any other error says nothing about the array: a good one must not be rebuilt for it
    return True


def _checksum(path: Path, size: int) -> bytes:
    """CRC-32 of the first `size` bytes: it detects damage, not malice."""
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


def _contents() -> list[Path]:
    """What is in the folder; `PlaceError` if it cannot be read."""
    with writing_cache(), suppress(FileNotFoundError):
        return list(folder().iterdir())
    return []


def cached() -> list[Cached]:
    """All arrays, largest first, without links to nothing and whatever else is not a file."""
    arrays = []
    for path in (path for path in _contents() if path.suffix == ".npy"):
        with suppress(FileNotFoundError):
            status = path.stat()
            arrays += [Cached(path, status.st_size)] if stat.S_ISREG(status.st_mode) else []
    return sorted(arrays, key=lambda array: -array.bytes)


def clear() -> int:
    """Delete all arrays, leftovers of killed builders and locks, but not the digests; returns the bytes freed.

    What another process is building is left: that process would lose its lock, and a second builder its array.
    """
    freed = 0
    ours = [path for path in _contents() if path.suffix in SUFFIXES and (path.is_symlink() or not path.is_dir())]
    for lock in {_lock_of(path) for path in ours}:
        with writing_cache(), lock.open("w") as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            parts = [path for path in ours if _lock_of(path) == lock and path != lock]
            for path in (*parts, lock) if lies_at(lock, file.fileno()) else ():
                freed += path.stat().st_size if path.is_file() else 0
                path.unlink(missing_ok=True)
    return freed


def _lock_of(path: Path) -> Path:
    """The lock of an array, `x.npy`, or of one being built, `x.<process>.tmp`."""
    return (path.with_suffix("") if path.suffix == ".tmp" else path).with_suffix(".lock")
