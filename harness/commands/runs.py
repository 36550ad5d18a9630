"""The commands about runs: plan them, do them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.commands.options import DataFolder, ListFolder, OutFolder, Redo, takes_selection, tell_weights
from harness.terminal import JsonFlag, console, counting, errors, human_size, print_rows

runs_app = typer.Typer()


@runs_app.command()
@takes_selection
def run(
    selection: Any,
    root: DataFolder = None,
    lists: ListFolder = None,
    out: OutFolder = Path("results"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; one per GPU or CPU core if not given.")
    ] = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Score val after every epoch where it is not trained on; no result changes.")
    ] = False,
    redo: Redo = None,
) -> None:
    """Run a selection of methods on a suite; what is complete already is skipped."""
    from harness.data.lists import Roots
    from harness.plans.plan import check_curve
    from harness.records.stale import check_redo

    if curve:
        check_curve(selection)
    _execute(selection, out, Roots(data=root, lists=lists), device, jobs, curve, check_redo(redo))


@runs_app.command("plan")
@takes_selection
def show_plan(selection: Any, out: OutFolder = Path("results"), redo: Redo = None, as_json: JsonFlag = False) -> None:
    """Show what `run` would do with the same flags: runs, images and disk. The data need not be there."""
    from harness import device as devices
    from harness.execution.overview import ASSUMED_RATE, gpu_hours, overview, totals
    from harness.records.stale import check_redo, without_stale
    from harness.records.store import Store

    selection = replace(selection, precision=devices.precision_in_use("auto", devices.choose("auto")))
    read = Store(out).read
    lines = overview(selection, without_stale(read) if check_redo(redo) else read)
    if as_json:
        print(json.dumps({"tasks": [line.as_dict() for line in lines], "total": totals(lines)}, indent=1))
        return
    tell_weights(selection)
    print_rows([_plan_row(line.as_dict()) for line in lines], False)
    total = totals(lines)
    disk, hours = human_size(total["array_bytes"]), _hours(gpu_hours(total["operations"]))
    console.print(f"{total['runs']} runs, {total['complete']} complete already. Decoded images on disk: {disk}")
    console.print(f"GPU hours: {hours} of arithmetic in all, assuming {ASSUMED_RATE / 1e12:.0f} TFLOP/s sustained")


def _hours(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:.2g}"


_SHOWN_WITH = {"shots": "shots", "draws": "shots", "trials": "trials"}
"""Columns that are shown only where there is something of this kind."""


def _plan_row(line: dict[str, Any]) -> dict[str, Any]:
    """The columns of a plan's table; shots, draws and trials where there are any."""
    from harness.execution.overview import gpu_hours

    row = {
        "task": line["task"],
        "shots": line["shots"],
        "draws": line["split_seeds"],
        "methods": line["methods"],
        "seeds": line["seeds"],
        "runs": line["runs"],
        "trials": line["trials"],
        "complete": line["complete"],
        "train": line["train_images"],
        "scored": line["test_images"],
        "GPU hours": _hours(gpu_hours(line["operations"])),
        "disk": human_size(line["array_bytes"]),
    }
    return {key: value for key, value in row.items() if line[_SHOWN_WITH.get(key, "runs")]}


def _execute(
    selection: Any, out: Path, roots: Any, device_name: str, jobs: int | None, curve: bool, redo_stale: bool
) -> None:
    """Do what is missing and show it. The exit status is 1 if runs failed or could not start, 130 after Ctrl-C."""
    from harness import device as devices
    from harness.data import arrays
    from harness.data.lists import folders_taken
    from harness.data.located import refuse_unusable
    from harness.data.splits import done_on_other_data, not_official
    from harness.execution import local
    from harness.execution.overview import overview, totals
    from harness.execution.progress import Display
    from harness.execution.worker import setup_for
    from harness.plans.stages import stage
    from harness.records import stale
    from harness.records.store import Store

    tell_weights(selection)
    store, found, device = Store(out), dict[str, Any](), devices.choose(device_name)
    selection = replace(selection, precision=devices.precision_in_use("auto", device))

    def read(spec: Any) -> Any:
        return found.setdefault(spec.run_id, store.read(spec))

    stages = stage(selection, stale.without_stale(read) if redo_stale else read)
    to_do = len(stages.ready) + len(stages.blocked)
    console.print(f"{stages.total} runs, {len(stages.settled)} complete already. Records: {out / 'runs'}")
    for note in _other_precisions(selection, read):
        errors.print(f"note: {note}", markup=False, highlight=False)
    settled = [record for spec in stages.settled if (record := found.get(spec.run_id))]
    for warning in not_official(selection.suite, selection.tasks, roots, selection.shots, selection.preprocessing):
        errors.print(f"warning: {warning}", markup=False, highlight=False)
    with counting("images compared") as advance:
        warnings = list(done_on_other_data(selection.suite, settled, roots, selection.preprocessing, advance))
    for warning in warnings:
        errors.print(f"warning: {warning}; not done again, for that take another --out", markup=False, highlight=False)
    if text := stale.warning(record.spec.method for record in settled if stale.is_stale(record)):
        errors.print(f"warning: {text}.", markup=False, highlight=False)
    if not to_do:
        return
    with counting("lists and images looked for") as advance:
        refuse_unusable(selection.suite, [*stages.ready, *stages.blocked], roots, curve, advance)
    for line in folders_taken(selection.suite, selection.tasks, roots):
        console.print(line, markup=False, highlight=False)
    disk = human_size(totals(overview(selection, lambda _: None))["array_bytes"])
    console.print(f"Decoded images of the selection: {disk} in {arrays.folder()}, built where they are not there yet")
    devices_ = local.worker_devices(device, jobs)
    setups = [
        replace(setup_for(selection, out, roots, worker), curve=curve, redo_stale=redo_stale) for worker in devices_
    ]
    with Display(to_do, console) as display:
        try:
            outcome = local.execute(stages.ready, setups, display, stages.blocked)
        except KeyboardInterrupt:
            errors.print("Stopped at once. The same command goes on from the states that were saved.")
            raise typer.Exit(130) from None
    _conclude(display.failed, outcome)


def _other_precisions(selection: Any, read: Any) -> Iterator[str]:
    """A line for each precision in which runs of a selection are complete that are not the selection's own."""
    from harness.errors import HarnessError
    from harness.plans import plan
    from harness.plans.stages import stage

    own = {spec.run_id for spec in stage(selection, read).settled} | {spec.run_id for spec in plan.expand(selection)}
    for precision, words in (("bf16", "in bf16"), ("float32", "in float32"), ("auto", "as their device chose")):
        with suppress(HarnessError):  # two runs of the selection may be one in that precision
            settled = stage(replace(selection, precision=precision), read).settled
            count = sum(spec.run_id not in own and spec.protocol == selection.protocol for spec in settled)
            if count:
                here = f"these are to be computed in {selection.precision}"
                yield f"{count} complete runs were computed {words}; {here}, so they are other runs"


def _conclude(failed: list[Any], outcome: Any) -> None:
    """Say what failed and how to go on; the exit status tells too."""
    from harness.schema.failures import CLASSES

    if failed:
        kinds = [CLASSES[record.failure.kind] for record in failed]
        counts = {kind: kinds.count(kind) for kind in kinds}
        rows = [{"failure": k.name, "runs": count, "what it means": k.about} for k, count in counts.items()]
        print_rows(rows, False)
        errors.print(f"{len(failed)} run(s) failed; the same command tries them again.")
    if outcome.ended_by:
        errors.print(f"{outcome.not_started} run(s) were not started: {outcome.ended_by.about}")
    elif outcome.not_started and not outcome.interrupted:
        errors.print(f"{outcome.not_started} run(s) were not started: a trial of theirs gave no verdict, see above.")
    if outcome.interrupted:
        errors.print("Stopped; what was under way is saved. The same command goes on from there.")
        raise typer.Exit(130)
    if failed or outcome.not_started:
        raise typer.Exit(1)
