"""The door in front of the splits that a run is scored on: shut while a method attaches and trains.

Methods get no handle on held-out data. Somebody's method may still find one, by accident or to be clever: in the frames
of its callers, among all living objects, on disk. So while the door is shut, nothing in this process opens a held-out
list, an image that only such a list names, or an array decoded from one, whoever asks; and a run whose method tried
fails, even where the method swallowed the refusal. Code that is not Python (a C library that opens files itself,
another process) is not seen: this is a lock against mistakes and short cuts, not against malice.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from harness.data.lists import ListFile
from harness.errors import HarnessError


class HeldOutGuard:
    """Keeps the held-out splits of one run out of reach."""

    def __init__(self, lists: list[ListFile], arrays: list[Path], images: set[str]) -> None:
        """`arrays`: what the paths of decoded arrays begin with; `images`: real paths of the images."""
        self.tried: list[str] = []
        """What was asked for while the door was shut."""

        self._files = images | {os.path.realpath(source.path) for source in lists}
        self._arrays = tuple(os.path.realpath(prefix) for prefix in arrays)

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Nobody gets at held-out data inside. `HarnessError` at the end if somebody tried."""
        _install()
        with _set(self):
            yield
        if self.tried:
            raise HarnessError(f"the method reached for held-out data while it attached or trained: {self.tried[0]}")

    def check_path(self, path: str) -> None:
        """`HarnessError` if this file belongs to a held-out split."""
        real = os.path.realpath(path)
        if real in self._files or real.startswith(self._arrays):
            self.refuse(path)

    def refuse(self, what: str) -> None:
        """Raise `HarnessError`, and remember for the end that it was asked for."""
        self.tried.append(what)
        raise HarnessError(f"{what}: held-out data stay shut until training has ended")


_shut: HeldOutGuard | None = None
"""The door that is shut now: a process does one run at a time."""


def check_open(what: str) -> None:
    """`HarnessError` while a door is shut."""
    if _shut is not None:
        _shut.refuse(what)


@contextmanager
def allowed() -> Iterator[None]:
    """For the harness alone: lets a protocol that looks during training do so."""
    with _set(None):
        yield


@contextmanager
def _set(door: HeldOutGuard | None) -> Iterator[None]:
    global _shut
    before, _shut = _shut, door
    try:
        yield
    finally:
        _shut = before


@cache
def _install() -> None:
    """Python tells audit hooks of every file it opens. A hook cannot be removed; with no door shut it does nothing."""
    sys.addaudithook(_audit_hook)


def _audit_hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _shut is not None and isinstance(arguments[0], str | bytes):
        _shut.check_path(os.fsdecode(arguments[0]))
