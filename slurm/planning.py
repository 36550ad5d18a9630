"""From runs to job arrays: which run goes into which job, and what waits for what. Pure functions.

Runs that share data and backbone share a job, as many as fit into half of its time limit: the estimate counts only
arithmetic, and a job that has more time than it needs costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.execution.overview import ASSUMED_RATE
from harness.plans.tuning import WorkItem, representative_spec
from harness.schema.spec import RunSpec, digest
from slurm.profile import Profile

Runs = tuple[WorkItem, ...]
"""The runs of one job, in order."""

Seconds = Callable[[WorkItem], float | None]
"""Estimated duration of a run; None if it is not known."""

CORE_RATE = 5e10
"""Operations per second that a run on a CPU, which uses one core, is assumed to sustain."""

START_SECONDS = 60.0
"""Of a job: imports, weights and data."""

RUN_SECONDS = 10.0
"""Of a run, besides its arithmetic: building the model, selecting channels, measuring cost."""

FILL = 0.5
"""Share of a job's time limit that estimates may fill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """Jobs that are submitted together, as one array."""

    name: str
    """The jobs' name for the scheduler; no other array has it."""

    jobs: tuple[Runs, ...]
    """The runs of each job; empty for the job that writes the tables."""

    parallel: int | None = None
    """Jobs of this array that may run at the same time."""

    after: tuple[str, ...] = ()
    """Names of arrays of the same submission that must have ended, well or not."""

    after_jobs: tuple[str, ...] = ()
    """Ids of jobs of earlier submissions that must have ended."""

    def in_words(self) -> str:
        runs = f"{len(self.jobs)} job(s) with {sum(map(len, self.jobs))} run(s)" if self.jobs else "the tables"
        parallel = f", at most {self.parallel} at a time" if self.parallel else ""
        earlier = [f"{len(self.after_jobs)} job(s) of earlier submissions"] if self.after_jobs else []
        after = f", after {', '.join([*self.after, *earlier])}" if self.after or earlier else ""
        return f"{self.name}: {runs}{parallel}{after}"


def key_of(item: WorkItem) -> str:
    """What a run is called in the log of submissions: its run id, or a name for one that is not decided yet."""
    if isinstance(item, RunSpec):
        return item.run_id
    return "final-" + digest([*map(list, item.cell), item.budget, item.seed])[:12]


def rate(profile: Profile) -> float:
    """Operations per second that a run is assumed to sustain."""
    return profile.tflops * 1e12 if profile.tflops else ASSUMED_RATE if profile.gpus else CORE_RATE


def estimate(operations: Callable[[RunSpec], float | None], profile: Profile) -> Seconds:
    """Durations from a count of operations."""

    def seconds(item: WorkItem) -> float | None:
        count = operations(representative_spec(item))
        return None if count is None else RUN_SECONDS + count / rate(profile)

    return seconds


def _shared(item: WorkItem) -> tuple[object, ...]:
    """What runs of one job have in common."""
    spec = representative_spec(item)
    return spec.suite, spec.task, spec.shots, spec.split_seed, spec.backbone, spec.preprocessing


def pack(runs: Sequence[WorkItem], seconds: Seconds, profile: Profile) -> list[Runs]:
    """Runs grouped into jobs; a run of unknown duration is alone in its job unless `runs_per_job` says otherwise."""
    groups: dict[tuple[object, ...], list[WorkItem]] = {}
    for run in runs:
        groups.setdefault(_shared(run), []).append(run)
    return [job for group in groups.values() for job in _split(group, seconds, profile)]


def _split(group: Sequence[WorkItem], seconds: Seconds, profile: Profile) -> list[Runs]:
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


def deal(jobs: Sequence[Runs], lanes: int) -> list[Runs]:
    """The same runs in at most `lanes` jobs, dealt in turn."""
    return [tuple(run for job in jobs[lane::lanes] for run in job) for lane in range(min(lanes, len(jobs)))]


def too_long(runs: Sequence[WorkItem], seconds: Seconds, profile: Profile) -> list[WorkItem]:
    """Runs that are estimated to need more than a job's time limit by themselves: they will time out and go on."""
    return [run for run in runs if (seconds(run) or 0.0) + START_SECONDS > profile.time * 60]


def shares(parallel: int | None, count: int) -> list[int | None]:
    """How many jobs each of `count` arrays may run at a time, so that together they keep to `parallel`."""
    if parallel is None:
        return [None] * count
    return [max(1, parallel // count + (number < parallel % count)) for number in range(count)]


def arrays(
    name: str,
    stages: Sequence[Sequence[Runs]],
    parallel: int | None,
    limit: int,
    after_jobs: Sequence[str] = (),
) -> list[Array]:
    """Arrays of at most `limit` jobs for stages of which each waits for the one before.

    All stages but the first also wait for `after_jobs`. Where there are more arrays than `parallel`, each of one job at
    a time, the later ones wait for the earlier ones.
    """
    planned: list[Array] = []
    before: tuple[str, ...] = ()
    for number, jobs in enumerate(stages):
        chunks = [tuple(jobs[start : start + limit]) for start in range(0, len(jobs), limit)]
        names = [f"{name}.{len(planned) + i}" for i in range(len(chunks))]
        for i, (chunk, share) in enumerate(zip(chunks, shares(parallel, len(chunks)), strict=True)):
            queue = (names[i - parallel],) if parallel is not None and i >= parallel else ()
            earlier = tuple(after_jobs) if number else ()
            planned.append(Array(name=names[i], jobs=chunk, parallel=share, after=before + queue, after_jobs=earlier))
        before = tuple(names) or before
    return planned


def report_array(name: str, planned: Sequence[Array]) -> Array:
    """The job that writes the tables when all arrays have ended."""
    return Array(name=f"{name}.report", jobs=(), after=tuple(array.name for array in planned))
