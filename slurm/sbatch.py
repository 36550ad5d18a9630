"""A profile and an array in submitit's words, and the batch script that comes of them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submitit.slurm.slurm import _make_sbatch_string

from harness.children import SAFE
from slurm.profile import Profile

if TYPE_CHECKING:
    from slurm.planning import Array

PYTHON = f"{shlex.quote(sys.executable)} {SAFE}"
"""How a job starts Python: it must not import from the folder that it starts in."""

REPORT_MINUTES = 30
"""Time limit of the job that writes the tables."""

REPORT_SIGNAL_SECONDS = 120
"""Time before that limit at which it is told; it has no state to save."""


def parameters(profile: Profile, array: Array, after: list[str]) -> dict[str, Any]:
    """Parameters of submitit's executor for an array that waits until the jobs with the ids `after` have ended."""
    is_report = not array.jobs
    wanted = {
        "job_name": array.name,
        "partition": (is_report and profile.report_partition) or profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "time": REPORT_MINUTES if is_report else profile.time,
        "gpus_per_node": None if is_report else profile.gpus or None,
        "cpus_per_task": 1 if is_report else profile.cpus,
        # Since 22.05 srun does not take the number over from sbatch.
        "srun_args": ["--cpus-per-task", str(1 if is_report else profile.cpus)],
        "mem": None if is_report else profile.mem,
        "constraint": None if is_report else profile.constraint,
        "setup": list(profile.setup) or None,
        "signal_delay_s": REPORT_SIGNAL_SECONDS if is_report else profile.signal_delay,
        "array_parallelism": array.parallel or max(1, len(array.jobs)),
        "dependency": "afterany:" + ":".join(after) if after else None,
        "stderr_to_stdout": True,
        # Whatever the site's default: a job must be able to queue up again.
        "additional_parameters": {"requeue": True, **profile.sbatch},
    }
    return {key: value for key, value in wanted.items() if value is not None}


def script(profile: Profile, array: Array, folder: Path, after: list[str]) -> str:
    """The batch script that submitit writes for the array; needs no SLURM."""
    command = f"{PYTHON} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    count = len(array.jobs) if len(array.jobs) > 1 else None
    return _make_sbatch_string(command=command, folder=folder, map_count=count, **parameters(profile, array, after))
