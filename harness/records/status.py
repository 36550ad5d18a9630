"""How runs stand: complete, running, stopped, failed, bad, or missing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness import lease
from harness.records import index
from harness.records.index import Found, Place
from harness.records.stale import differs
from harness.records.store import PROGRESS_NAME, Store
from harness.schema.spec import RunSpec
from harness.terminal import Advance

STATES = ("complete", "running", "pending", "stopped", "failed", "cancelled", "bad", "missing")
"""`pending`: in a cluster's queue; `stopped`: begun, nobody is at it, and there is a state or a stale lease; `bad`: the
record cannot be used."""

KEYS = ("suite", "task", "method")
"""What `counts` can group by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run and how it stands."""

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
    """Who is at it, or which job of a cluster will be."""

    progress: dict[str, Any] | None = None
    """Of a running one, as its `progress.json` has it."""

    stale: bool = False
    """Whether a complete one comes from another source of its method than there is now."""

    left: str = ""
    """Time that a cluster leaves to the job of a running one, as SLURM writes it."""

    def as_dict(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)


def of_folder(root: Path, advance: Advance | None = None) -> list[Run]:
    """All runs that a results folder holds."""
    return [_run(place) for place in index.places(root, advance).values()]


def of_specs(root: Path, specs: Iterable[RunSpec], advance: Advance | None = None) -> list[Run]:
    """These runs, in their order; those of which the folder holds nothing are missing."""
    places, runs = index.places(root, advance), root / "runs"
    found = []
    for spec in specs:
        folder = Store(root).folder(spec)
        found.append(_run(places.get(str(folder.relative_to(runs)), Place(str(folder), None)), spec))
    return found


def _run(place: Place, spec: RunSpec | None = None) -> Run:
    found, holder, progress = place.found or Found(state="missing"), "", None
    state = found.state
    if state != "complete":
        folder = Path(place.folder)
        held = lease.read(folder)
        if held and not lease.is_stale(held):
            state, holder, progress = "running", str(held.holder or "unknown"), progress_of(folder)
        elif state == "missing" and (held or (folder / "state").is_dir()):
            state = "stopped"
    suite, task, method, run_id = place.names
    over = state != found.state  # what the record says does not hold any more
    return Run(
        suite=suite,
        task=task,
        method=method,
        run_id=run_id,
        state=state,
        protocol=spec.protocol if spec else found.protocol,
        seed=spec.seed if spec else found.seed,
        kind="" if over else found.kind,
        reason="" if over else found.reason,
        holder=holder,
        progress=progress,
        stale=state == "complete" and differs(method, found.source),
    )


PROGRESS_KEYS = ("epoch", "epochs", "step", "steps", "loss", "accuracy", "images_per_second")
"""Numbers of a `progress.json`, see `harness.training.callbacks.Progress`."""


def progress_of(folder: Path) -> dict[str, Any] | None:
    """How far the run in a folder is, in `PROGRESS_KEYS`; None if that is not known, or written by another version."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads((folder / PROGRESS_NAME).read_text())
        if all(isinstance(found[key], int | float) for key in PROGRESS_KEYS):
            return found
    return None


def with_queue(runs: Iterable[Run], queued: Iterable[Run], only: bool) -> list[Run]:
    """The runs with what a cluster says of those that were submitted to it; with `only` no others are added.

    What lies in the folder comes first: the cluster is believed of runs that nobody here is at and that have no result.
    """
    said = {run.run_id: run for run in queued}
    found = [_believed(run, said.pop(run.run_id, None)) for run in runs]
    return found if only else [*found, *said.values()]


def _believed(run: Run, said: Run | None) -> Run:
    if said is None or run.state in ("complete", "bad") or said.state not in STATES:
        return run
    seed, protocol = said.seed if run.seed is None else run.seed, run.protocol or said.protocol
    if run.state == "running":
        return replace(run, seed=seed, protocol=protocol, left=said.left)
    if said.state == "missing" or (run.state == "failed" and said.state not in ("pending", "running")):
        return run
    return replace(said, seed=seed, protocol=protocol)


def counts(runs: Iterable[Run], keys: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each combination of `keys`: its runs, and how many are in each state."""
    groups: dict[tuple[str, ...], Counter[str]] = {}
    for run in runs:
        groups.setdefault(tuple(getattr(run, key) for key in keys), Counter())[run.state] += 1
    return [
        dict(zip(keys, group, strict=True)) | {"runs": sum(count.values())} | {state: count[state] for state in STATES}
        for group, count in groups.items()
    ]


def waiting(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """A row for each reason that runs are still in a cluster's queue for, the most frequent first."""
    found = Counter(run.reason for run in runs if run.state == "pending")
    return [{"pending": count, "reason": reason} for reason, count in found.most_common()]


def failures(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """A row for each reason that runs failed for or cannot be used for, the most frequent first."""
    found = Counter(
        (run.kind or run.state, run.reason.partition("\n")[0])
        for run in runs
        if run.state in ("failed", "cancelled", "bad")
    )
    return [{"failure": kind, "runs": count, "reason": reason} for (kind, reason), count in found.most_common()]
