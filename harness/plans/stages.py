"""Where a selection stands: what can start now, what waits for it, and what is done. Executors work from this alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from harness.plans import plan
from harness.plans.tuning import TunedRun, WorkItem
from harness.schema import protocol as protocols
from harness.schema.record import ReadRecord, RunRecord
from harness.schema.spec import RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """A selection, sorted by what is to be done."""

    ready: list[WorkItem]
    """What can start now, runs that failed before included."""

    blocked: list[TunedRun]
    """Finals of which a trial is still among `ready`."""

    settled: list[RunSpec]
    """Runs with nothing left to do: complete ones, and trials that diverged or whose failure a final has counted."""

    @property
    def total(self) -> int:
        """Number of runs, trials included."""
        return len(self.ready) + len(self.blocked) + len(self.settled)


def stage(selection: plan.Selection, read: ReadRecord) -> Stages:
    """Sort a selection's runs by the records that `read`, usually `Store.read`, finds."""
    read = cache(read)
    if protocols.get(selection.protocol).tunes:
        return _stage_finals(plan.finals(selection), read)
    specs = plan.expand(selection)
    done = [is_complete(spec, read) for spec in specs]
    return Stages(
        ready=[spec for spec, complete in zip(specs, done, strict=True) if not complete],
        blocked=[],
        settled=[spec for spec, complete in zip(specs, done, strict=True) if complete],
    )


def is_complete(spec: RunSpec | None, read: ReadRecord) -> bool:
    """Whether the run has a record of success."""
    record = read(spec) if spec else None
    return record is not None and record.status == "complete"


def _diverged(record: RunRecord | None) -> bool:
    """Whether the run would end in the same way again: a trial's setting is judged by that."""
    return record is not None and record.failure is not None and record.failure.kind == "diverged"


def _stage_finals(finals: list[TunedRun], read: ReadRecord) -> Stages:
    """Trials that failed are tried again until a final of their cell is complete: then its choice stands, for another
    winner would give the seeds of one cell different settings."""
    cells: dict[object, list[TunedRun]] = {}
    for final in finals:
        cells.setdefault(final.cell, []).append(final)
    unfinished: dict[str, RunSpec] = {}
    settled: dict[str, RunSpec] = {}
    ready: list[TunedRun] = []
    for members in cells.values():
        specs = [final.spec(read) for final in members]
        decided = any(is_complete(spec, read) for spec in specs)
        for trial in members[0].trials:
            done = decided or is_complete(trial, read) or _diverged(read(trial))
            (settled if done else unfinished)[trial.run_id] = trial
        for final, spec in zip(members, specs, strict=True):
            if spec and is_complete(spec, read):
                settled[spec.run_id] = spec
            else:
                ready.append(final)
    settled = {run_id: spec for run_id, spec in settled.items() if run_id not in unfinished}
    free = {final.cell for final in ready if unfinished.keys().isdisjoint(final.cell[0])}
    return Stages(
        ready=[*unfinished.values(), *(final for final in ready if final.cell in free)],
        blocked=[final for final in ready if final.cell not in free],
        settled=list(settled.values()),
    )
