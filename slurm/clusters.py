"""Where jobs go: SLURM, or processes of this machine by submitit's local executor, to rehearse without a cluster."""

from __future__ import annotations

import dataclasses
import multiprocessing as mp
import os
import pickle
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import clean_env

from harness.children import apart
from slurm import scheduler
from slurm.errors import ClusterError
from slurm.job_payload import Body
from slurm.profile import Profile
from slurm.sbatch import PYTHON, parameters
from slurm.scheduler import Live
from slurm.submissions import Sent

if TYPE_CHECKING:
    from slurm.job_runner import Batch, Report
    from slurm.planning import Array

    Work = Batch | Report


class Cluster(Protocol):
    """What submission, status and cancelling need of a cluster."""

    name: str
    """As the log of submissions calls it."""

    job_word: str
    """What its ids are of, for the user."""

    def limit(self) -> int:
        """Jobs that one array may have."""
        ...

    def send(self, array: Array, works: Sequence[Work], profile: Profile, folder: Path, after: list[str]) -> str:
        """Submit an array; returns its id. `after` are ids of what must have ended. Raises `ClusterError`."""
        ...

    def live(self, arrays: Iterable[Sent]) -> dict[str, Live]:
        """Jobs of those arrays that wait or run, by id. Raises `ClusterError` if the scheduler does not answer."""
        ...

    def ended(self, ids: Iterable[str]) -> dict[str, str]:
        """The last state of jobs that have ended, as far as it is known."""
        ...

    def cancel(self, ids: Sequence[str]) -> None:
        """Cancel jobs."""
        ...


class Slurm:
    """The cluster that this machine is a login node of."""

    name = "slurm"
    job_word = "SLURM job"

    def limit(self) -> int:
        """By the cluster's MaxArraySize."""
        return scheduler.max_array_size()

    def send(self, array: Array, works: Sequence[Work], profile: Profile, folder: Path, after: list[str]) -> str:
        """One call of sbatch, whatever the number of jobs."""
        with outside_jobs():
            try:
                executor = submitit.SlurmExecutor(folder, max_num_timeout=profile.requeues, python=PYTHON)
                executor.update_parameters(**parameters(profile, array, after))
                jobs = executor.submit_array([Body(pickle.dumps(work)) for work in works])
            except (FailedJobError, FailedSubmissionError) as error:
                raise ClusterError(f"sbatch refused {array.name}: {str(error).strip()}") from None
            except RuntimeError as error:  # no srun
                raise ClusterError(
                    f"{error} Without a cluster, `--cluster local` does the same on this machine"
                ) from None
        return jobs[0].job_id.partition("_")[0]

    def live(self, arrays: Iterable[Sent]) -> dict[str, Live]:
        """By name, which is known even of jobs whose submission was cut off; their ids are then filled in."""
        arrays = list(arrays)
        found = scheduler.live(array.name for array in arrays)
        ids = {job.name: job.id.partition("_")[0] for job in found.values()}
        for array in arrays:
            array.job = array.job or ids.get(array.name, "")
        return found

    def ended(self, ids: Iterable[str]) -> dict[str, str]:
        """By accounting."""
        return scheduler.ended(ids)

    def cancel(self, ids: Sequence[str]) -> None:
        """By scancel."""
        scheduler.cancel(ids)


class Local:
    """This machine: all jobs of an array start at once."""

    name = "local"
    job_word = "process"

    def limit(self) -> int:
        """There is none."""
        return 1_000_000

    def send(self, array: Array, works: Sequence[Work], profile: Profile, folder: Path, after: list[str]) -> str:
        """One controller process per job, in a session of its own; they outlive the process that submits."""
        processes = tuple(int(pid) for job in after for pid in job.split("+"))
        bodies = [Body(pickle.dumps(dataclasses.replace(work, after_processes=processes))) for work in works]
        ours, theirs = mp.Pipe()
        start = mp.get_context("spawn").Process(target=_start, args=(theirs, bodies, profile, folder))
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

    def live(self, arrays: Iterable[Sent]) -> dict[str, Live]:
        """By the controllers' process ids, where the processes still are what they were."""
        found = {}
        for array in arrays:
            for pid in array.job_ids():
                if _is_controller(pid, array.name):
                    found[pid] = Live(id=pid, name=array.name, state="RUNNING", reason="", left="", node="")
        return found

    def ended(self, ids: Iterable[str]) -> dict[str, str]:
        """Nobody keeps accounts."""
        return {}

    def cancel(self, ids: Sequence[str]) -> None:
        """Ask jobs to save their state and to end; a controller hands the signal on to its job."""
        for pid in ids:
            for process in [int(pid), *_children(pid)]:  # with `setup` the controller is a shell's child
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)


@contextmanager
def outside_jobs() -> Iterator[None]:
    """Hide the variables of the job that this runs in, if any: a job submitted there would inherit its shape.

    Outside one they stay, for they are the user's or the site's (SBATCH_ACCOUNT); SLURM_CONF stays always.
    """
    config = os.environ.get("SLURM_CONF")
    with clean_env() if "SLURM_JOB_ID" in os.environ else nullcontext():
        if config is not None:
            os.environ["SLURM_CONF"] = config
        yield


CLUSTERS: dict[str, Cluster] = {cluster.name: cluster for cluster in (Slurm(), Local())}


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


def _start(connection: Connection, bodies: list[Body], profile: Profile, folder: Path) -> None:
    """In a process of its own, so that the controllers belong neither to the terminal nor to its pipes."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    ids = []
    for number, body in enumerate(bodies):
        executor = submitit.LocalExecutor(folder, max_num_timeout=profile.requeues, python=PYTHON)
        executor.update_parameters(**_local_parameters(profile, number))
        ids.append(executor.submit(body).job_id)
    connection.send(ids)


def _local_parameters(profile: Profile, number: int) -> dict[str, Any]:
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
