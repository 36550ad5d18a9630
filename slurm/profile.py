"""Profiles: where the jobs of a submission go, and what each of them asks for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.errors import HarnessError

LEAST_MINUTES = 3
"""SLURM checks time limits every 30 s, so a shorter job may be told to stop before it has started."""

OWN_OPTIONS = {
    **{key: f"`{key}`" for key in ("partition", "account", "qos", "time", "mem", "constraint")},
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task"), "`gpus`"),
    "cpus-per-task": "`cpus`",
    "array": "`parallel`",
    "signal": "`signal_delay`",
    **dict.fromkeys(("job-name", "dependency", "requeue", "no-requeue", "open-mode", "output", "error"), ""),
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node", "clusters", "parsable", "test-only", "wait"), ""),
}
"""Options of sbatch that the harness depends on, by the profile's key for them if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What every job of a submission asks for; a profile file is this as YAML."""

    scheduler: str = "slurm"
    """A name in `slurm.schedulers.SCHEDULERS`."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: int = 240
    """Time limit of a job in minutes; written as SLURM takes it: 240, 4:00:00 or 1-12."""

    gpus: int = 1
    """GPUs of a job: 1, or 0 to compute on CPUs."""

    cpus: int = 4
    mem: str | None = None
    """Memory of a job, e.g. `32GB`; the partition's default if not given."""

    constraint: str | None = None
    parallel: int | None = None
    """Jobs that may run at the same time; as many as the scheduler allows if not given."""

    runs_per_job: int | None = None
    """Runs that one job does; as many as fit into half of its time limit if not given."""

    setup: tuple[str, ...] = ()
    """Shell lines that each job runs first."""

    signal_delay: int = 120
    """Seconds before the time limit at which a job is told to save its state and to queue up again."""

    requeues: int = 10
    """Number of time-outs, each of a job that has used all its time, after which it is not queued again."""

    tflops: float | None = None
    """TFLOP/s that the GPU, or with `gpus: 0` one core, sustains; what `sctbench plan` assumes if not given."""

    report_partition: str | None = None
    """Partition of the job that writes the tables at the end; `partition` if not given."""

    sbatch: Mapping[str, Any] = field(default_factory=dict)
    """Further options of sbatch, by their long names; none of `OWN_OPTIONS`."""

    def __post_init__(self) -> None:
        requirements = {
            "time": (self.time >= LEAST_MINUTES, f"at least {LEAST_MINUTES} minutes"),
            "gpus": (self.gpus in (0, 1), "0 or 1: a job does its runs one after the other, and a run uses one GPU"),
            "cpus": (self.cpus >= 1, "at least 1"),
            "parallel": (self.parallel is None or self.parallel >= 1, "at least 1"),
            "runs_per_job": (self.runs_per_job is None or self.runs_per_job >= 1, "at least 1"),
            "signal_delay": (30 <= self.signal_delay < self.time * 60, "from 30 seconds to the time limit"),
            "requeues": (self.requeues >= 0, "at least 0"),
            "tflops": (self.tflops is None or self.tflops > 0, "positive"),
            "mem": (self.mem is None or bool(re.fullmatch(r"\d+[KMGT]?B?", self.mem)), "like 500MB or 32GB"),
        }
        for key, (holds, requirement) in requirements.items():
            if not holds:
                raise HarnessError(f"{key}={getattr(self, key)!r} must be {requirement}")
        for option in self.sbatch:
            own = OWN_OPTIONS.get(str(option).replace("_", "-"))
            if own is not None:
                raise HarnessError(f"sbatch={option!r} cannot be set: {f'use {own}' if own else 'jobs depend on it'}")

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"setup": list(self.setup)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Profile:
        return cls(**{**values, "setup": tuple(values["setup"])})
