"""The commands about runs: plan them, do them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.commands import options
from harness.terminal import JsonFlag, console, errors, print_rows, tell

runs_app = typer.Typer()


@runs_app.command()
@options.grouped
def run(
    asked: options.Asked,
    folders: options.DataFolders,
    kept: options.Kept,
    out: options.OutFolder = Path("results"),
    device: options.DeviceName = "auto",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; one per GPU or CPU core if not given.")
    ] = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Score val after every epoch where it is not trained on; no result changes.")
    ] = False,
    track: options.Track = None,
    redo: options.Redo = None,
) -> None:
    """Run a selection of methods on a suite; what is complete already is skipped."""
    from harness.execution import runs
    from harness.records.stale import check_redo
    from harness.training.trackers import check_track

    selection = asked.selection()
    how = runs.RunOptions(
        out=out,
        roots=folders.roots(),
        device=device,
        jobs=jobs or "all",
        curve=curve,
        keeping=kept.keeping(),
        track=check_track(track),
        redo_stale=check_redo(redo),
    )
    try:
        result = runs.run(runs.Plan(selection), how)
    except KeyboardInterrupt:
        errors.print("Stopped at once. The same command goes on from the states that were saved.")
        raise typer.Exit(130) from None
    if selection.suite.path is not None:
        _show_tables(out, result)
    _conclude(result)


@runs_app.command("plan")
@options.grouped
def show_plan(
    asked: options.Asked,
    out: options.OutFolder = Path("results"),
    redo: options.Redo = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what `run` would do with the same flags: runs, images and disk. The data need not be there."""
    from harness.execution.preparations import tell_weights
    from harness.execution.runs import Plan
    from harness.records.stale import check_redo

    selection = asked.selection()
    overview = Plan(selection).overview(out, check_redo(redo))
    if as_json:
        print(json.dumps({"tasks": [asdict(line) for line in overview.lines], "total": overview.totals}, indent=1))
        return
    tell_weights(selection, tell)
    if selection.suite.path is not None:
        tell(selection.suite.about)
    print_rows(overview.rows, False)
    for line in overview.summary:
        tell(line)


def _show_tables(out: Path, result: Any) -> None:
    """What the complete runs give, where a suite is the user's own data and has no other report."""
    from analysis.commands import show, tables_of_runs

    show(tables_of_runs(out, [record.spec.run_id for record in result.records]), console)
    if result.records:
        console.print(f"figures, and one page with everything: sctbench report --out {out}", highlight=False)


def _conclude(result: Any) -> None:
    """Say what failed and how to go on. The exit status is 1 if runs failed or could not start, 130 after Ctrl-C."""
    from harness.execution.runs import conclusion, failures

    outcome = result.outcome
    if result.failed:
        print_rows(failures(result), False)
    for line in conclusion(result):
        errors.print(line)
    if outcome.interrupted:
        raise typer.Exit(130)
    if result.failed or outcome.not_started:
        raise typer.Exit(1)
