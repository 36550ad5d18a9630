"""Submission: of what a selection still lacks, or of what failed, without ever giving one run to two jobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from harness import environment
from harness.failures import CLASSES
from harness.overview import like, run_operations
from harness.plan import Selection
from harness.spec import RunSpec
from harness.stages import stage
from harness.store import Store
from harness.tuning import Job
from harness.worker import Setup
from slurm import planning
from slurm.clusters import Cluster
from slurm.errors import ClusterError
from slurm.planning import Array, key_of
from slurm.profile import Profile
from slurm.submissions import Log, Run, Sent, Submission, new_id
from slurm.work import Batch, Report

Tell = Callable[[str], None]
"""Takes a line for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Todo:
    """What a selection still lacks, less what jobs have already."""

    ready: list[Job]
    blocked: list[Job]
    held: int
    """Runs that wait or run in jobs submitted before."""

    failed: list[Job]
    """Runs that failed in a way that they would fail again: only `sctbench retry --failed` submits them."""

    complete: int
    after_jobs: list[str]
    """Live jobs of earlier submissions that hold trials of `blocked`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Arrays that are to be submitted."""

    name: str
    arrays: list[Array]
    report: Array
    seconds: planning.Seconds
    warnings: list[str]

    def runs(self) -> list[Job]:
        """All runs in order."""
        return [run for array in self.arrays for job in array.jobs for run in job]


def held_keys(log: Log, cluster: Cluster) -> dict[str, str]:
    """Runs that live jobs hold, with the id of the job. `ClusterError` if the scheduler does not answer."""
    arrays = [array for sub in log.read() if sub.cluster == cluster.name for array in sub.arrays]
    live = cluster.live(arrays) if arrays else {}
    return {
        key: job
        for array in arrays
        for job, keys in zip(array.job_ids(), array.tasks, strict=False)
        if job in live
        for key in keys
    }


def todo(selection: Selection, store: Store, held: dict[str, str]) -> Todo:
    """Sort a selection's runs by what is to be submitted."""
    stages = stage(selection, store.read)
    free = [job for job in stages.ready if key_of(job) not in held]
    failed = [job for job in free if _would_fail_again(job, store)]
    names = {key_of(job) for job in failed}
    blocked = [final for final in stages.blocked if key_of(final) not in held]
    trials = {spec.run_id for final in blocked for spec in final.trials}
    return Todo(
        ready=[job for job in free if key_of(job) not in names],
        blocked=list(blocked),
        held=len(stages.ready) - len(free) + len(stages.blocked) - len(blocked),
        failed=failed,
        complete=len(stages.settled),
        after_jobs=sorted({held[key].partition("_")[0] for key in trials if key in held}),
    )


def _would_fail_again(job: Job, store: Store) -> bool:
    spec = job if isinstance(job, RunSpec) else job.spec(store.read)
    record = store.read(spec) if spec else None
    return record is not None and record.failure is not None and not CLASSES[record.failure.kind].again


def make_plan(
    ready: Sequence[Job],
    blocked: Sequence[Job],
    seconds: planning.Seconds,
    profile: Profile,
    cluster: Cluster,
    limit: int,
    after_jobs: Sequence[str] = (),
) -> Plan:
    """Arrays of at most `limit` jobs for runs that can start, and for those that wait for them."""
    name = new_id()
    stages = [planning.pack(runs, seconds, profile) for runs in (ready, blocked)]
    parallel = profile.parallel
    if cluster.name == "local":  # nothing queues there: as many jobs as may run
        stages, parallel = [planning.deal(jobs, parallel or 1) for jobs in stages], None
    arrays = planning.arrays(name, stages, parallel, limit, after_jobs)
    warnings = profile.warnings()
    if long := planning.too_long([*ready, *blocked], seconds, profile):
        warnings.append(
            f"{len(long)} run(s) are estimated to need more than the time limit of {profile.time} min, such as "
            f"{like(long[0]).method} on {like(long[0]).task}: they will time out, queue up again and go on"
        )
    report = planning.report_array(name, arrays)
    return Plan(name=name, arrays=arrays, report=report, seconds=seconds, warnings=warnings)


def plan_selection(selection: Selection, missing: Todo, profile: Profile, cluster: Cluster, limit: int) -> Plan:
    """`make_plan` for what a selection lacks."""
    seconds = planning.estimate(run_operations(selection), profile)
    return make_plan(missing.ready, missing.blocked, seconds, profile, cluster, limit, missing.after_jobs)


def run_of(job: Job, seconds: float | None) -> Run:
    """A run as the log names it."""
    spec = like(job)
    run = Run(
        key=key_of(job),
        suite=spec.suite,
        task=spec.task,
        method=spec.method,
        seed=spec.seed,
        protocol=spec.protocol,
        seconds=seconds,
    )
    if isinstance(job, RunSpec):
        return run
    trials = [trial.run_id for trial in job.trials]
    return dataclasses.replace(run, trials=trials, budget=job.budget, searched=list(job.space))


def send(plan: Plan, setup: Setup, profile: Profile, cluster: Cluster, log: Log, tell: Tell) -> Submission:
    """Submit a plan. The log names each array before SLURM does, so a cut-off submission is found by its name.

    `ClusterError` if an array is refused; those before it stay submitted, and the next `submit` sends the others.
    """
    runs = plan.runs()
    submission = Submission(
        id=plan.name,
        cluster=cluster.name,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        code=environment.code_state(),
        profile=profile.as_dict(),
        runs=[run_of(run, plan.seconds(run)) for run in runs],
        arrays=[],
    )
    for array in plan.arrays:
        works = [Batch(setup=setup, jobs=job, code=submission.code) for job in array.jobs]
        _send_array(array, works, submission, profile, cluster, log)
        tell(f"{len(array.jobs)} job(s) with {sum(map(len, array.jobs))} run(s): SLURM job {submission.arrays[-1].job}")
    _send_report(plan, setup, submission, profile, cluster, log, tell)
    return submission


def _send_array(
    array: Array, works: Sequence[Batch | Report], submission: Submission, profile: Profile, cluster: Cluster, log: Log
) -> None:
    sent = Sent(name=array.name, tasks=[[key_of(run) for run in job] for job in array.jobs])
    ids = {earlier.name: earlier.job for earlier in submission.arrays}
    submission.arrays.append(sent)
    log.write(submission)
    after = [*(ids[name] for name in array.after), *array.after_jobs]
    try:
        sent.job = cluster.send(array, works, profile, log.folder(submission, sent), after)
    except ClusterError:
        submission.arrays.remove(sent)
        log.write(submission)
        raise
    log.write(submission)


def _send_report(
    plan: Plan, setup: Setup, submission: Submission, profile: Profile, cluster: Cluster, log: Log, tell: Tell
) -> None:
    work = Report(root=setup.root, suite=submission.runs[0].suite)
    try:
        _send_array(plan.report, [work], submission, profile, cluster, log)
    except ClusterError as error:  # the runs are what matters
        tell(f"No job for the tables: {error}. `sctbench report` makes them at any time.")


def absolute(setup: Setup) -> Setup:
    """The same with absolute paths: a job starts elsewhere."""
    return dataclasses.replace(
        setup,
        root=setup.root.absolute(),
        data=dataclasses.replace(
            setup.data, **{k: v and v.absolute() for k, v in dataclasses.asdict(setup.data).items()}
        ),
        weight_files={name: path.absolute() for name, path in setup.weight_files.items()},
    )


def expected_hours(runs: Iterable[Job], seconds: planning.Seconds) -> float | None:
    """Estimated hours of all runs; None if one is not known."""
    all_ = [seconds(run) for run in runs]
    return None if None in all_ else sum(filter(None, all_)) / 3600
