"""Processes that this one starts: they import what it has imported, not what lies in the folder that they start in."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

SAFE = "-P"
"""Python's flag for a path without the current folder, whatever is started with `-m` or `-c`."""

SAFE_PATH = "PYTHONSAFEPATH"
"""The same as an environment variable, which multiprocessing's helper processes inherit."""


@contextmanager
def apart() -> Iterator[None]:
    """Inside, multiprocessing starts processes with a safe path, and they leave the caller's own script alone: ours
    need nothing of it, and without a main guard (or in a notebook) it would be done once more in each."""
    main, before = sys.modules["__main__"], os.environ.get(SAFE_PATH)
    sys.modules["__main__"] = ModuleType("__main__")
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        os.environ.pop(SAFE_PATH)
        if before is not None:
            os.environ[SAFE_PATH] = before
