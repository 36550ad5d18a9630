"""Where files are written: the cache, for what can be rebuilt, and atomic writes everywhere."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from harness.errors import PlaceError

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
"""Errors of a folder that cannot be written to, or that is a file."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk, or of a share of it, that is full."""


def cache_folder() -> Path:
    """$SCTBENCH_CACHE, else $XDG_CACHE_HOME/sctbench, else ~/.cache/sctbench."""
    own = os.environ.get("SCTBENCH_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sctbench"


@contextmanager
def writing(place: Path, another: str, what: str = "") -> Iterator[None]:
    """Turns an unwritable folder or a full disk into a `PlaceError` that says how to name another folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*UNWRITABLE, *FULL) or not _concerns(error.filename, place):
            raise
        do = "free some space" if error.errno in FULL else "see its permissions"
        reason = f"{what}{place} cannot be written to ({error.strerror}): {do}, or name another with {another}"
        raise PlaceError(reason, error.errno) from None


def _concerns(file: object, place: Path) -> bool:
    """Whether an error about `file` concerns the folder: the file is in it or above it, or is not named."""
    if not isinstance(file, str):
        return True
    one, other = Path(file).absolute(), place.absolute()
    return one.is_relative_to(other) or other.is_relative_to(one)


def writing_cache() -> AbstractContextManager[None]:
    """`writing` for the cache."""
    return writing(cache_folder(), "`sctbench --cache-dir DIR ...`", "the cache ")


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file in the same folder, flush it to disk, and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
