"""Where submitted runs stand: records first, then what the scheduler says of the jobs that hold them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.plans.tuning import TunedRun
from harness.records.status import RunStatus, progress_of
from harness.records.store import PROGRESS_NAME, RECORD_NAME, read_record
from harness.schema.record import BadRecord, RunRecord
from slurm.clusters import CLUSTERS
from slurm.errors import ClusterError
from slurm.scheduler import Live
from slurm.submissions import Log, Run, Sent, Submission

LOG_LINES = 8
"""Lines of a log that are shown of a run that failed without a record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run was submitted to, the last time."""

    run: Run
    submission: Submission
    array: Sent
    task: int
    run_id: str
    """The run's key, or its id once its trials have decided it."""

    @property
    def job(self) -> str:
        """Id of the job; empty if its submission was cut off."""
        return self.array.job_id(self.task)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is known of one submitted run."""

    place: Place
    state: str
    """`complete`, `running`, `pending`, `failed`, `cancelled`, `missing` (its submission was cut off) or `unknown`."""

    detail: str
    """Progress, why it waits, or why it failed."""

    live: Live | None = None
    progress: dict[str, Any] | None = None
    """Of a running one, as its `progress.json` has it."""

    @property
    def left(self) -> str:
        """Time that its job has left, as SLURM writes it."""
        return self.live.left if self.live and self.live.runs else ""

    @property
    def waits_or_runs(self) -> bool:
        """Whether there is something to cancel."""
        return self.state in ("pending", "running")

    def as_row(self) -> dict[str, Any]:
        """A line of a table."""
        run = self.place.run
        return {
            "run": self.place.run_id,
            "task": run.task,
            "method": run.method,
            "seed": run.seed,
            "state": self.state,
            "job": self.place.job,
            "node": self.live.node if self.live else "",
            "left": self.left,
            "detail": self.detail,
        }


Read = Callable[[Path], RunRecord | None]
"""The valid record in a run's folder, or None."""


def _record(folder: Path) -> RunRecord | None:
    try:
        return read_record(folder / RECORD_NAME)
    except (OSError, BadRecord):
        return None


def places(log: Log, read: Read = _record) -> dict[str, Place]:
    """The newest place of every run that was ever submitted, by run id."""
    found: dict[str, Place] = {}
    for submission in log.read():
        runs = {run.key: (run, _run_id(log, run, read)) for run in submission.runs}
        for array in submission.arrays:
            for task, keys in enumerate(array.tasks):
                for run, run_id in map(runs.__getitem__, keys):
                    found[run_id] = Place(run=run, submission=submission, array=array, task=task, run_id=run_id)
    return found


def _folder(log: Log, run: Run, run_id: str) -> Path:
    return log.root.parent / "runs" / run.suite / run.task / f"{run.method}-{run_id}"


def _run_id(log: Log, run: Run, read: Read) -> str:
    """The run's id; its key while the trials that decide it are not done."""
    trials = {trial: record for trial in run.trials if (record := read(_folder(log, run, trial)))}
    if not run.trials or len(trials) < len(run.trials):
        return run.key
    specs, space = tuple(record.spec for record in trials.values()), dict.fromkeys(run.searched, ())
    final = TunedRun(trials=specs, seed=run.seed, budget=run.budget, space=space)
    spec = final.spec(lambda trial: trials[trial.run_id])
    return spec.run_id if spec else run.key


def log_file(log: Log, place: Place) -> Path:
    """The log of the job; it may not be there yet."""
    return log.folder(place.submission, place.array) / f"{place.job}_0_log.out"


def states(root: Path) -> tuple[list[State], list[str]]:
    """The state of every submitted run of a results folder, and what the user should know of how it was found."""
    log, read = Log(root), functools.cache(_record)
    known = places(log, read)
    records = {key: read(_folder(log, place.run, key)) for key, place in known.items()}
    unfinished = [key for key, record in records.items() if record is None or record.status != "complete"]
    live, problems = _live([known[key] for key in unfinished])
    for key in unfinished:  # once more: what the cluster does not know any more may have ended well just now
        records[key] = _record(_folder(log, known[key].run, key))
    open_ids: dict[str, set[str]] = {}
    for key, place in known.items():
        if records[key] is None and live is not None and place.job not in live:
            open_ids.setdefault(place.submission.cluster, set()).add(place.array.job)
    ended: dict[str, str] = {}
    for cluster, ids in open_ids.items():
        ended |= CLUSTERS[cluster].ended(ids - {""})
    problems += [f"{path} cannot be read and was passed over" for path in log.unreadable]
    return [_state(log, place, records[key], live, ended) for key, place in known.items()], problems


def _live(known: Iterable[Place]) -> tuple[dict[str, Live] | None, list[str]]:
    """Live jobs of all clusters; None, with the reason, if a scheduler does not answer."""
    arrays: dict[str, dict[str, Sent]] = {}
    for submission in {place.submission.id: place.submission for place in known}.values():
        arrays.setdefault(submission.cluster, {}).update({array.name: array for array in submission.arrays})
    found: dict[str, Live] = {}
    try:
        for cluster, by_name in arrays.items():
            found |= CLUSTERS[cluster].live(by_name.values())
    except ClusterError as error:
        return None, [f"{error}. Without an answer only the records tell how runs stand"]
    return found, []


def _state(
    log: Log,
    place: Place,
    record: RunRecord | None,
    live: Mapping[str, Live] | None,
    ended: Mapping[str, str],
) -> State:
    """The order of trust: a valid record, then the queue, then a record of failure, then accounting and the log."""
    if record is not None and record.status == "complete":
        return State(place=place, state="complete", detail="")
    job = live.get(place.job) if live else None
    failed = record is not None and _newer(record, place.submission)
    if job is not None and not failed:
        return _alive(_folder(log, place.run, place.run_id), place, job)
    if record is not None and (failed or job is None):
        return State(place=place, state="failed", detail=record.reason, live=job)
    if live is None:
        return State(place=place, state="unknown", detail="")
    if not place.job:
        return State(place=place, state="missing", detail="its submission was cut off")
    if place.task in place.array.cancelled:
        return State(place=place, state="cancelled", detail="by `sctbench cancel`")
    said = ended.get(place.job, "")
    if said.startswith("CANCELLED"):
        return State(place=place, state="cancelled", detail=said)
    return State(place=place, state="failed", detail=_why(log, place, said))


def _newer(record: RunRecord, submission: Submission) -> bool:
    """Whether the record was written after the submission, so that it tells of it."""
    return record.environment.get("finished", "") > submission.time  # whole seconds, and no job fails within one


def _alive(folder: Path, place: Place, job: Live) -> State:
    if not job.runs:
        return State(place=place, state="pending", detail=job.reason, live=job)
    if (folder / PROGRESS_NAME).is_file():
        at = progress_of(folder)
        return State(place=place, state="running", detail=in_words(at) if at else "", live=job, progress=at)
    return State(place=place, state="pending", detail="its job runs; others are before it", live=job)


def in_words(at: dict[str, Any]) -> str:
    """How far a run is."""
    return (
        f"epoch {at['epoch']}/{at['epochs']}, {100 * at['step'] // max(1, at['steps'])} %, loss {at['loss']:.3f}, "
        f"acc {at['accuracy']:.1f} %, {at['images_per_second']:.0f} img/s"
    )


def _why(log: Log, place: Place, said: str) -> str:
    """Why a job ended without the run's record: SLURM's word for it and the end of the log."""
    lines = tail(log_file(log, place), LOG_LINES)
    first = f"its job ended without a record ({said})" if said else "its job is gone without a record"
    return "\n".join([first, *lines])


def tail(path: Path, count: int) -> list[str]:
    """The last lines of a file; none if it is not there."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64_000))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def as_runs(root: Path) -> tuple[list[RunStatus], list[str]]:
    """The submitted runs as `harness.records.status` has them, and what the user should know of how that was found."""
    found, problems = states(root)
    return [_as_run(state) for state in found], problems


def _as_run(state: State) -> RunStatus:
    run, live = state.place.run, state.live
    where = f" on {live.node}" if live and live.node else ""
    over = state.state in ("failed", "cancelled", "missing")
    return RunStatus(
        suite=run.suite,
        task=run.task,
        method=run.method,
        run_id=state.place.run_id,
        state=state.state,
        protocol=run.protocol,
        seed=run.seed,
        reason="" if state.state == "running" else state.detail,
        holder="" if over or not state.place.job else f"job {state.place.job}{where}",
        progress=state.progress,
        left=state.left,
    )
