"""The state of runs: complete, running, stopped, failed, bad, or missing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import lease
from harness.records import index
from harness.records.index import MISSING, IndexEntry
from harness.records.stale import differs
from harness.records.store import PROGRESS_NAME, Store
from harness.schema.spec import RunSpec
from harness.terminal import Advance

STATES = ("complete", "running", "pending", "stopped", "failed", "cancelled", "bad", "missing")
"""`pending`: in a cluster's queue; `stopped`: begun, but no process works on it, and there is a state or a stale lease;
`bad`: the record cannot be used."""

KEYS = ("suite", "task", "method")
"""What `counts` can group by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """One run and its state."""

    suite: str
    task: str
    method: str
    run_id: str
    state: str
    protocol: str = ""
    seed: int | None = None
    kind: str = ""
    """Failure class."""

    reason: str = ""
    """Why it failed, cannot be used, or waits."""

    holder: str = ""
    """The process that works on it, or the job of a cluster that will."""

    progress: dict[str, Any] | None = None
    """Of a running one, from its `progress.json`."""

    stale: bool = False
    """Whether it is complete, and the source of its method has changed since."""

    left: str = ""
    """Time that the job of a running one has left on its cluster, as SLURM writes it."""


def of_folder(root: Path, advance: Advance | None = None) -> list[RunStatus]:
    """All runs that a results folder holds."""
    return [_status(folder, record) for folder, record in index.scan(root, advance).items()]


def of_specs(root: Path, specs: Iterable[RunSpec], advance: Advance | None = None) -> list[RunStatus]:
    """These runs, in their order; those of which the folder holds nothing are missing."""
    records = index.scan(root, advance)
    paths = [(str(Store(root).folder(spec)), spec) for spec in specs]
    return [_status(path, records.get(path, MISSING), spec) for path, spec in paths]


def _status(folder: str, record: IndexEntry, spec: RunSpec | None = None) -> RunStatus:
    holder, progress = "", None
    state, path = record.state, Path(folder)
    if state != "complete":
        held = lease.read(path)
        if held and not lease.is_stale(held):
            state, holder, progress = "running", str(held.holder or "unknown"), progress_of(path)
        elif state == "missing" and (held or (path / "state").is_dir()):
            state = "stopped"
    *_, suite, task, run = folder.split("/")
    method, _, run_id = run.rpartition("-")
    outdated = state != record.state  # what the record says no longer holds
    return RunStatus(
        suite=suite,
        task=task,
        method=method,
        run_id=run_id,
        state=state,
        protocol=spec.protocol if spec else record.protocol,
        seed=spec.seed if spec else record.seed,
        kind="" if outdated else record.kind,
        reason="" if outdated else record.reason,
        holder=holder,
        progress=progress,
        stale=state == "complete" and differs(method, record.source),
    )


PROGRESS_KEYS = ("epoch", "epochs", "step", "steps", "loss", "accuracy", "images_per_second")
"""Numbers of a `progress.json`, see `harness.training.callbacks.Progress`."""


def progress_of(folder: Path) -> dict[str, Any] | None:
    """How far the run in a folder is, in `PROGRESS_KEYS`; None if that is not known, or written by another version."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        progress: dict[str, Any] = json.loads((folder / PROGRESS_NAME).read_text())
        if all(isinstance(progress[key], int | float) for key in PROGRESS_KEYS):
            return progress
    return None


def with_queue(runs: Iterable[RunStatus], queued: Iterable[RunStatus], only: bool) -> list[RunStatus]:
    """The runs with what a cluster says of those that were submitted to it; with `only` no others are added.

    What lies in the folder comes first: the cluster's word counts for runs without a result that no process here works
    on.
    """
    in_queue = {run.run_id: run for run in queued}
    merged = [_with_job(run, in_queue.pop(run.run_id, None)) for run in runs]
    return merged if only else [*merged, *in_queue.values()]


def _with_job(run: RunStatus, job: RunStatus | None) -> RunStatus:
    if job is None or run.state in ("complete", "bad") or job.state not in STATES:
        return run
    seed, protocol = job.seed if run.seed is None else run.seed, run.protocol or job.protocol
    if run.state == "running":
        return replace(run, seed=seed, protocol=protocol, left=job.left)
    if job.state == "missing" or (run.state == "failed" and job.state not in ("pending", "running")):
        return run
    return replace(job, seed=seed, protocol=protocol)


def counts(runs: Iterable[RunStatus], keys: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each combination of `keys`: its runs, and how many are in each state."""
    groups: dict[tuple[str, ...], Counter[str]] = {}
    for run in runs:
        groups.setdefault(tuple(getattr(run, key) for key in keys), Counter())[run.state] += 1
    return [
        dict(zip(keys, group, strict=True)) | {"runs": sum(count.values())} | {state: count[state] for state in STATES}
        for group, count in groups.items()
    ]


def waiting(runs: Iterable[RunStatus]) -> list[dict[str, Any]]:
    """A row for each reason why runs are still in a cluster's queue, the most frequent first."""
    reasons = Counter(run.reason for run in runs if run.state == "pending")
    return [{"pending": count, "reason": reason} for reason, count in reasons.most_common()]


def failures(runs: Iterable[RunStatus]) -> list[dict[str, Any]]:
    """A row for each reason why runs failed or cannot be used, the most frequent first."""
    reasons = Counter(
        (run.kind or run.state, run.reason.partition("\n")[0])
        for run in runs
        if run.state in ("failed", "cancelled", "bad")
    )
    return [{"failure": kind, "runs": count, "reason": reason} for (kind, reason), count in reasons.most_common()]
