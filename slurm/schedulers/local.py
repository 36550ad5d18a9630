"""Processes of this machine, started by submitit's local executor: a rehearsal without a cluster."""

from __future__ import annotations

import dataclasses
import multiprocessing as mp
import os
import pickle
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import submitit

from harness.children import apart
from slurm.job_payload import Payload
from slurm.profile import Profile
from slurm.schedulers.base import PYTHON, ClusterError, LiveJob, Scheduler, outside_jobs
from slurm.submissions import ArrayEntry

if TYPE_CHECKING:
    from slurm.planning import Array
    from slurm.schedulers.base import Work


class Local(Scheduler):
    """This machine: all jobs of an array start at once. A job's id is that of its controller process, an array's the
    ids of its jobs, joined by `+`."""

    name = "local"
    job_word = "process"
    queues = False
    on_this_machine = True
    unused = ("partition", "account", "qos", "cpus", "mem", "constraint", "runs_per_job")

    def submit(self, array: Array, works: Sequence[Work], profile: Profile, folder: Path, after: Sequence[str]) -> str:
        """One controller process per job, in a session of its own; they outlive the process that submits."""
        processes = tuple(int(pid) for id_ in after for pid in id_.split("+"))
        payloads = [Payload(pickle.dumps(dataclasses.replace(work, after_processes=processes))) for work in works]
        ours, theirs = mp.Pipe()
        start = mp.get_context("spawn").Process(target=_start, args=(theirs, payloads, profile, folder))
        with outside_jobs():
            with apart():
                start.start()
            theirs.close()
            try:
                return "+".join(ours.recv())
            except EOFError:
                raise ClusterError(f"the processes of {array.name} could not be started; see {folder}") from None
            finally:
                start.join()

    def job_id(self, array: ArrayEntry, task: int) -> str:
        return array.job.split("+")[task]

    def live(self, arrays: Iterable[ArrayEntry]) -> dict[str, LiveJob]:
        ids = ((array.name, pid) for array in arrays for pid in self.job_ids(array))
        return {pid: LiveJob(id=pid, name=name, runs=True) for name, pid in ids if _is_controller(pid, name)}

    def cancel(self, array: ArrayEntry, jobs: Sequence[str]) -> None:
        """Ask jobs to save their state and to end; a controller hands the signal on to its job."""
        for pid in filter(self.live([array]).__contains__, jobs):
            for process in [int(pid), *_children(pid)]:  # with `setup` the controller is a shell's child
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)


SCHEDULER = Local()


def _is_controller(pid: str, name: str) -> bool:
    """Whether the process is still the one that was started for that array: ids are used again."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"submitit.local._local" in command and name.replace(".", "/").encode() in command


def _children(pid: str) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _start(connection: Connection, payloads: Sequence[Payload], profile: Profile, folder: Path) -> None:
    """In a process of its own, so that the controllers belong neither to the terminal nor to its pipes."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    ids = []
    for number, payload in enumerate(payloads):
        executor = submitit.LocalExecutor(folder, max_num_timeout=profile.requeues, python=PYTHON)
        executor.update_parameters(**_parameters(profile, number))
        ids.append(executor.submit(payload).job_id)
    connection.send(ids)


def _parameters(profile: Profile, number: int) -> dict[str, Any]:
    gpus: dict[str, Any] = {}
    if profile.gpus:
        import torch

        gpus = {"gpus_per_node": 1, "visible_gpus": [number % max(1, torch.cuda.device_count())]}
    return gpus | {
        "timeout_min": profile.time,
        "signal_delay_s": profile.signal_delay,
        "setup": list(profile.setup),
        "stderr_to_stdout": True,
    }
