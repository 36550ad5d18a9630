"""The command line: parse, call one function, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli_data import data_app
from harness.cli_options import DataFolder, ListFolder, OutFolder, takes_selection
from harness.errors import USER_ERRORS
from harness.terminal import JsonFlag, console, errors, human_size, print_rows

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
app.add_typer(data_app, name="data")


@app.command()
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
) -> None:
    """Run a selection of methods on a suite; what is complete already is skipped."""
    from harness.lists import Roots

    failed = _execute(selection, out, Roots(data=root, lists=lists), device, jobs)
    if failed:
        errors.print(f"{failed} run(s) failed; the same command tries them again.")
        raise typer.Exit(1)


@app.command("plan")
@takes_selection
def show_plan(selection: Any, out: OutFolder = Path("results"), as_json: JsonFlag = False) -> None:
    """Show what `run` would do with the same flags: runs, images and disk. The data need not be there."""
    from harness.overview import overview, totals
    from harness.store import Store

    lines = overview(selection, Store(out).is_complete)
    if as_json:
        print(json.dumps({"tasks": [line.as_dict() for line in lines], "total": totals(lines)}, indent=1))
        return
    print_rows([_plan_row(line.as_dict()) for line in lines], False)
    total = totals(lines)
    disk = human_size(total["array_bytes"])
    console.print(f"{total['runs']} runs, {total['complete']} complete already. Decoded images on disk: {disk}")


def _plan_row(line: dict[str, Any]) -> dict[str, Any]:
    """The columns of a plan's table; shots and draws where there are any."""
    row = {
        "task": line["task"],
        "shots": line["shots"],
        "draws": line["split_seeds"],
        "methods": line["methods"],
        "seeds": line["seeds"],
        "runs": line["runs"],
        "complete": line["complete"],
        "train": line["train_images"],
        "scored": line["test_images"],
        "disk": human_size(line["array_bytes"]),
    }
    return {key: value for key, value in row.items() if line["shots"] is not None or key not in ("shots", "draws")}


def _execute(selection: Any, out: Path, roots: Any, device_name: str, jobs: int | None) -> int:
    """Do what is missing and show it; returns the number of failed runs."""
    from harness import backbones, local, plan
    from harness import device as devices
    from harness.progress import Display
    from harness.store import Store
    from methods import registry

    store, specs = Store(out), plan.expand(selection)
    missing = [spec for spec in specs if not store.is_complete(spec)]
    console.print(f"{len(specs)} runs, {len(specs) - len(missing)} complete already. Records: {out / 'runs'}")
    if not missing:
        return 0
    setups = [
        local.Setup(
            device=worker,
            root=out,
            data=roots,
            weight_files=backbones.files(),
            method_files=registry.added_files(),
            suites=[selection.suite] if not selection.suite.tasks[0].build else [],
        )
        for worker in local.worker_devices(devices.choose(device_name), jobs)
    ]
    with Display(len(missing), console) as display:
        try:
            local.execute(missing, setups, display)
        except KeyboardInterrupt:
            errors.print("Stopped. The same command goes on with what is missing.")
            raise typer.Exit(130) from None
    return len(display.failed)


@app.command()
def report(
    out: OutFolder = Path("results"),
    suite: Annotated[str | None, typer.Option(help="Only this suite.")] = None,
) -> None:
    """Write tables and figures from whatever records there are."""
    from analysis.report import write_report
    from harness.store import Store

    records, rejected = Store(out).records()
    for bad in rejected:
        errors.print(f"set aside {bad.path}: {bad.reason}")
    for path in write_report(records, out / "report", console, suite):
        console.print(f"wrote {path}")


@app.command("methods")
def list_methods(as_json: JsonFlag = False) -> None:
    """List the methods."""
    from methods.registry import all_methods

    rows = [
        {
            "name": m.name,
            "title": m.title,
            "family": m.family,
            "identity_at_start": m.identity_at_start,
            "paper": m.paper,
        }
        for m in all_methods().values()
    ]
    print_rows(rows, as_json)


@app.command("suites")
def list_suites(as_json: JsonFlag = False) -> None:
    """List the suites and their tasks."""
    from suites import SUITES

    rows = [
        {"suite": s.name, "group": t.group, "task": t.name, "classes": t.num_classes}
        | {split: t.sizes.get(split, "") for split in ("train", "val", "test")}
        for s in SUITES.values()
        for t in s.tasks
    ]
    print_rows(rows, as_json)


@app.command("backbones")
def list_backbones(as_json: JsonFlag = False) -> None:
    """List the embedded backbones; any ViT or Swin of timm works by its name too."""
    from harness.backbones import EMBEDDED

    rows = [{"name": name, "image_size": b.image_size, "about": b.about} for name, b in EMBEDDED.items()]
    print_rows(rows, as_json)


def main() -> None:
    """Entry point of `sctbench`: errors meant for the user are printed without a traceback."""
    try:
        app()
    except USER_ERRORS as error:
        errors.print(f"[red]error:[/red] {error}", highlight=False, markup=True)
        raise SystemExit(2) from None
