"""The commands that check numbers: done again, against what was published, and against what looking at test gains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.commands.options import DataFolders, DeviceName, MetricName, OutFolder, grouped
from harness.terminal import JsonFlag, console, errors, print_rows

checks_app = typer.Typer()


@checks_app.command()
@grouped
def rerun(
    record: Annotated[Path, typer.Argument(help="A run's record.json, or its folder.")],
    folders: DataFolders,
    weights: Annotated[Path | None, typer.Option(help="The checkpoint, for a run with one from a file.")] = None,
    method: Annotated[
        str | None, typer.Option(help="Where the method is, if it is one of your own: file.py:Class.")
    ] = None,
    suite: Annotated[Path | None, typer.Option(help="The suite's YAML file, if it is one of your own.")] = None,
    device: DeviceName = "auto",
) -> None:
    """Do one run again from its record alone, and compare. Nothing is written; the exit status is 1 if it differs."""
    from harness.records.place import read
    from harness.training.rerun import again, compare, summary

    before = read(record)
    now = again(before, folders.roots(), weights, method, suite, device)
    comparison = compare(before, now)
    rows = [
        {"result": fact.what, "record": fact.before, "now": fact.now} for fact in comparison.results if not fact.same
    ]
    if rows:
        print_rows(rows, False)
    if comparison.surroundings:
        console.print("Not the same as then:")
        print_rows(
            [{"fact": fact.what, "record": fact.before, "now": fact.now} for fact in comparison.surroundings], False
        )
    console.print(summary(comparison), highlight=False)
    if not comparison.identical:
        raise typer.Exit(1)


@checks_app.command()
def bias(
    out: OutFolder = Path("results"),
    suite: Annotated[str | None, typer.Option(help="Only this suite.")] = None,
    metric: MetricName = None,
) -> None:
    """Show what reporting the best test epoch gains: oracle minus fixed, of the runs that are there."""
    from analysis.commands import bias as tables_of
    from analysis.commands import show

    show(tables_of(out, suite, errors, metric), console)


@checks_app.command()
def verify(
    source: Annotated[str | None, typer.Option(help="Only this source, see `sctbench published`.")] = None,
    out: OutFolder = Path("results"),
    suite: Annotated[str | None, typer.Option(help="Only this suite.")] = None,
    protocol: Annotated[str | None, typer.Option(help="Only this protocol.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare own records with published numbers, cell by cell, and name how the conditions differ."""
    from analysis.commands import show, verified
    from analysis.verify import as_rows, summary

    parts = verified(source, out, suite, protocol, errors)
    if as_json:
        print_rows(as_rows(parts), True)
        return
    show([part.table for part in parts], console)
    for part in parts:
        console.print(summary(part), highlight=False)
