"""The commands about the results folder: how runs stand, and what may be deleted."""

from __future__ import annotations

import functools
import json
from collections import Counter
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.commands import options
from harness.errors import HarnessError
from harness.terminal import JsonFlag, console, counting, errors, human_size, print_rows, split_csv
from suites import suite_name

status_app = typer.Typer()

RUNNING_SHOWN = 20
"""Running runs that are listed without `--all`."""


def _read_part(asked: options.Asked) -> Any:
    """The selection that is asked for; with no option but suite and tasks, what to filter a folder by."""
    if options.given(asked).keys() <= {"suite", "tasks"}:
        named = split_csv(asked.suite)
        return {"suite": named and [suite_name(one) for one in named], "task": split_csv(asked.tasks)}
    return asked.selection()


@status_app.command()
@options.grouped
def status(
    asked: options.Asked,
    out: options.OutFolder = Path("results"),
    by: Annotated[str, typer.Option(help="Rows of the table: any of suite,task,method.")] = "suite,method",
    all_runs: Annotated[bool, typer.Option("--all", help="List every run too.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show how runs stand, here and in submitted jobs: those that the options of `run` name, or all of the folder."""
    from harness.records import stale
    from harness.records.status import KEYS, STATES, counts, failures, waiting

    part = _read_part(asked)
    keys = split_csv(by) or []
    if not keys or not set(keys) <= set(KEYS):
        raise HarnessError(f"--by {by}: any of {','.join(KEYS)}")
    runs = _runs(part, out)
    if as_json:
        print(json.dumps([asdict(run) for run in runs], indent=1))
        return
    running = [run for run in runs if run.state == "running"]
    listed = [row_of(run) for run in (runs if all_runs else running[:RUNNING_SHOWN])]
    for rows in (counts(runs, keys), listed, waiting(runs), failures(runs)):
        if rows:
            print_rows(rows, False)
            console.print()
    if not all_runs and len(running) > RUNNING_SHOWN:
        console.print(f"{RUNNING_SHOWN} of {len(running)} running ones are listed; `--all` lists every run.\n")
    for run in runs:
        if "\n" in run.reason:  # the end of a job's log
            console.print(f"{run.run_id}: {run.reason}\n", highlight=False, markup=False)
    if text := stale.warning(run.method for run in runs if run.stale):
        errors.print(f"warning: {text}.", highlight=False, markup=False)
    total = Counter(run.state for run in runs)
    console.print(", ".join(f"{total[state]} {state}" for state in STATES if total[state]) or f"No runs in {out}.")


def _runs(part: Any, out: Path) -> list[Any]:
    """The runs that are asked for, with what schedulers say of them."""
    from harness.records import status as of
    from slurm.status import submitted_runs

    filters = part if isinstance(part, dict) else {}
    submitted, problems = submitted_runs(out)
    for problem in problems:
        errors.print(f"warning: {problem}")
    queued = [run.as_status() for run in submitted]
    with counting("reading new records") as advance:
        if part is filters:
            runs = of.of_folder(out, advance)
        else:
            runs = of.of_specs(out, _specs(part, out, {run.run_id for run in queued}), advance)
    runs = of.with_queue(runs, queued, only=part is not filters)
    return [
        run for run in runs if all(wanted is None or getattr(run, key) in wanted for key, wanted in filters.items())
    ]


def _specs(selection: Any, out: Path, submitted: set[str]) -> list[Any]:
    """The selection's runs; of tuned ones also the final runs, where the trials have decided them.

    Where a recipe leaves the precision to the device, a run has another id in each, and `auto` in it on a cluster: the
    one that the folder or a job holds counts, and otherwise the one that `run` would do on this machine.
    """
    from harness import device as devices
    from harness.plans import plan
    from harness.records.store import Store
    from harness.schema import protocol

    store, tunes = Store(out), protocol.get(selection.protocol).tunes
    read = functools.cache(store.read)
    here = devices.precision_in_use("auto", devices.choose("auto"))
    variants = []
    for precision in dict.fromkeys([here, "bf16", "float32", "auto"]):
        one = replace(selection, precision=precision)
        with nullcontext() if precision == here else suppress(HarnessError):  # two runs may be one in that precision
            variants.append([*plan.expand(one), *(final.spec(read) for final in (plan.finals(one) if tunes else []))])
    runs = [[spec for spec in same if spec] for same in zip(*variants, strict=True)]
    there = [[spec for spec in same if spec.run_id in submitted or store.folder(spec).is_dir()] for same in runs]
    return [(known or same)[0] for known, same in zip(there, runs, strict=True) if same]


def row_of(run: Any) -> dict[str, Any]:
    """A row about one run."""
    row = {"run": run.run_id, "task": run.task, "method": run.method, "seed": run.seed, "state": run.state}
    at = run.progress
    if at:
        row["epoch"] = f"{at['epoch']}/{at['epochs']}"
        row["loss"], row["accuracy"] = f"{at['loss']:.3f}", f"{at['accuracy']:.1f}"
    else:
        row |= {"epoch": "", "loss": "", "accuracy": ""}
    return row | {"time left": run.left, "held by": run.holder}


@status_app.command()
def clean(
    out: options.OutFolder = Path("results"),
    failed: Annotated[bool, typer.Option("--failed", help="Delete failed records and their states too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
) -> None:
    """Delete stale leases, temporary files and states of complete runs; never a result."""
    from harness.records.clean import litter, remove

    with counting("reading new records") as advance:
        useless = litter(out, failed, advance)
    deleted = useless if dry_run else remove(useless)
    kinds = {item.what: [one for one in deleted if one.what == item.what] for item in deleted}
    rows = [
        {"what": what, "number": len(items), "size": human_size(sum(item.bytes for item in items))}
        for what, items in kinds.items()
    ]
    if rows:
        print_rows(rows, False)
    console.print(f"{len(deleted)} {'would be deleted' if dry_run else 'deleted'}.")
