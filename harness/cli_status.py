"""The commands about what is there: how runs stand, and what may be deleted."""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli_options import OutFolder, read_selection, takes_options
from harness.errors import HarnessError
from harness.terminal import JsonFlag, console, counting, human_size, print_rows, words

status_app = typer.Typer()


@functools.wraps(read_selection)
def _read_part(**options: Any) -> Any:
    """The selection that the options ask for; without methods and experiment file, what to filter a folder by."""
    given = {key: value for key, value in options.items() if value is not None}
    if given.keys() <= {"suite", "tasks"}:
        return {"suite": words(options["suite"]), "task": words(options["tasks"])}
    return read_selection(**options)


@status_app.command()
@takes_options("part", _read_part)
def status(
    part: Any,
    out: OutFolder = Path("results"),
    by: Annotated[str, typer.Option(help="Rows of the table: any of suite,task,method.")] = "suite,method",
    as_json: JsonFlag = False,
) -> None:
    """Show how runs stand. With the options of `run`: those runs; without: whatever the folder holds."""
    from harness.status import KEYS, STATES, counts, failures

    keys = words(by) or []
    if not keys or not set(keys) <= set(KEYS):
        raise HarnessError(f"--by {by}: any of {','.join(KEYS)}")
    runs = _runs(part, out)
    if as_json:
        print(json.dumps([run.as_dict() for run in runs], indent=1))
        return
    if runs:
        print_rows(counts(runs, keys), False)
    running = [_running_row(run) for run in runs if run.state == "running"]
    for rows in (running, failures(runs)):
        if rows:
            console.print()
            print_rows(rows, False)
    total = Counter(run.state for run in runs)
    console.print(", ".join(f"{total[state]} {state}" for state in STATES if total[state]) or f"No runs in {out}.")


def _runs(part: Any, out: Path) -> list[Any]:
    from harness import plan
    from harness import status as of

    with counting("reading new records") as advance:
        if not isinstance(part, dict):
            return of.of_specs(out, plan.expand(part), advance)
        runs = of.of_folder(out, advance)
    return [run for run in runs if all(wanted is None or getattr(run, key) in wanted for key, wanted in part.items())]


def _running_row(run: Any) -> dict[str, Any]:
    at = run.progress or {}
    row = {"running": f"{run.task} {run.method}", "run": run.run_id, "epoch": "", "loss": "", "accuracy": ""}
    if at:
        row |= {
            "epoch": f"{at['epoch']}/{at['epochs']}",
            "loss": f"{at['loss']:.3f}",
            "accuracy": f"{at['accuracy']:.1f}",
        }
    return row | {"at it": run.holder}


@status_app.command()
def clean(
    out: OutFolder = Path("results"),
    failed: Annotated[bool, typer.Option("--failed", help="Delete failed records and their states too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
) -> None:
    """Delete stale leases, temporary files and states of complete runs; never a result."""
    from harness.clean import litter, remove

    with counting("reading new records") as advance:
        found = litter(out, failed, advance)
    deleted = found if dry_run else remove(found)
    kinds = {item.what: [one for one in deleted if one.what == item.what] for item in deleted}
    rows = [
        {"what": what, "number": len(items), "size": human_size(sum(item.bytes for item in items))}
        for what, items in kinds.items()
    ]
    if rows:
        print_rows(rows, False)
    console.print(f"{len(deleted)} {'would be deleted' if dry_run else 'deleted'}.")
