"""From runs to job arrays: which run goes into which job, and what waits for what. Pure functions.

Runs that share data and backbone share a job, as many as fit into half of its time limit: the estimate is one of
arithmetic, and a job that has more time than it needs costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.execution.overview import ASSUMED_RATE
from harness.plans.tuning import WorkItem, representative_spec
from harness.schema.spec import RunSpec, digest
from slurm.profile import Profile

Seconds = Callable[[WorkItem], float | None]
"""Estimated duration of a run; None if it is not known."""

CORE_RATE = 5e10
"""Operations a second that a run on a CPU, which uses one core, is assumed to do."""

START_SECONDS = 60.0
"""Of a job: imports, weights and data."""

RUN_SECONDS = 10.0
"""Of a run, beside its arithmetic: building the model, choosing, measuring cost."""

FILL = 0.5
"""Share of a job's time limit that estimates may fill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """Jobs that are submitted together, as one array."""

    name: str
    """The jobs' name in SLURM; no other array has it."""

    jobs: tuple[tuple[WorkItem, ...], ...]
    """The runs of each job, in order; empty for the job that writes the tables."""

    parallel: int | None = None
    """Jobs of this array that may run at the same time."""

    after: tuple[str, ...] = ()
    """Names of arrays of the same submission that must have ended, well or not."""

    after_jobs: tuple[str, ...] = ()
    """SLURM ids of jobs of earlier submissions that must have ended."""


def key_of(job: WorkItem) -> str:
    """What a run is called in the log of submissions: its run id, or a name for one that is not decided yet."""
    if isinstance(job, RunSpec):
        return job.run_id
    return "final-" + digest([*map(list, job.cell), job.budget, job.seed])[:12]


def rate(profile: Profile) -> float:
    """Operations a second that a run is assumed to do."""
    return profile.tflops * 1e12 if profile.tflops else ASSUMED_RATE if profile.gpus else CORE_RATE


def estimate(operations: Callable[[RunSpec], float | None], profile: Profile) -> Seconds:
    """Durations by a count of operations."""

    def seconds(job: WorkItem) -> float | None:
        count = operations(representative_spec(job))
        return None if count is None else RUN_SECONDS + count / rate(profile)

    return seconds


def _shared(job: WorkItem) -> tuple[object, ...]:
    """What runs of one job have in common."""
    spec = representative_spec(job)
    return spec.suite, spec.task, spec.shots, spec.split_seed, spec.backbone, spec.preprocessing


def pack(runs: Sequence[WorkItem], seconds: Seconds, profile: Profile) -> list[tuple[WorkItem, ...]]:
    """Runs grouped into jobs; a run of unknown duration is alone in its job unless `runs_per_job` says otherwise."""
    groups: dict[tuple[object, ...], list[WorkItem]] = {}
    for run in runs:
        groups.setdefault(_shared(run), []).append(run)
    return [job for group in groups.values() for job in _split(group, seconds, profile)]


def _split(group: Sequence[WorkItem], seconds: Seconds, profile: Profile) -> list[tuple[WorkItem, ...]]:
    if profile.runs_per_job:
        size = profile.runs_per_job
        return [tuple(group[start : start + size]) for start in range(0, len(group), size)]
    room = profile.time * 60 * FILL - START_SECONDS
    jobs: list[list[WorkItem]] = []
    left = 0.0
    for run in group:
        duration = seconds(run)
        needed = room if duration is None else duration
        if not jobs or needed > left:
            jobs.append([])
            left = room
        jobs[-1].append(run)
        left -= needed
    return [tuple(job) for job in jobs]


def deal(jobs: Sequence[tuple[WorkItem, ...]], lanes: int) -> list[tuple[WorkItem, ...]]:
    """The same runs in at most `lanes` jobs, dealt in turn."""
    return [tuple(run for job in jobs[lane::lanes] for run in job) for lane in range(min(lanes, len(jobs)))]


def too_long(runs: Sequence[WorkItem], seconds: Seconds, profile: Profile) -> list[WorkItem]:
    """Runs that alone are estimated to need more than a job's time limit: they will time out and go on."""
    return [run for run in runs if (seconds(run) or 0.0) + START_SECONDS > profile.time * 60]


def shares(parallel: int | None, count: int) -> list[int | None]:
    """How many jobs each of `count` arrays may run at a time, so that together they keep to `parallel`."""
    if parallel is None:
        return [None] * count
    return [max(1, parallel // count + (number < parallel % count)) for number in range(count)]


def arrays(
    name: str,
    stages: Sequence[Sequence[tuple[WorkItem, ...]]],
    parallel: int | None,
    limit: int,
    after_jobs: Sequence[str] = (),
) -> list[Array]:
    """Arrays of at most `limit` jobs for stages of which each waits for the one before.

    `after_jobs` are what the stages behind the first wait for besides. Where there are more arrays than `parallel`,
    each of one job at a time, the later ones wait for the earlier ones.
    """
    found: list[Array] = []
    before: tuple[str, ...] = ()
    for number, jobs in enumerate(stages):
        chunks = [tuple(jobs[start : start + limit]) for start in range(0, len(jobs), limit)]
        names = [f"{name}.{len(found) + i}" for i in range(len(chunks))]
        for i, (chunk, share) in enumerate(zip(chunks, shares(parallel, len(chunks)), strict=True)):
            queue = (names[i - parallel],) if parallel is not None and i >= parallel else ()
            earlier = tuple(after_jobs) if number else ()
            found.append(Array(name=names[i], jobs=chunk, parallel=share, after=before + queue, after_jobs=earlier))
        before = tuple(names) or before
    return found


def report_array(name: str, planned: Sequence[Array]) -> Array:
    """The job that writes the tables when all arrays have ended."""
    return Array(name=f"{name}.report", jobs=(), after=tuple(array.name for array in planned))
