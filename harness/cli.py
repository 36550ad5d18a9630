"""The command line: parse, call one function, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from harness.errors import USER_ERRORS

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
console = Console(soft_wrap=True)
errors = Console(stderr=True, soft_wrap=True)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder of the results.")]


def _words(text: str | None) -> list[str] | None:
    return [word.strip() for word in text.split(",") if word.strip()] if text is not None else None


@app.command()
def run(
    experiment: Annotated[Path | None, typer.Argument(help="YAML experiment file; flags beat it.")] = None,
    suite: Annotated[str | None, typer.Option(help="Suite, see `sctbench suites`.")] = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods, e.g. linear,lora:rank=4,sct:channels=24:lr=4e-3")
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Tasks of the suite; all if not given.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds.")] = None,
    protocol: Annotated[str | None, typer.Option(help="Protocol: fixed or validation.")] = None,
    backbone: Annotated[str | None, typer.Option(help="demo_vit, or any ViT or Swin of timm.")] = None,
    weights: Annotated[str | None, typer.Option(help="pretrained, random, or a checkpoint file.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the input in pixels.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe fields for all methods, e.g. epochs=5,lr=1e-3")] = None,
    shots: Annotated[str | None, typer.Option(help="Shots of a few-shot suite, e.g. 1,4; all if not given.")] = None,
    statistics: Annotated[str | None, typer.Option(help="Input statistics: model, imagenet, half or none.")] = None,
    fit: Annotated[str | None, typer.Option(help="How pictures become square: squash, crop or squash-crop.")] = None,
    interpolation: Annotated[str | None, typer.Option(help="bicubic or bilinear.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the images, where you bring them.")] = None,
    lists: Annotated[Path | None, typer.Option(help="Folder of the lists, if not that of the images.")] = None,
    out: OutFolder = Path("results"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; one per GPU or CPU core if not given.")
    ] = None,
) -> None:
    """Run a selection of methods on a suite; what is complete already is skipped."""
    from harness import experiment as experiments
    from harness.lists import Roots

    fields = experiments.parse_method(":".join(_words(recipe) or []))[1] if recipe is not None else None
    given: dict[str, Any] = {
        "suite": suite,
        "methods": _words(methods),
        "tasks": _words(tasks),
        "seeds": seeds,
        "protocol": protocol,
        "backbone": backbone,
        "weights": weights,
        "image_size": image_size,
        "shots": [int(word) if word.isdecimal() else word for word in _words(shots) or []] or None,
        "statistics": statistics,
        "fit": fit,
        "interpolation": interpolation,
        "recipe": fields,
    }
    file = experiments.read_file(experiment) if experiment else None
    selection = experiments.select({k: v for k, v in given.items() if v is not None}, file)
    failed = _execute(selection, out, Roots(data=root, lists=lists), device, jobs)
    if failed:
        errors.print(f"{failed} run(s) failed; the same command tries them again.")
        raise typer.Exit(1)


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
    reference: Annotated[
        str | None, typer.Option(help="Method to test the others against; linear, or the best, if not given.")
    ] = None,
    ablation: Annotated[str | None, typer.Option(help="Settings to tabulate, e.g. channels,lr.")] = None,
) -> None:
    """Write tables and figures from whatever records there are."""
    from analysis.commands import load
    from analysis.report import write_report
    from analysis.tables import TableOptions

    rows = load(out, errors)
    options = TableOptions(reference, tuple(_words(ablation) or ()) if ablation is not None else None)
    for path in write_report(rows, out / "report", console, suite, options):
        console.print(f"wrote {path}")


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A method's name or table label, or a results folder.")],
    second: Annotated[str, typer.Argument(help="The other one.")],
    out: OutFolder = Path("results"),
    suite: Annotated[str | None, typer.Option(help="Only this suite.")] = None,
    protocol: Annotated[str | None, typer.Option(help="Only this protocol.")] = None,
    margin: Annotated[float, typer.Option(min=0, help="Points that count as practically equal.")] = 1.0,
) -> None:
    """Compare two methods, or two results folders, task by task: differences, intervals, Wilcoxon, wins."""
    from analysis.commands import compare as tables_of
    from analysis.commands import show

    show(lambda: tables_of(first, second, out, suite, protocol, margin, errors), console, errors)


@app.command()
def published(
    source: Annotated[str | None, typer.Option(help="Print this source's tables.")] = None,
    reference: Annotated[str | None, typer.Option(help="Method of the source to test its others against.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List published numbers, with their sources; they are never merged with own runs."""
    from analysis.commands import published_rows, published_tables, show

    if source is None:
        _print_rows(published_rows(), as_json)
    else:
        show(lambda: published_tables(source, reference), console, errors)


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
    _print_rows(rows, as_json)


@app.command("suites")
def list_suites(as_json: JsonFlag = False) -> None:
    """List the suites and their tasks."""
    from suites import SUITES

    rows = [
        {"suite": s.name, "group": t.group, "task": t.name, "classes": t.num_classes, **t.sizes}
        for s in SUITES.values()
        for t in s.tasks
    ]
    _print_rows(rows, as_json)


@app.command("backbones")
def list_backbones(as_json: JsonFlag = False) -> None:
    """List the embedded backbones; any ViT or Swin of timm works by its name too."""
    from harness.backbones import EMBEDDED

    rows = [{"name": name, "image_size": b.image_size, "about": b.about} for name, b in EMBEDDED.items()]
    _print_rows(rows, as_json)


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(*rows[0], box=None, header_style="bold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


def main() -> None:
    """Entry point of `sctbench`: errors meant for the user are printed without a traceback."""
    try:
        app()
    except USER_ERRORS as error:
        errors.print(f"[red]error:[/red] {error}", highlight=False, markup=True)
        raise SystemExit(2) from None
