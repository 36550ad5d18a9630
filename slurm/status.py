"""Where submitted runs stand: records first, then what the scheduler says of the jobs that hold them."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.plans.tuning import TunedRun
from harness.records.status import RunStatus, progress_of
from harness.records.store import PROGRESS_NAME, RECORD_NAME, read_record
from harness.schema.record import BadRecord, RunRecord
from slurm import schedulers
from slurm.schedulers.base import ClusterError, EndedJob, LiveJob, Scheduler
from slurm.submissions import ArrayEntry, Log, RunEntry, Submission, by_scheduler

JobKey = tuple[str, str]

LOG_LINES = 8
"""Lines of a log that are shown of a run that failed without a record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The job that a run was last submitted in."""

    entry: RunEntry
    submission: Submission
    array: ArrayEntry
    task: int
    """Number of the job in the array."""

    run_id: str
    """The run's key, or its id once its trials have decided it."""

    @property
    def scheduler(self) -> Scheduler:
        """Where the job is. `ClusterError` if it is not known here."""
        return schedulers.get(self.submission.scheduler)

    @property
    def job(self) -> str:
        """Id of the job; empty if its submission was cut off."""
        return self.scheduler.job_id(self.array, self.task) if self.array.job else ""

    @property
    def job_key(self) -> JobKey:
        """Name of the scheduler, and id of the job: two schedulers may use the same ids."""
        return self.submission.scheduler, self.job


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmittedRun:
    """What is known of a submitted run."""

    placement: Placement
    state: str
    """`complete`, `running`, `pending`, `failed`, `cancelled`, `missing` (its submission was cut off) or `unknown`."""

    detail: str = ""
    """Why it waits, or why it failed."""

    live: LiveJob | None = None
    progress: dict[str, Any] | None = None
    """Of a running one, as its `progress.json` has it."""

    @property
    def waits_or_runs(self) -> bool:
        return self.state in ("pending", "running")

    def as_status(self) -> RunStatus:
        entry, job, live = self.placement.entry, self.placement.job, self.live
        over = self.state in ("failed", "cancelled", "missing")
        return RunStatus(
            suite=entry.suite,
            task=entry.task,
            method=entry.method,
            run_id=self.placement.run_id,
            state=self.state,
            protocol=entry.protocol,
            seed=entry.seed,
            reason=self.detail,
            holder="" if over or not job else f"job {job}" + (f" on {live.node}" if live and live.node else ""),
            progress=self.progress,
            left=live.left if live and live.runs else "",
        )


class Records:
    """The valid records of submitted runs, each read once."""

    def __init__(self, log: Log) -> None:
        self._runs = log.root.parent / "runs"
        self.read = functools.cache(self.read_again)

    def folder(self, entry: RunEntry, run_id: str) -> Path:
        return self._runs / entry.suite / entry.task / f"{entry.method}-{run_id}"

    def read_again(self, folder: Path) -> RunRecord | None:
        """The valid record in a run's folder, or None."""
        try:
            return read_record(folder / RECORD_NAME)
        except (OSError, BadRecord):
            return None

    def run_id(self, entry: RunEntry) -> str:
        """The run's id; its key while the trials that decide it are not done."""
        trials = {trial: record for trial in entry.trials if (record := self.read(self.folder(entry, trial)))}
        if not entry.trials or len(trials) < len(entry.trials):
            return entry.key
        specs, space = tuple(record.spec for record in trials.values()), dict.fromkeys(entry.searched, ())
        final = TunedRun(trials=specs, seed=entry.seed, budget=entry.budget, space=space)
        spec = final.spec(lambda trial: trials[trial.run_id])
        return spec.run_id if spec else entry.key


def placements(log: Log, records: Records | None = None) -> dict[str, Placement]:
    """The last placement of every run that was ever submitted, by run id."""
    records, by_id = records or Records(log), dict[str, Placement]()
    for submission in log.read():
        entries = {entry.key: (entry, records.run_id(entry)) for entry in submission.runs}
        for array in submission.arrays:
            for task, keys in enumerate(array.tasks):
                for entry, run_id in map(entries.__getitem__, keys):
                    by_id[run_id] = Placement(entry=entry, submission=submission, array=array, task=task, run_id=run_id)
    return by_id


def log_file(log: Log, placement: Placement) -> Path:
    """The log of the job; it may not be there yet."""
    return log.folder(placement.array.name) / placement.scheduler.log_name(placement.job)


def submitted_runs(root: Path) -> tuple[list[SubmittedRun], list[str]]:
    """Every submitted run of a results folder, and warnings for the user about what could not be found out."""
    survey = _Survey(Log(root))
    return [survey.run(placement) for placement in survey.placements.values()], survey.problems


class _Survey:
    """What records and schedulers say of all runs of a log."""

    def __init__(self, log: Log) -> None:
        self.log, self.records = log, Records(log)
        self.placements = placements(log, self.records)
        self.problems = [f"{path} cannot be read and was skipped" for path in log.unreadable]
        unfinished = [p for p in self.placements.values() if not _is_complete(self.records.read(self.folder(p)))]
        self.live = self._live(unfinished)
        # Read again: what the scheduler does not know any more may have ended well just now.
        self.unfinished = {p.run_id: self.records.read_again(self.folder(p)) for p in unfinished}
        self.ended: dict[JobKey, EndedJob] = {}
        if self.live is not None:
            gone = [p for p in unfinished if not self.unfinished[p.run_id] and p.job_key not in self.live]
            for name, arrays in by_scheduler(p.submission for p in gone).items():
                self.ended |= {(name, job): how for job, how in schedulers.get(name).ended(arrays).items()}

    def _live(self, placements: Iterable[Placement]) -> dict[JobKey, LiveJob] | None:
        """Live jobs of all their schedulers; None, with a problem, if one does not answer."""
        live: dict[JobKey, LiveJob] = {}
        try:
            for name, arrays in by_scheduler(p.submission for p in placements).items():
                live |= {(name, job.id): job for job in schedulers.get(name).live(arrays).values()}
        except ClusterError as error:
            self.problems.append(f"{error}. Without an answer, only records tell how runs stand")
            return None
        return live

    def folder(self, placement: Placement) -> Path:
        return self.records.folder(placement.entry, placement.run_id)

    def run(self, placement: Placement) -> SubmittedRun:
        """The order of trust: a valid record, then the queue, then a record of failure, then accounting and the log."""
        told = functools.partial(SubmittedRun, placement=placement)
        if placement.run_id not in self.unfinished or _is_complete(self.unfinished[placement.run_id]):
            return told(state="complete")
        record = self.unfinished[placement.run_id]
        job = self.live.get(placement.job_key) if self.live else None
        if job and not (record and _newer(record, placement.submission)):
            return self._alive(placement, job)
        if record:
            return told(state="failed", detail=record.reason, live=job)
        if self.live is None:
            return told(state="unknown")
        if not placement.job:
            return told(state="missing", detail="its submission was cut off")
        if placement.task in placement.array.cancelled:
            return told(state="cancelled", detail="by `sctbench cancel`")
        ended = self.ended.get(placement.job_key)
        if ended and ended.cancelled:
            return told(state="cancelled", detail=ended.state)
        return told(state="failed", detail=self._why(placement, ended))

    def _alive(self, placement: Placement, job: LiveJob) -> SubmittedRun:
        told = functools.partial(SubmittedRun, placement=placement, live=job)
        if not job.runs:
            return told(state="pending", detail=job.reason)
        if (self.folder(placement) / PROGRESS_NAME).is_file():
            return told(state="running", progress=progress_of(self.folder(placement)))
        return told(state="pending", detail="its job is running; other runs come first")

    def _why(self, placement: Placement, ended: EndedJob | None) -> str:
        """Why a job ended without the run's record: the scheduler's word for it and the end of the log."""
        first = f"its job ended without a record ({ended.state})" if ended else "its job is gone without a record"
        return "\n".join([first, *tail(log_file(self.log, placement), LOG_LINES)])


def _is_complete(record: RunRecord | None) -> bool:
    return record is not None and record.status == "complete"


def _newer(record: RunRecord, submission: Submission) -> bool:
    """Whether the record was written after the submission, and so tells of it."""
    return str(record.environment.get("finished", "")) > submission.time  # whole seconds, and no job fails within one


def tail(path: Path, count: int) -> list[str]:
    """The last lines of a file; none if it is not there."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64_000))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []
