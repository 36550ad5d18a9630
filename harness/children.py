"""Child processes, which import what this one has imported and not what lies in their folder; signal handlers."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

SAFE = "-P"
"""Python's flag for a path without the current folder, whatever is started with `-m` or `-c`."""

SAFE_PATH = "PYTHONSAFEPATH"
"""The same as an environment variable, which multiprocessing's helper processes inherit."""


@contextmanager
def apart() -> Iterator[None]:
    """While active, multiprocessing starts processes with a safe path and without the caller's own script: ours do not
    need it, and without a main guard (or in a notebook) each would run it again."""
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


@contextmanager
def handling(handler: Any, *numbers: int) -> Iterator[None]:
    """While active, `handler` receives these signals. Only the main thread may set handlers: others change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
