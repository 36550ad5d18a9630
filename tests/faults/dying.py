"""A process that kills itself at a chosen moment: the n-th time that it touches a file of a certain kind."""

import contextlib
import os
import pathlib
import signal
from collections import Counter

from harness import paths
from harness.records import store
from harness.training import checkpointing

PLACES = ("state", "record", "kept files", "lease")
"""Kinds of files by which a moment is named."""


def place_of(path):
    """The kind of file that a path, also a temporary one, belongs to."""
    name = pathlib.Path(path).name
    if any(kept in name for kept in store.KEPT_FILES):
        return "kept files"
    if "safetensors" in name:
        return "state"
    return next((place for place in ("record", "lease") if f"{place}.json" in name), "other")


class Moments:
    """Counts the moments before, in and after each operation on a file; at the chosen one of a place, or of all, the
    process is no more."""

    def __init__(self, place="", number=0):
        self.place, self.number = place, number
        self.passed = Counter()

    def tick(self, path):
        place = place_of(path)
        self.passed.update((place, "any"))
        if self.place in (place, "any") and self.passed[self.place] == self.number:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner, name):
        """Tick before and after every call of a method of paths."""
        original = getattr(owner, name)

        def called(path, *arguments, **options):
            self.tick(path)
            result = original(path, *arguments, **options)
            self.tick(path)
            return result

        setattr(owner, name, called)

    def install(self):
        """From now on, in this process."""
        for name in ("replace", "unlink", "hardlink_to"):
            self.around(pathlib.Path, name)
        original = paths.write_atomically

        def write_atomically(path, write):
            original(path, lambda file: write(Halting(file, path, self)))

        for module in (checkpointing, store):
            module.write_atomically = write_atomically


class Halting:
    """A file whose writes are done in three parts, with a moment in between."""

    def __init__(self, file, path, moments):
        self.file, self.path, self.moments = file, path, moments

    def write(self, data):
        third = max(1, len(data) // 3)
        for start in range(0, len(data), third):
            self.file.write(data[start : start + third])
            self.file.flush()
            self.moments.tick(self.path)


def child(action):
    """Run `action` in a forked process; returns its id. Whatever it raises is its exit status 1."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def wait(pid):
    """How a process ended: `killed`, `done` or `error`."""
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return "killed"
    return "done" if os.WEXITSTATUS(status) == 0 else "error"


def kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
