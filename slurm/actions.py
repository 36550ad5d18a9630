"""What the user does about submitted runs: cancel them, submit again what failed, find a log."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from submitit.core.utils import DelayedSubmission, JobPaths

from harness.environment import source_digest
from harness.errors import HarnessError
from harness.schema.spec import RunSpec
from slurm.clusters import CLUSTERS
from slurm.job_runner import Batch
from slurm.planning import key_of
from slurm.profile import Profile
from slurm.status import Place, State, states
from slurm.submissions import Log, Submission
from slurm.submit import Tell, held_keys, jobs_of_trials, make_plan, send


def find(known: Iterable[str], key: str) -> str:
    """The id of `known` that begins so. `HarnessError` if there is none, or several."""
    matches = [run_id for run_id in known if run_id.startswith(key)]
    if len(matches) != 1:
        problem = f"{len(matches)} runs begin so" if matches else "none that was submitted is called so or begins so"
        raise HarnessError(f"which run is {key!r}? {problem}; `sctbench status --all` lists them")
    return matches[0]


def _log(root: Path) -> Log:
    """The log of a folder. `HarnessError` if nothing was ever submitted there."""
    log = Log(root)
    if not log.files():
        raise HarnessError(f"nothing was ever submitted with the results folder {root}")
    return log


def _states(root: Path) -> list[State]:
    """`states`, all of them known. `HarnessError` says why they are not."""
    found, problems = states(root)
    if any(state.state == "unknown" for state in found):
        raise HarnessError("; ".join(problems))
    return found


def cancel(root: Path, keys: Sequence[str]) -> list[State]:
    """Cancel the jobs of those runs, or of all if none is named; returns the runs that were stopped by it.

    The log remembers, for SLURM keeps no trace of an array's task that was still waiting. `HarnessError` if a named run
    has ended: its job may be at others.
    """
    log = _log(root)
    with log.alone():
        found = {state.place.run_id: state for state in _states(root)}
        named = [found[find(found, key)] for key in keys]
        if ended := [f"{state.place.run_id} is {state.state}" for state in named if not state.waits_or_runs]:
            raise HarnessError(f"only what waits or runs can be cancelled, and {', '.join(ended)}")
        wanted = {state.place.job for state in named}
        stopped = [s for s in found.values() if s.waits_or_runs and (not keys or s.place.job in wanted)]
        by_submission: dict[str, list[State]] = {}
        for state in stopped:
            by_submission.setdefault(state.place.submission.id, []).append(state)
        for states_ in by_submission.values():
            _cancel(log, states_[0].place.submission, states_, not keys)
    return stopped


def _cancel(log: Log, submission: Submission, stopped: Sequence[State], everything: bool) -> None:
    held = {state.place.job for state in stopped}
    ids: list[str] = []
    for array in submission.arrays:
        jobs = array.job_ids()
        tasks = [task for task, job in enumerate(jobs) if job in held]
        array.cancelled = sorted({*array.cancelled, *tasks})
        whole = submission.cluster == "slurm" and len(tasks) == len(jobs) > 1
        ids += [array.job] if whole else [jobs[task] for task in tasks]
        if everything and not any(array.tasks):  # the job that would write the tables
            ids += jobs
    CLUSTERS[submission.cluster].cancel(ids)
    log.write(submission)


def batch_of(log: Log, place: Place) -> Batch:
    """The work that was submitted. `HarnessError` if it cannot be read, e.g. because the code has changed since."""
    paths = JobPaths(log.folder(place.submission, place.array), job_id=place.job)
    try:
        body: Any = DelayedSubmission.load(paths.submitted_pickle).function
        work = pickle.loads(body.payload)
    except Exception as error:  # a pickle may fail in any way
        raise HarnessError(
            f"job {place.job} cannot be read again ({error}): use `sctbench submit` with the selection"
        ) from None
    assert isinstance(work, Batch)
    return work


def retry(root: Path, changes: dict[str, Any], tell: Tell) -> tuple[int, list[str]]:
    """Submit the runs that failed once more, each submission's with its own profile and `changes`.

    Returns how many, and why other submissions' could not be.
    """
    log, count, problems = _log(root), 0, []
    with log.alone():
        failed = [state for state in _states(root) if state.state == "failed" and not state.live]
        for name in sorted({state.place.submission.id for state in failed}):  # oldest first: trials before their finals
            own = [state.place for state in failed if state.place.submission.id == name]
            try:
                count += _retry(log, own, changes, tell)
            except HarnessError as error:
                problems.append(f"{len(own)} run(s) of submission {name}: {error}")
    return count, problems


def _retry(log: Log, failed: Sequence[Place], changes: dict[str, Any], tell: Tell) -> int:
    submission = failed[0].submission
    profile = Profile.from_dict(submission.profile | changes)
    batches = {place.job: batch_of(log, place) for place in {place.job: place for place in failed}.values()}
    keys = {place.run.key for place in failed}
    jobs = [job for batch in batches.values() for job in batch.jobs if key_of(job) in keys]
    ready, blocked = [job for job in jobs if isinstance(job, RunSpec)], [j for j in jobs if not isinstance(j, RunSpec)]
    seconds = {place.run.key: place.run.seconds for place in failed}
    cluster = CLUSTERS[submission.cluster]
    after = jobs_of_trials(blocked, held_keys(log, cluster))
    plan = make_plan(ready, blocked, lambda job: seconds[key_of(job)], profile, cluster, cluster.limit(), after)
    setup = dataclasses.replace(next(iter(batches.values())).setup, device=profile.device, sources=source_digest())
    send(plan, setup, profile, cluster, log, tell)
    return len(jobs)
