"""What is on disk: whether a listed file can be opened, without trying it (opening a pipe may block for ever)."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import DataError

NO_FILE = "listed, but there is no such file"

_OTHERS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def file_problem(path: Path) -> str | None:
    """Why a listed image cannot be opened, from its `stat` alone; None if opening it can be tried."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return NO_FILE
    except (OSError, ValueError) as error:
        return f"cannot be accessed ({error})"
    if other := no_file(status):
        return other
    return None if status.st_size else "the file is empty"


def no_file(status: os.stat_result) -> str | None:
    """What it is, if it is not a regular file."""
    other = _OTHERS.get(stat.S_IFMT(status.st_mode))
    return f"{other}, not a file" if other else None


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is there. Never raises, unlike `Path.is_file` where a folder may not be read."""
    return os.path.isfile(path)  # noqa: PTH113


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Inside, `DataError` names a listed file that is missing or cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: {NO_FILE}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
