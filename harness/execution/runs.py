"""Plan and run, as the command line and `import sctbench` both do."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from harness import device as devices
from harness import terminal
from harness.data import arrays
from harness.data.lists import Roots
from harness.errors import HarnessError
from harness.execution import in_process, local
from harness.execution.backlog import Outcome
from harness.execution.overview import Overview, overview
from harness.execution.preparations import Tell, prepare
from harness.execution.progress import Display
from harness.execution.worker import Setup, setup_for
from harness.plans import plan as plans
from harness.plans.experiment import read_file, select
from harness.plans.plan import Selection
from harness.plans.stages import Stages, stage
from harness.records.stale import check_redo, without_stale
from harness.records.store import Store
from harness.schema.failures import CLASSES
from harness.schema.keeping import Keeping
from harness.schema.record import ReadRecord, RunRecord
from harness.training.trackers import check_track

Jobs = int | Literal["all"] | None
"""Worker processes: a number; `all`: one per GPU or CPU core; None: none, the runs are done in this process."""


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """What is to be run. It shows its tasks, runs and GPU hours."""

    selection: Selection

    def overview(self, out: Path | str | None = None, redo_stale: bool = False) -> Overview:
        """What the plan amounts to on this machine, and how much of it the results folder `out` holds already; with
        `redo_stale`, runs whose method's source has changed since do not count."""
        selection = _with_precision(self.selection, devices.choose("auto"))
        read: ReadRecord = Store(Path(out)).read if out is not None else lambda spec: None
        return overview(selection, without_stale(read) if redo_stale else read)

    def __repr__(self) -> str:
        return str(self.overview())

    def _repr_html_(self) -> str:
        return self.overview()._repr_html_()


def make_plan(experiment: str | Path | None = None, **asked: Any) -> Plan:
    """The plan of an experiment file and of what else is asked for, by the keys of such a file; None is not asked for.

    `HarnessError`, `MethodError` or `SuiteError` for what does not fit.
    """
    values = {key: _plain(value) for key, value in asked.items() if value is not None}
    file = read_file(as_path("experiment", experiment)) if experiment is not None else None
    return Plan(select(values, file))


def _plain(value: Any) -> Any:
    """As an experiment file would have it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | range):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


def as_path(name: str, value: Any) -> Path:
    """A folder or file that was given as a text or a path. `HarnessError` for anything else."""
    if not isinstance(value, str | os.PathLike):
        raise HarnessError(f"{name}={value!r} must be str or Path")
    return Path(value).expanduser()


def as_roots(root: Any, lists: Any) -> Roots:
    """The folders of images and lists, each given as a text or a path, or None."""
    return Roots(data=root and as_path("root", root), lists=lists and as_path("lists", lists))


def as_plan(value: Any) -> Plan:
    """The same plan. `HarnessError` for anything else."""
    if not isinstance(value, Plan):
        raise HarnessError(f"what is run is a plan, as sctbench.plan gives it, not {value!r}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a plan is run; none of it is part of a run's identity."""

    out: Path = Path("results")
    """Folder of the results."""

    roots: Roots = field(default_factory=Roots)
    device: str = "auto"
    jobs: Jobs = None
    curve: bool = False
    """Whether val is scored after every epoch where it is not trained on."""

    keeping: Keeping = field(default_factory=Keeping)
    track: tuple[str, ...] = ()
    """Trackers that the runs' curves are drawn with."""

    redo_stale: bool = False
    """Whether complete runs are done again whose method's source has changed since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of a plan."""

    records: list[RunRecord]
    """Of all runs that have one now, in the plan's order, failed ones included; finals after their trials."""

    failed: list[RunRecord]
    """Those of this execution that failed."""

    outcome: Outcome


def run(plan: Plan, options: RunOptions, quiet: bool = False) -> Result:
    """Do what is missing of a plan; the user is told what matters on the way, unless `quiet`.

    Raises `HarnessError` before anything starts if the options or the data do not fit. Ctrl-C once: the runs under way
    save their states and stop; twice: `KeyboardInterrupt`.
    """
    if options.curve:
        plans.check_curve(plan.selection)
    tell: Tell = (lambda line: None) if quiet else terminal.tell
    device = devices.choose(options.device)
    selection = _with_precision(plan.selection, device)
    read = cache(Store(options.out).read)
    stages = stage(selection, without_stale(read) if options.redo_stale else read)
    to_do = [*stages.ready, *stages.blocked]
    tell(f"{stages.total} runs, {len(stages.settled)} complete already. Records: {options.out / 'runs'}")
    if to_do:
        tell(f"Kept beside each record: {options.keeping}")
    for note in _other_precisions(selection, read):
        tell(f"note: {note}")
    settled = [record for spec in stages.settled if (record := read(spec))]
    prepare(selection, options.roots, settled, to_do, curve=options.curve, tell=tell)
    if not to_do:
        return Result(records=settled, failed=[], outcome=Outcome())
    disk = terminal.human_size(overview(selection, lambda _: None).totals["array_bytes"])
    tell(f"Decoded images of the selection: {disk} in {arrays.folder()}, built where they are not there yet")
    with Display(len(to_do), Console(quiet=True) if quiet else terminal.console) as display:
        outcome = _execute(selection, stages, options, device, display)
    records = {record.spec.run_id: record for record in [*settled, *display.records]}
    order = {spec.run_id: number for number, spec in enumerate(plans.expand(selection))}
    in_order = sorted(records.values(), key=lambda record: order.get(record.spec.run_id, len(order)))
    failed = [record for record in display.records if record.status != "complete"]
    return Result(records=in_order, failed=failed, outcome=outcome)


def _execute(
    selection: Selection, stages: Stages, options: RunOptions, device: torch.device, display: Display
) -> Outcome:
    """Do the runs of `stages`, here or in worker processes."""

    def setup(worker: str) -> Setup:
        told = setup_for(selection, options.out, options.roots, worker)
        changes = {name: getattr(options, name) for name in ("curve", "keeping", "track", "redo_stale")}
        return replace(told, **changes)

    if options.jobs is None:
        return in_process.execute(stages.ready, setup(str(device)), display, stages.blocked)
    workers = local.worker_devices(device, None if options.jobs == "all" else options.jobs)
    return local.execute(stages.ready, [setup(worker) for worker in workers], display, stages.blocked)


def run_here(
    plan: Any,
    out: Any,
    *,
    root: Any,
    lists: Any,
    device: str,
    jobs: Any,
    curve: bool,
    keep_weights: str,
    keep_logits: bool,
    track: Any,
    redo: str | None,
    quiet: bool,
) -> list[RunRecord]:
    """`run` for a script or a notebook: checks arguments, prints the conclusion, and raises on an interrupt."""
    if not (jobs in (None, "all") or (type(jobs) is int and jobs > 0)):
        raise HarnessError(f"jobs={jobs!r} must be a number of worker processes, 'all', or None: none but this process")
    options = RunOptions(
        out=as_path("out", out),
        roots=as_roots(root, lists),
        device=device,
        jobs=jobs,
        curve=curve,
        keeping=Keeping(weights=keep_weights, logits=keep_logits),
        track=check_track(track),
        redo_stale=check_redo(redo),
    )
    result = run(as_plan(plan), options, quiet)
    for line in () if quiet else conclusion(result, "the same call"):
        terminal.tell(line)
    if result.outcome.interrupted:
        raise KeyboardInterrupt
    return result.records


def _with_precision(selection: Selection, device: torch.device) -> Selection:
    return replace(selection, precision=devices.precision_in_use("auto", device))


def _other_precisions(selection: Selection, read: ReadRecord) -> Iterator[str]:
    """A line for each precision in which runs of a selection are complete that are not the selection's own."""
    own = {spec.run_id for spec in stage(selection, read).settled} | {spec.run_id for spec in plans.expand(selection)}
    for precision, words in (("bf16", "in bf16"), ("float32", "in float32"), ("auto", "as their device chose")):
        with suppress(HarnessError):  # two runs of the selection may be one in that precision
            settled = stage(replace(selection, precision=precision), read).settled
            count = sum(spec.run_id not in own and spec.protocol == selection.protocol for spec in settled)
            if count:
                here = f"these are to be computed in {selection.precision}"
                yield f"{count} complete runs were computed {words}; {here}, so they are other runs"


def failures(result: Result) -> list[dict[str, Any]]:
    """A row for each class of failure: how many runs failed so, and what it means."""
    counts = Counter(record.failure.kind for record in result.failed if record.failure)
    return [{"failure": kind, "runs": runs, "what it means": CLASSES[kind].about} for kind, runs in counts.items()]


def conclusion(result: Result, again: str = "the same command") -> list[str]:
    """What is left of a plan and how to continue, as sentences; none if all is done. `again`: what does the rest."""
    outcome, lines = result.outcome, []
    if result.failed:
        lines.append(f"{len(result.failed)} run(s) failed; {again} tries them again.")
    if outcome.ended_by:
        lines.append(f"{outcome.not_started} run(s) were not started: {outcome.ended_by.about}")
    elif outcome.not_started and not outcome.interrupted:
        lines.append(f"{outcome.not_started} run(s) were not started: a trial of theirs gave no verdict, see above.")
    if outcome.interrupted:
        lines.append(f"Stopped; what was under way is saved. {again.capitalize()} goes on from there.")
    return lines
