"""What the user does about submitted runs: cancel them, submit again what failed, read a log."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.data.located import refuse_unusable
from harness.errors import HarnessError
from harness.execution.preparations import Tell
from harness.plans.experiment import find_suite
from harness.plans.tuning import TunedRun
from harness.schema.spec import RunSpec
from harness.sources import source_digest
from harness.terminal import tell as tell_in_terminal
from slurm import schedulers
from slurm.job_runner import RunsJob
from slurm.planning import key_of
from slurm.profile import Profile
from slurm.status import Placement, SubmittedRun, log_file, placements, submitted_runs, tail
from slurm.submissions import Log, Submission
from slurm.submit import Missing, held_keys, jobs_of_trials, make_plan, send


def find(known: Iterable[str], key: str) -> str:
    """The one id of `known` that begins with `key`. `HarnessError` if there is none, or several."""
    matches = [run_id for run_id in known if run_id.startswith(key)]
    if len(matches) != 1:
        count = len(matches) or "no"
        raise HarnessError(f"{count} submitted runs have an id that begins with {key!r}; see `sctbench status --all`")
    return matches[0]


def _log(root: Path) -> Log:
    """The log of a folder. `HarnessError` if nothing was ever submitted there."""
    log = Log(root)
    if not log.files():
        raise HarnessError(f"nothing was ever submitted with the results folder {root}")
    return log


def _submitted_runs(root: Path) -> list[SubmittedRun]:
    """`submitted_runs`, each in a known state. `HarnessError` says why they are not."""
    runs, problems = submitted_runs(root)
    if any(run.state == "unknown" for run in runs):
        raise HarnessError("; ".join(problems))
    return runs


def log_tail(root: Path, key: str, lines: int) -> tuple[Path, list[str]]:
    """The log of the job that a run was last in, and its last lines; none if nothing was written yet."""
    log = _log(root)
    known = placements(log)
    path = log_file(log, known[find(known, key)])
    return path, tail(path, lines)


def cancel(root: Path, keys: Sequence[str]) -> list[SubmittedRun]:
    """Cancel the jobs of those runs, or of all if none is named; returns the runs that were stopped by it.

    The log remembers, for SLURM keeps no trace of an array's task that was still waiting. `HarnessError` if a named run
    has ended: its job may be doing others.
    """
    log = _log(root)
    with log.alone():
        runs = {run.placement.run_id: run for run in _submitted_runs(root)}
        named = [runs[find(runs, key)] for key in keys]
        if ended := [f"{run.placement.run_id} is {run.state}" for run in named if not run.waits_or_runs]:
            raise HarnessError(f"only what waits or runs can be cancelled, and {', '.join(ended)}")
        wanted = {run.placement.job_key for run in named}
        stopped = [run for run in runs.values() if run.waits_or_runs and (not keys or run.placement.job_key in wanted)]
        jobs = {run.placement.job_key for run in stopped}
        for submission in {run.placement.submission.id: run.placement.submission for run in stopped}.values():
            _cancel(log, submission, {job for name, job in jobs if name == submission.scheduler}, report=not keys)
    return stopped


def _cancel(log: Log, submission: Submission, jobs: Collection[str], report: bool) -> None:
    """Cancel those of the jobs that are the submission's, and with `report` the one that would write the tables."""
    scheduler = schedulers.get(submission.scheduler)
    for array in reversed(submission.arrays):  # what waits for others first, or it would start
        ids = scheduler.job_ids(array)
        tasks = [task for task, job in enumerate(ids) if job in jobs or (report and not array.tasks)]
        if tasks:
            scheduler.cancel(array, [ids[task] for task in tasks])
            array.cancelled = sorted({*array.cancelled, *tasks})
            log.write(submission)


def retry(root: Path, changes: Mapping[str, Any], tell: Tell = tell_in_terminal) -> tuple[int, list[str]]:
    """Submit the runs that failed again, those of each submission with its own profile and `changes` to it.

    Returns how many, and why those of other submissions could not be.
    """
    log, count, problems = _log(root), 0, []
    with log.alone():
        failed = [run.placement for run in _submitted_runs(root) if run.state == "failed" and not run.live]
        for name in sorted({placement.submission.id for placement in failed}):  # oldest first: trials before finals
            own = [placement for placement in failed if placement.submission.id == name]
            try:
                count += _retry(log, own, changes, tell)
            except HarnessError as error:
                problems.append(f"{len(own)} run(s) of submission {name}: {error}")
    return count, problems


def _retry(log: Log, failed: Sequence[Placement], changes: Mapping[str, Any], tell: Tell) -> int:
    profile = Profile.from_dict({**failed[0].submission.profile, **changes})
    scheduler = schedulers.get(profile.scheduler)
    jobs = [runs_job(log, placement) for placement in {p.job: p for p in failed}.values()]
    seconds = {placement.entry.key: placement.entry.seconds for placement in failed}
    items = [item for job in jobs for item in job.items if key_of(item) in seconds]
    setup = dataclasses.replace(jobs[0].setup, device=profile.device, sources=source_digest())
    suites = {suite.name: suite for suite in setup.suites}
    name = failed[0].entry.suite
    refuse_unusable(suites[name] if name in suites else find_suite(name), items, setup.data)
    blocked = [item for item in items if isinstance(item, TunedRun)]
    missing = Missing(
        ready=[item for item in items if isinstance(item, RunSpec)],
        blocked=blocked,
        after_jobs=jobs_of_trials(blocked, held_keys(log, scheduler.name)),
    )
    send(make_plan(missing, lambda item: seconds[key_of(item)], profile, scheduler.limit()), setup, log, tell)
    return len(items)


def runs_job(log: Log, placement: Placement) -> RunsJob:
    """What was submitted. `HarnessError` if it cannot be read, e.g. because the code has changed since."""
    try:
        payload = placement.scheduler.payload(log.folder(placement.array.name), placement.job)
        job = pickle.loads(payload.content)
    except Exception as error:  # a pickle may fail in any way
        raise HarnessError(
            f"what job {placement.job} was to do cannot be read ({error}): submit the selection again"
        ) from None
    assert isinstance(job, RunsJob)
    return job
