"""Failure classes: what went wrong, and what that means for this run and for the others."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

from harness.errors import USER_ERRORS, DataError, PlaceError
from suites.base import SuiteError


class Diverged(RuntimeError):
    """The training loss, or a trained tensor, is no longer finite."""

    def __init__(self, step: int, epoch: int, what: str = "the training loss") -> None:
        super().__init__(f"{what} is no longer finite since step {step} (epoch {epoch})")
        self.step = step


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureClass:
    """One kind of failure and its treatment."""

    name: str
    about: str
    """What it means, and what to do."""

    conclusive: bool = False
    """Whether it says something about the settings: under `tuned` a trial that failed like this counts as the worst.
    After any other failure nothing is chosen until the trial has been repeated."""

    pauses: tuple[float, ...] = ()
    """Seconds to wait before each further attempt, which the same process makes right away."""

    again: bool = True
    """Whether the same run may succeed next time, because nothing is wrong with it: `sctbench submit` and a requeued
    job repeat it."""

    keeps_state: bool = True
    """Whether the next attempt can use the training state: the run itself was sound."""

    ends_process: bool = False
    """Whether the process that met it can do no further runs."""

    ends_all: bool = False
    """Whether the runs that wait would fail in the same way."""


_ALL = (
    FailureClass(
        name="memory",
        about="out of memory: a smaller batch, a smaller backbone or a larger machine",
        again=False,
        conclusive=True,
    ),
    FailureClass(
        name="memory_shared",
        about="out of memory on a device that other processes use too: wait for them, or take another",
    ),
    FailureClass(
        name="diverged",
        about="the loss became NaN or infinite: a lower learning rate",
        again=False,
        conclusive=True,
        keeps_state=False,
    ),
    FailureClass(
        name="data", about="lists, images or other files are missing or damaged: see `sctbench data check`", again=False
    ),
    FailureClass(
        name="config",
        about="method, backbone and settings do not go together",
        again=False,
        conclusive=True,
        keeps_state=False,
    ),
    FailureClass(
        name="io",
        about="a file server, a disk or the network failed, several times in a row: the same command tries again",
        pauses=(1.0, 5.0, 25.0),
    ),
    FailureClass(name="disk_full", about="no space left: free some, the same command goes on", ends_all=True),
    FailureClass(
        name="read_only",
        about="a folder or file may not be written to, or read: see its permissions, the same command goes on",
        ends_all=True,
    ),
    FailureClass(
        name="file_system",
        about="the file system of the results or the cache has no locks (Lustre: mount option flock): move the "
        "folder with --out or --cache-dir",
        ends_all=True,
    ),
    FailureClass(
        name="killed",
        about="the process ended without a word: killed, for memory or by an administrator, or its machine went down",
    ),
    FailureClass(
        name="device",
        about="the accelerator reported an error; the process that used it is replaced",
        ends_process=True,
    ),
    FailureClass(
        name="unexpected",
        about="a defect, in method or harness; the record says where",
        again=False,
        conclusive=True,
        keeps_state=False,
    ),
)

CLASSES = {kind.name: kind for kind in _ALL}
"""All classes by the name that records, `status` and summaries use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What a failed run's record says in addition to the reason."""

    kind: str
    """One of `CLASSES`."""

    step: int | None = None
    """First optimiser step (from 1) whose loss was not finite."""

    where: str = ""
    """The end of the traceback of an unexpected error."""


TRACEBACK_LINES = 12
"""Lines of a traceback that a record keeps."""

_PASSING_NAMES = """
ESTALE EIO EREMOTEIO ETIMEDOUT EAGAIN EBUSY EINTR ENOLCK
ECONNRESET ECONNREFUSED ECONNABORTED ENOTCONN ESHUTDOWN EPIPE EHOSTDOWN EHOSTUNREACH
ENETDOWN ENETUNREACH ENETRESET EPROTO ECOMM
ENXIO ENODEV ENFILE EMFILE ENOBUFS
"""

_PASSING = frozenset(getattr(errno, name) for name in _PASSING_NAMES.split())
"""Errors of file servers, disks and networks that may have passed a moment later."""

_PASSING_WORDS = tuple(os.strerror(number) for number in _PASSING)
"""What libraries put into errors that are not an `OSError`."""

_ERRNO = {
    **dict.fromkeys(_PASSING, "io"),
    errno.ENOENT: "data",
    errno.ENOSYS: "file_system",
    errno.EOPNOTSUPP: "file_system",
    errno.ENOSPC: "disk_full",
    errno.EDQUOT: "disk_full",
    errno.EROFS: "read_only",
    errno.EACCES: "read_only",
    errno.EPERM: "read_only",
    errno.ENOMEM: "memory",
}

_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""How torch's errors other than `OutOfMemoryError` speak of memory, on CPU and in CUDA's libraries."""

_DEVICE = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "cuDNN error")


def kind_of(error: BaseException) -> FailureClass:
    """The class of an error."""
    return CLASSES[_kind(error)]


def is_passing(error: BaseException) -> bool:
    """Whether the error, or one that caused it, is one of a file server, disk or network that may have passed a moment
    later: then it says nothing about what was being read or done."""
    return any(_passes(one) for one in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _passes(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in _PASSING or isinstance(error, ConnectionError | TimeoutError)
    return not isinstance(error, (*USER_ERRORS, Diverged)) and any(words in str(error) for words in _PASSING_WORDS)


def _kind(error: BaseException) -> str:
    if isinstance(error, Diverged):
        return "diverged"
    if is_passing(error):
        return "io"
    if isinstance(error, DataError | SuiteError):  # suites raise while they build their images; specs name real ones
        return "data"
    if isinstance(error, PlaceError):
        return _ERRNO.get(error.errno, "read_only")
    if isinstance(error, USER_ERRORS):
        return "config"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported
        return "memory"
    if isinstance(error, OSError):
        return _ERRNO.get(error.errno or 0, "unexpected")
    if isinstance(error, RuntimeError):
        text = str(error)
        if any(words in text for words in _MEMORY):
            return "memory"
        if any(words in text for words in _DEVICE):
            return "device"
    return "unexpected"


def describe(error: BaseException) -> tuple[str, Failure]:
    """An error's reason in words and its failure, for the record."""
    kind = kind_of(error)
    reason = str(error) or type(error).__name__
    if not isinstance(error, (*USER_ERRORS, Diverged)):
        reason = f"{type(error).__name__}: {reason}"
    lines = "".join(traceback.format_exception(error)).splitlines()
    where = "\n".join(lines[-TRACEBACK_LINES:]) if kind.name == "unexpected" else ""
    return reason, Failure(kind=kind.name, step=getattr(error, "step", None), where=where)
