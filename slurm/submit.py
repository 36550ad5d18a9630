"""Submission: of what a selection still lacks, or of what failed, without ever giving one run to two jobs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from harness import environment
from harness.execution.overview import run_operations
from harness.execution.worker import Setup
from harness.plans.plan import Selection
from harness.plans.stages import stage
from harness.plans.tuning import INCONCLUSIVE, TunedRun, WorkItem, representative_spec
from harness.records.stale import is_stale, without_stale
from harness.records.store import Store
from harness.schema.failures import CLASSES
from harness.schema.record import ReadRecord
from harness.schema.spec import RunSpec
from slurm import planning
from slurm.clusters import CLUSTERS, Cluster
from slurm.errors import ClusterError
from slurm.job_runner import Batch, Report
from slurm.planning import Array, key_of
from slurm.profile import Profile
from slurm.submissions import Log, Run, Sent, Submission, new_id

Tell = Callable[[str], None]
"""Takes a line for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Todo:
    """What a selection still lacks, less what jobs have already."""

    ready: list[WorkItem]
    blocked: list[TunedRun]
    held: int
    """Runs that wait or run in jobs submitted before."""

    failed: list[WorkItem]
    """Runs that failed in a way that they would fail again, which only `sctbench retry --failed` submits, and finals
    that cannot run without them."""

    complete: int
    stale: list[str]
    """Methods of those of the complete runs that come from another source than there is now, once for each run."""

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

    def runs(self) -> list[WorkItem]:
        """All runs in order."""
        return [run for array in self.arrays for job in array.jobs for run in job]


def held_keys(log: Log, cluster: Cluster) -> dict[str, str]:
    """Runs that live jobs hold, with the id of the job; the id is empty if it is not one of this cluster.

    `ClusterError` if it is not known: a scheduler does not answer, or a submission's file cannot be read.
    """
    by_cluster: dict[str, list[Sent]] = {}
    for submission in log.read():
        by_cluster.setdefault(submission.cluster, []).extend(submission.arrays)
    if log.unreadable:
        files = ", ".join(map(str, log.unreadable))
        raise ClusterError(
            f"{files} cannot be read, and names runs that are in jobs. Move it away when they have ended"
        )
    held: dict[str, str] = {}
    for name, arrays in by_cluster.items():
        try:
            live = CLUSTERS[name].live(arrays)
        except ClusterError as error:
            raise ClusterError(f"which runs the jobs of cluster {name!r} hold is not known: {error}") from None
        for array in arrays:
            for job, keys in zip(array.job_ids(), array.tasks, strict=False):
                if job in live:
                    held |= dict.fromkeys(keys, job if name == cluster.name else "")
    return held


def jobs_of_trials(finals: Iterable[TunedRun], held: Mapping[str, str]) -> list[str]:
    """Ids of live jobs that hold trials of those finals."""
    trials = {spec.run_id for final in finals for spec in final.trials}
    return sorted({held[key].partition("_")[0] for key in trials if held.get(key)})


def todo(selection: Selection, store: Store, held: dict[str, str], redo_stale: bool = False) -> Todo:
    """Sort a selection's runs by what is to be submitted; with `redo_stale` also complete ones of older sources."""
    found = functools.cache(store.read)
    read = without_stale(found) if redo_stale else found
    stages = stage(selection, read)
    free = [job for job in stages.ready if key_of(job) not in held]
    failed = {key_of(job): job for job in free if _would_fail_again(job, read)}
    waiting = [final for final in stages.blocked if key_of(final) not in held]
    never = {key_of(final): final for final in waiting if _lacks_verdict(final, failed, store)}
    blocked = [final for final in waiting if key_of(final) not in never]
    return Todo(
        ready=[job for job in free if key_of(job) not in failed],
        blocked=blocked,
        held=len(stages.ready) - len(free) + len(stages.blocked) - len(waiting),
        failed=[*failed.values(), *never.values()],
        complete=len(stages.settled),
        stale=[spec.method for spec in stages.settled if (record := found(spec)) and is_stale(record)],
        after_jobs=jobs_of_trials(blocked, held),
    )


def _lacks_verdict(final: TunedRun, failed: Mapping[str, WorkItem], store: Store) -> bool:
    """Whether one of the final's trials failed for good in a way that says nothing of its setting."""
    records = [store.read(trial) for trial in final.trials if trial.run_id in failed]
    return any(record and record.failure and record.failure.kind in INCONCLUSIVE for record in records)


def _would_fail_again(job: WorkItem, read: ReadRecord) -> bool:
    spec = job if isinstance(job, RunSpec) else job.spec(read)
    record = read(spec) if spec else None
    return record is not None and record.failure is not None and not CLASSES[record.failure.kind].again


def make_plan(
    ready: Sequence[WorkItem],
    blocked: Sequence[WorkItem],
    seconds: planning.Seconds,
    profile: Profile,
    cluster: Cluster,
    limit: int,
    after_jobs: Sequence[str] = (),
) -> Plan:
    """Arrays of at most `limit` jobs for runs that can start, and for those that wait for them."""
    name = new_id()
    if cluster.name == "local":  # nothing queues there: as many jobs as may run
        single = dataclasses.replace(profile, runs_per_job=1)
        packed = [planning.pack(runs, seconds, single) for runs in (ready, blocked)]
        stages, parallel = [planning.deal(jobs, profile.parallel or 1) for jobs in packed], None
    else:
        stages, parallel = [planning.pack(runs, seconds, profile) for runs in (ready, blocked)], profile.parallel
    arrays = planning.arrays(name, stages, parallel, limit, after_jobs)
    warnings = profile.warnings()
    if long := planning.too_long([*ready, *blocked], seconds, profile):
        first = representative_spec(long[0])
        warnings.append(
            f"{len(long)} run(s) are estimated to need more than the time limit of {profile.time} min, such as "
            f"{first.method} on {first.task}: they will time out, queue up again and go on"
        )
    report = planning.report_array(name, arrays)
    return Plan(name=name, arrays=arrays, report=report, seconds=seconds, warnings=warnings)


def plan_selection(selection: Selection, missing: Todo, profile: Profile, cluster: Cluster, limit: int) -> Plan:
    """`make_plan` for what a selection lacks."""
    seconds = planning.estimate(run_operations(selection), profile)
    return make_plan(missing.ready, missing.blocked, seconds, profile, cluster, limit, missing.after_jobs)


def run_of(job: WorkItem, seconds: float | None) -> Run:
    """A run as the log names it."""
    spec = representative_spec(job)
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
        count, job = sum(map(len, array.jobs)), f"{cluster.job_word} {submission.arrays[-1].job}"
        tell(f"{len(array.jobs)} job(s) with {count} run(s): {job}")
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
        if not _may_be_there(sent, cluster):
            submission.arrays.remove(sent)
        log.write(submission)
        raise
    log.write(submission)


def _may_be_there(sent: Sent, cluster: Cluster) -> bool:
    """Whether the cluster may have an array that it seemed to refuse: sbatch may time out after it was accepted."""
    try:
        return bool(cluster.live([sent]))
    except ClusterError:
        return True


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


def expected_hours(plan: Plan) -> float | None:
    """Estimated hours of all jobs that do runs, start-up included; None if one is not known."""
    all_ = [plan.seconds(run) for run in plan.runs()]
    starts = planning.START_SECONDS * sum(len(array.jobs) for array in plan.arrays)
    return None if None in all_ else (starts + sum(filter(None, all_))) / 3600
