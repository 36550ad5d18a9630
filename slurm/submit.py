"""Submission: of what a selection still lacks, or of what failed, without ever giving one run to two jobs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from harness import device as devices
from harness import environment
from harness.data.lists import Roots
from harness.execution.overview import run_operations
from harness.execution.preparations import Tell, prepare
from harness.execution.worker import Setup, setup_for
from harness.plans.plan import Selection
from harness.plans.stages import stage
from harness.plans.tuning import INCONCLUSIVE, TunedRun, WorkItem, representative_spec
from harness.records import stale
from harness.records.store import Store
from harness.schema.failures import CLASSES
from harness.schema.keeping import Keeping
from harness.schema.record import ReadRecord, RunRecord
from harness.schema.spec import RunSpec
from harness.terminal import tell as tell_in_terminal
from slurm import planning, schedulers
from slurm.job_runner import RunsJob
from slurm.planning import Array, key_of
from slurm.profile import Profile
from slurm.report_job import ReportJob
from slurm.schedulers.base import USUAL_LIMIT, ClusterError, Scheduler
from slurm.submissions import ArrayEntry, Log, RunEntry, Submission, by_scheduler, new_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be submitted, and how."""

    selection: Selection
    profile: Profile
    out: Path = Path("results")
    """Folder of the results."""

    roots: Roots = field(default_factory=Roots)
    """Folders of the user's data."""

    keeping: Keeping = field(default_factory=Keeping)
    track: tuple[str, ...] = ()
    """Trackers that the runs' curves are drawn with."""

    redo_stale: bool = False
    """Whether complete runs are done again whose method's source has changed since."""

    @property
    def scheduler(self) -> Scheduler:
        return schedulers.get(self.profile.scheduler)


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Runs that are to be submitted."""

    ready: Sequence[WorkItem]
    blocked: Sequence[TunedRun] = ()
    """Finals that wait for trials among `ready`, or in jobs submitted before."""

    after_jobs: Sequence[str] = ()
    """Live jobs of earlier submissions that hold trials of `blocked`."""

    @property
    def items(self) -> list[WorkItem]:
        return [*self.ready, *self.blocked]


@dataclass(frozen=True, slots=True, kw_only=True)
class Todo(Missing):
    """What a selection still lacks, less what jobs have already."""

    held: int
    """Runs that wait or run in jobs submitted before."""

    failed: list[WorkItem]
    """Runs that failed in a way that they would fail again, which only `sctbench retry --failed` submits, and finals
    that cannot run without them."""

    complete: int
    settled: list[RunRecord]
    """Records of the complete runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Arrays that are to be submitted."""

    name: str
    profile: Profile
    arrays: list[Array]
    report: Array
    seconds: planning.Seconds

    def items(self) -> list[WorkItem]:
        """All runs in order."""
        return [item for array in self.arrays for job in array.jobs for item in job]

    def hours(self) -> float | None:
        """Estimated hours of all jobs that do runs, start-up included; None if one is not known."""
        seconds = [self.seconds(item) for item in self.items()]
        starts = planning.START_SECONDS * sum(len(array.jobs) for array in self.arrays)
        return None if None in seconds else (starts + sum(filter(None, seconds))) / 3600

    def lines(self) -> Iterator[str]:
        """Warnings, and how long it will take."""
        profile, hours = self.profile, self.hours()
        yield from (f"warning: {text}" for text in schedulers.get(profile.scheduler).warnings(profile))
        if long := planning.too_long(self.items(), self.seconds, profile):
            first = representative_spec(long[0])
            yield (
                f"warning: {len(long)} run(s) are estimated to need more than the time limit of {profile.time} min, "
                f"such as {first.method} on {first.task}: they will time out, queue up again and go on"
            )
        limits = sum(len(array.jobs) for array in self.arrays) * profile.time / 60
        yield (
            f"Estimated {'GPU' if profile.gpus else 'job'} hours: {'?' if hours is None else f'{hours:.2g}'}, start-up "
            f"included, assuming {planning.rate(profile) / 1e12:.3g} TFLOP/s. The jobs' time limits add up to "
            f"{limits:.3g}; a job that reaches its own queues up again."
        )


def submit(order: Order, tell: Tell = tell_in_terminal) -> Submission | None:
    """Submit what is missing of a selection; None if nothing is. Runs that wait or run already are left alone.

    `HarnessError` where data or settings are wrong, before anything is submitted; `ClusterError` where the scheduler
    refuses an array: those before it stay submitted, and the next call submits the others.
    """
    order, log = _for_known_device(order), Log(order.out)
    with log.alone():
        missing = _missing(order, log, tell)
        prepare(order.selection, order.roots, missing.settled, missing.items, tell=tell)
        if not missing.items:
            return None
        plan = plan_selection(order, missing, order.scheduler.limit(), tell)
        setup = setup_for(order.selection, order.out, order.roots, order.profile.device)
        changes = {name: getattr(order, name) for name in ("keeping", "track", "redo_stale")}
        return send(plan, dataclasses.replace(setup, **changes), log, tell)


def rehearse(order: Order, tell: Tell = tell_in_terminal) -> None:
    """Tell what `submit` would do, scripts included. Writes nothing and needs no scheduler; looks for data if `roots`
    are given."""
    order, log = _for_known_device(order), Log(order.out)
    missing = _missing(order, log, tell)
    items = missing.items if order.roots != Roots() else []
    prepare(order.selection, order.roots, missing.settled, items, tell=tell)
    if missing.items:
        plan = plan_selection(order, missing, _limit(order.scheduler, tell), tell)
        for array in [*plan.arrays, plan.report]:
            tell(array.in_words())
            after = [*(f"<job of {name}>" for name in array.after), *array.after_jobs]
            if script := order.scheduler.script(array, plan.profile, log.folder(array.name).absolute(), after):
                tell(f"\n{script}")
    tell("Nothing was submitted.")


def _for_known_device(order: Order) -> Order:
    """The same, with the precision of this machine's device where jobs run here: of a cluster it is not known."""
    if not order.scheduler.on_this_machine:
        return order
    device = devices.choose("auto" if order.profile.device == "cuda" else order.profile.device)
    precision = devices.precision_in_use("auto", device)
    return dataclasses.replace(order, selection=dataclasses.replace(order.selection, precision=precision))


def _limit(scheduler: Scheduler, tell: Tell) -> int:
    """Jobs that one array may have, for a rehearsal."""
    try:
        return scheduler.limit()
    except ClusterError as error:
        tell(f"warning: arrays of at most {USUAL_LIMIT} jobs are assumed: {error}")
        return USUAL_LIMIT


def _missing(order: Order, log: Log, tell: Tell) -> Todo:
    """What the selection lacks, and tell how it stands."""
    missing = todo(order.selection, Store(order.out), held_keys(log, order.profile.scheduler), order.redo_stale)
    failed, new = len(missing.failed), len(missing.items)
    tell(
        f"{missing.complete + missing.held + failed + new} runs: {missing.complete} complete, {missing.held} submitted "
        f"already, {new} to submit. Records: {order.out / 'runs'}"
    )
    if new:
        tell(f"Kept beside each record: {order.keeping}")
    if failed:
        tell(
            f"warning: {failed} are left out: they failed in a way that they would fail again, or wait "
            "for trials that did. `sctbench status` shows why, `sctbench retry --failed` submits what failed again."
        )
    return missing


def held_keys(log: Log, scheduler: str) -> dict[str, str]:
    """Runs that live jobs hold, with the id of the job; the id is empty if it is not one of that scheduler.

    `ClusterError` if it is not known: a scheduler does not answer, or a submission's file cannot be read.
    """
    submissions = log.read()
    if log.unreadable:
        files = ", ".join(map(str, log.unreadable))
        raise ClusterError(
            f"{files} cannot be read, and it says which runs are in jobs. Move it away when its jobs have ended"
        )
    held: dict[str, str] = {}
    for name, arrays in by_scheduler(submissions).items():
        other = schedulers.get(name)
        try:
            live = other.live(arrays)
        except ClusterError as error:
            raise ClusterError(f"which runs jobs of scheduler {name!r} hold is not known: {error}") from None
        for array in arrays:
            for job, keys in zip(other.job_ids(array), array.tasks, strict=False):
                if job in live:
                    held |= dict.fromkeys(keys, job if name == scheduler else "")
    return held


def jobs_of_trials(finals: Iterable[TunedRun], held: Mapping[str, str]) -> list[str]:
    """Ids of live jobs that hold trials of those finals."""
    trials = {spec.run_id for final in finals for spec in final.trials}
    return sorted({held[key] for key in trials if held.get(key)})


def todo(selection: Selection, store: Store, held: Mapping[str, str], redo_stale: bool = False) -> Todo:
    """Sort a selection's runs by what is to be submitted; with `redo_stale` also complete ones of older sources."""
    read_once = functools.cache(store.read)
    read = stale.without_stale(read_once) if redo_stale else read_once
    stages = stage(selection, read)
    free = [item for item in stages.ready if key_of(item) not in held]
    failed = {key_of(item): item for item in free if _would_fail_again(item, read)}
    waiting = [final for final in stages.blocked if key_of(final) not in held]
    never = {key_of(final): final for final in waiting if _lacks_verdict(final, failed, read)}
    blocked = [final for final in waiting if key_of(final) not in never]
    return Todo(
        ready=[item for item in free if key_of(item) not in failed],
        blocked=blocked,
        after_jobs=jobs_of_trials(blocked, held),
        held=len(stages.ready) - len(free) + len(stages.blocked) - len(waiting),
        failed=[*failed.values(), *never.values()],
        complete=len(stages.settled),
        settled=[record for spec in stages.settled if (record := read_once(spec))],
    )


def _lacks_verdict(final: TunedRun, failed: Mapping[str, WorkItem], read: ReadRecord) -> bool:
    """Whether one of the final's trials failed for good in a way that says nothing of its setting."""
    records = [read(trial) for trial in final.trials if trial.run_id in failed]
    return any(record and record.failure and record.failure.kind in INCONCLUSIVE for record in records)


def _would_fail_again(item: WorkItem, read: ReadRecord) -> bool:
    spec = item if isinstance(item, RunSpec) else item.spec(read)
    record = read(spec) if spec else None
    return record is not None and record.failure is not None and not CLASSES[record.failure.kind].again


def plan_selection(order: Order, missing: Missing, limit: int, tell: Tell) -> Plan:
    """`make_plan` with durations estimated from the operations that runs need; tells how long it will take."""
    seconds = planning.estimate(run_operations(order.selection), order.profile)
    plan = make_plan(missing, seconds, order.profile, limit)
    for line in plan.lines():
        tell(line)
    return plan


def make_plan(missing: Missing, seconds: planning.Seconds, profile: Profile, limit: int) -> Plan:
    """Arrays of at most `limit` jobs for runs that can start, and for those that wait for them."""
    name, stages, parallel = new_id(), (missing.ready, missing.blocked), profile.parallel
    if schedulers.get(profile.scheduler).queues:
        packed = [planning.pack(items, seconds, profile) for items in stages]
    else:  # as many jobs as may run at a time
        single = dataclasses.replace(profile, runs_per_job=1)
        packed = [planning.deal(planning.pack(items, seconds, single), parallel or 1) for items in stages]
        parallel = None
    arrays = planning.arrays(name, packed, parallel, limit, missing.after_jobs)
    report = planning.report_array(name, arrays)
    return Plan(name=name, profile=profile, arrays=arrays, report=report, seconds=seconds)


def _entry(item: WorkItem, seconds: float | None) -> RunEntry:
    """A run for the log."""
    spec, final = representative_spec(item), item if isinstance(item, TunedRun) else None
    return RunEntry(
        key=key_of(item),
        suite=spec.suite,
        task=spec.task,
        method=spec.method,
        seed=spec.seed,
        protocol=spec.protocol,
        seconds=seconds,
        trials=[trial.run_id for trial in final.trials] if final else [],
        budget=final.budget if final else 0,
        searched=list(final.space) if final else [],
    )


def send(plan: Plan, setup: Setup, log: Log, tell: Tell) -> Submission:
    """Submit a plan. `ClusterError` if an array is refused; those before it stay submitted, and the next `submit` sends
    the others."""
    setup = absolute(setup)
    submission = Submission(
        id=plan.name,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        code=environment.code_state(),
        profile=plan.profile.as_dict(),
        runs=[_entry(item, plan.seconds(item)) for item in plan.items()],
        arrays=[],
    )
    for array in plan.arrays:
        works = [RunsJob(setup=setup, items=job, code=submission.code) for job in array.jobs]
        _send_array(array, works, plan.profile, submission, log, tell)
    tables = ReportJob(root=setup.root, suite=submission.runs[0].suite)
    try:
        _send_array(plan.report, [tables], plan.profile, submission, log, tell)
    except ClusterError as error:  # the runs are what matters
        tell(f"warning: no job for the tables: {error}. `sctbench report` writes them at any time.")
    return submission


def _send_array(
    array: Array,
    works: Sequence[RunsJob | ReportJob],
    profile: Profile,
    submission: Submission,
    log: Log,
    tell: Tell,
) -> None:
    """Submit one array, written to the log before the scheduler has it: what is cut off is found by its name."""
    scheduler = schedulers.get(profile.scheduler)
    entry = ArrayEntry(name=array.name, tasks=[[key_of(item) for item in job] for job in array.jobs])
    ids = {earlier.name: earlier.job for earlier in submission.arrays}
    submission.arrays.append(entry)
    log.write(submission)
    after, folder = [ids[name] for name in array.after], log.folder(array.name)
    try:
        entry.job = scheduler.submit(array, works, profile, folder, [*after, *array.after_jobs])
    except ClusterError:
        if not _may_be_there(entry, scheduler):
            submission.arrays.remove(entry)
        raise
    finally:
        log.write(submission)
    tell(f"{array.in_words()}: {scheduler.job_word} {entry.job}")


def _may_be_there(entry: ArrayEntry, scheduler: Scheduler) -> bool:
    """Whether the cluster may have an array that it seemed to refuse: sbatch may time out after it was accepted."""
    try:
        return bool(scheduler.live([entry]))
    except ClusterError:
        return True


def absolute(setup: Setup) -> Setup:
    """The same with absolute paths: a job starts elsewhere."""
    data = {name: path and path.absolute() for name, path in dataclasses.asdict(setup.data).items()}
    return dataclasses.replace(
        setup,
        root=setup.root.absolute(),
        data=dataclasses.replace(setup.data, **data),
        weight_files={name: path.absolute() for name, path in setup.weight_files.items()},
    )
