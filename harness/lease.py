"""Leases: two processes never do one run twice, wherever they are.

A lease is the file `lease.json` in the run's folder, put there whole by a hard link, which fails if there is one (on a
file system without hard links it is created and then filled, and until then nobody can name its holder). Its owner
touches it every `BEAT_SECONDS`, through the open file, so that it can never touch another's. A stale lease is replaced
under a lock on that very file: of several processes that find it stale, one takes it over.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.errors import Interrupted

LEASE_NAME = "lease.json"

BEAT_SECONDS = 10.0
"""Time between two heartbeats."""

NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without hard links answer: exFAT, and those of cloud storage."""

STALE_SECONDS = 300.0
"""A lease without a heartbeat for this long is free. File servers may show an old time for up to a minute."""

REQUEUED_STALE_SECONDS = 30.0
"""The same for a lease of an earlier start of our own SLURM job: SLURM ends a job before it starts it again,
but a node that it has lost may still be working."""


class Taken(Interrupted):
    """Another process holds the lease; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a lease."""

    host: str
    pid: int
    space: str
    """The process ids' name space, as two containers on one host may use the same ids, and the machine's id if it has
    one, as two machines may both be called localhost."""

    born: str
    """When the process started, in the kernel's ticks: ids are reused."""

    job: str
    """SLURM's job id, with the array's task; empty elsewhere."""

    restarts: int
    """How often SLURM had restarted that job."""

    def __str__(self) -> str:
        job = f" (SLURM job {self.job})" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"


def myself() -> Holder:
    """This process."""
    environment = os.environ
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        space=_space(),
        born=_born(os.getpid()),
        job=f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID", ""),
        restarts=int(environment.get("SLURM_RESTART_COUNT", 0)),
    )


MACHINE_ID = Path("/etc/machine-id")


def _space() -> str:
    try:
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 (a name, not a path)
    except OSError:
        return ""
    with suppress(OSError):
        return f"{space} {MACHINE_ID.read_text().strip()}"
    return space


def _born(pid: int) -> str:
    """Start time of a living process; empty if there is none, or if it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _is_dead(holder: Holder, me: Holder) -> bool:
    """Whether the holder is a process of this machine that has ended."""
    here = bool(holder.space) and (holder.host, holder.space) == (me.host, me.space)
    return here and _born(holder.pid) != holder.born


def _is_stale(holder: Holder | None, age: float, me: Holder) -> bool:
    """Whether a lease of that holder (None: unreadable), `age` seconds after its last heartbeat, may be taken over."""
    if holder is None:
        return age > STALE_SECONDS
    ours = bool(me.job) and holder.job == me.job and holder.restarts < me.restarts
    return _is_dead(holder, me) or age > (REQUEUED_STALE_SECONDS if ours else STALE_SECONDS)


@dataclass(frozen=True, slots=True)
class Held:
    """A lease as another process sees it."""

    holder: Holder | None
    """None if it cannot be read."""

    age: float
    """Seconds since the last heartbeat."""


def read(folder: Path) -> Held | None:
    """The lease in a run's folder, if there is one. One that cannot be read counts as held: its holder may be alive."""
    try:
        with (folder / LEASE_NAME).open("rb") as file:
            return Held(_holder(file.read()), time.time() - os.fstat(file.fileno()).st_mtime)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return Held(None, age=0.0)


def is_stale(held: Held) -> bool:
    """Whether the lease may be taken over."""
    return _is_stale(held.holder, held.age, myself())


def _holder(content: bytes) -> Holder | None:
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None


class Lease:
    """A lease that this process holds, with a thread that keeps it alive. Use it as a context manager."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor
        self._lost = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        with suppress(OSError):  # a lease that stays goes stale when this process has ended, and the record is written
            if self.is_ours():
                self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _beat(self) -> None:
        while not self._end.wait(BEAT_SECONDS):
            with suppress(OSError):  # a file server that is away for a moment: nobody can have taken it over
                self._lost = not self.is_ours()
                os.utime(self._descriptor)

    def is_ours(self) -> bool:
        return lies_at(self.path, self._descriptor)

    def check(self) -> None:
        """Raise `Taken` if another process had taken the lease over by the last heartbeat: this one stood still."""
        if self._lost:
            raise Taken("a process that took the run over while this one stood still")


def lies_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one with that name. `OSError` if the file system does not say."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.ESTALE:  # what a file server says of an open file that another machine has replaced
            return False
        raise


def acquire(folder: Path) -> Lease:
    """Take the lease of a run's folder. Raises `Taken` if it is held, `OSError` if it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    me, path = myself(), folder / LEASE_NAME
    mine = folder / f".{LEASE_NAME}.{me.pid}.{secrets.token_hex(4)}.tmp"
    descriptor = os.open(mine, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, json.dumps(asdict(me)).encode())
        while not _put(mine, path):
            # The new file's time is the file server's clock, as the heartbeats are.
            if _take_over(path, mine, os.fstat(descriptor).st_mtime, me):
                break
        if not lies_at(path, descriptor):  # a file of its own, created where there are no hard links
            placed = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            os.close(descriptor)
            descriptor = placed
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        mine.unlink(missing_ok=True)
    return Lease(path, descriptor)


def _put(mine: Path, path: Path) -> bool:
    try:
        try:
            path.hardlink_to(mine)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            with path.open("xb") as file:
                file.write(mine.read_bytes())
    except FileExistsError:
        return False
    return True


def _take_over(path: Path, mine: Path, now: float, me: Holder) -> bool:
    """Replace a stale lease by `mine`, unless it has gone meanwhile. Raises `Taken` if it is not stale."""
    try:
        file = path.open("rb+")
    except FileNotFoundError:
        return False
    with file:
        holder = _holder(file.read())
        if not _is_stale(holder, now - os.fstat(file.fileno()).st_mtime, me):
            raise Taken(str(holder or "a process that cannot be named"))
        fcntl.flock(file, fcntl.LOCK_EX)
        if not lies_at(path, file.fileno()):
            return False
        mine.replace(path)
        return True
