"""Where a selection stands: what can start now, what waits for it, and what is done. Executors work from this alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from harness import plan
from harness import protocol as protocols
from harness.record import RunRecord
from harness.spec import RunSpec
from harness.tuning import Final, Read

Job = RunSpec | Final
"""What an executor does: a run, or one whose settings its trials have decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """A selection, sorted by what is to be done."""

    ready: list[Job]
    """What can start now; runs that failed before are among it."""

    blocked: list[Final]
    """Finals of which a trial is still among `ready`."""

    settled: list[RunSpec]
    """Runs with nothing left to do: complete, or trials that failed and that a complete final counts as the worst."""

    @property
    def total(self) -> int:
        """Number of runs, trials included."""
        return len(self.ready) + len(self.blocked) + len(self.settled)


def stage(selection: plan.Selection, read: Read) -> Stages:
    """Sort a selection's runs by what `read`, usually `Store.read`, finds of them."""
    known: dict[str, RunRecord | None] = {}

    def read_once(spec: RunSpec) -> RunRecord | None:
        if spec.run_id not in known:
            known[spec.run_id] = read(spec)
        return known[spec.run_id]

    if protocols.get(selection.protocol).tunes:
        return _stage_finals(plan.finals(selection), read_once)
    specs = plan.expand(selection)
    done = [is_complete(spec, read_once) for spec in specs]
    return Stages(
        ready=[spec for spec, complete in zip(specs, done, strict=True) if not complete],
        blocked=[],
        settled=[spec for spec, complete in zip(specs, done, strict=True) if complete],
    )


def is_complete(spec: RunSpec | None, read: Read) -> bool:
    """Whether the run has a record of success."""
    record = read(spec) if spec else None
    return record is not None and record.status == "complete"


def released(blocked: Iterable[Final], pending: Iterable[RunSpec]) -> list[Final]:
    """Finals that can start, because none of their trials is among the runs that are still to be done."""
    waiting = {spec.run_id for spec in pending}
    return [final for final in blocked if waiting.isdisjoint(final.cell[0])]


def _stage_finals(finals: list[Final], read: Read) -> Stages:
    """Once a final of a cell is complete its choice stands and failed trials are not tried again: another winner would
    give the seeds of one cell different settings."""
    cells: dict[object, list[Final]] = {}
    for final in finals:
        cells.setdefault(final.cell, []).append(final)
    unfinished: dict[str, RunSpec] = {}
    settled: dict[str, RunSpec] = {}
    ready: list[Final] = []
    for members in cells.values():
        specs = [final.spec(read) for final in members]
        decided = any(is_complete(spec, read) for spec in specs)
        for trial in members[0].trials:
            done = decided or is_complete(trial, read)
            (settled if done else unfinished)[trial.run_id] = trial
        for final, spec in zip(members, specs, strict=True):
            if spec and is_complete(spec, read):
                settled[spec.run_id] = spec
            else:
                ready.append(final)
    settled = {run_id: spec for run_id, spec in settled.items() if run_id not in unfinished}
    free = released(ready, unfinished.values())
    names = {(final.cell, final.seed) for final in free}
    return Stages(
        ready=[*unfinished.values(), *free],
        blocked=[final for final in ready if (final.cell, final.seed) not in names],
        settled=list(settled.values()),
    )
