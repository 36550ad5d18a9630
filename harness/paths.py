"""Where things are written: the cache for what can be made again, and atomic files everywhere."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from harness.errors import HarnessError

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)
"""Errors of a folder that cannot be written to, or that is a file."""


def cache_folder() -> Path:
    """$SCTBENCH_CACHE, else $XDG_CACHE_HOME/sctbench, else ~/.cache/sctbench."""
    own = os.environ.get("SCTBENCH_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sctbench"


@contextmanager
def writing_cache() -> Iterator[None]:
    """Inside, `HarnessError` names the cache if it cannot be written to."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise HarnessError(
            f"the cache {cache_folder()} cannot be written to ({error.strerror}): see its permissions, or name another "
            "with `sctbench --cache-dir DIR ...`"
        ) from None


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
