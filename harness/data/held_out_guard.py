"""Keeps the splits that a run is scored on out of reach while a method attaches and trains.

Methods get no handle on held-out data. A method may still find one, by accident or on purpose: in the frames of its
callers, among all living objects, on disk. So while a guard is enforced, nothing in this process can open a held-out
list, an image that only such a list names, or an array decoded from one; and a run whose method tried fails, even where
the method swallowed the error. Code that is not Python (a C library that opens files itself, another process) is not
seen: the guard protects against mistakes and short cuts, not against malice.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.data.lists import ListFile, key_of
from harness.errors import HarnessError


class HeldOutGuard:
    """Keeps the held-out splits of one run out of reach."""

    def __init__(self, lists: list[ListFile], arrays: list[Path], images: NDArray[np.int64]) -> None:
        """`arrays`: prefixes of the paths of decoded arrays; `images`: `key_of` the real paths of the images, [N]."""
        self.tried: list[str] = []
        """What was asked for while the guard was enforced."""

        own = [key_of(os.path.realpath(source.path)) for source in lists]
        self._files = np.unique(np.r_[images, np.array(own, np.int64)])
        self._arrays = tuple(os.path.realpath(prefix) for prefix in arrays)

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Inside, held-out data cannot be opened. `HarnessError` at the end if it was tried."""
        _install()
        with _active(self):
            yield
        if self.tried:
            raise HarnessError(f"the method reached for held-out data while it attached or trained: {self.tried[0]}")

    def check_path(self, path: str) -> None:
        """`HarnessError` if this file belongs to a held-out split."""
        real = os.path.realpath(path)
        if self._holds(key_of(real)) or real.startswith(self._arrays):
            self.refuse(path)

    def _holds(self, key: int) -> bool:
        place = int(np.searchsorted(self._files, key))
        return place < len(self._files) and int(self._files[place]) == key

    def refuse(self, what: str) -> None:
        """Raise `HarnessError`, and note the attempt for the end."""
        self.tried.append(what)
        raise HarnessError(f"{what}: held-out data stay closed until training has ended")


_guard: HeldOutGuard | None = None
"""The guard that is enforced now: a process does one run at a time."""


def check_open(what: str) -> None:
    """`HarnessError` while a guard is enforced."""
    if _guard is not None:
        _guard.refuse(what)


@contextmanager
def allowed() -> Iterator[None]:
    """For the harness only: inside, a protocol that scores during training may open held-out data."""
    with _active(None):
        yield


@contextmanager
def _active(guard: HeldOutGuard | None) -> Iterator[None]:
    global _guard
    before, _guard = _guard, guard
    try:
        yield
    finally:
        _guard = before


@cache
def _install() -> None:
    """Python calls audit hooks for every file it opens. A hook cannot be removed; with no guard it does nothing."""
    sys.addaudithook(_audit_hook)


def _audit_hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _guard is not None and isinstance(arguments[0], str | bytes):
        _guard.check_path(os.fsdecode(arguments[0]))
