"""What stands where a file should, without opening it: to open a pipe may wait for ever."""

from __future__ import annotations

import os
import stat
from pathlib import Path

NO_FILE = "listed, but there is no such file"

_OTHERS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def file_problem(path: Path) -> str | None:
    """Why a listed image cannot be opened, by one look at its folder; None if it can be tried."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return NO_FILE
    except (OSError, ValueError) as error:
        return f"cannot be looked at ({error})"
    if other := no_file(status):
        return other
    return None if status.st_size else "the file is empty"


def no_file(status: os.stat_result) -> str | None:
    """What it is, if it is no file."""
    other = _OTHERS.get(stat.S_IFMT(status.st_mode))
    return f"{other}, not a file" if other else None
