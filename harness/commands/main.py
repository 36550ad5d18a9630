"""The command line: parse, call one function, print."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from harness.commands.bench import bench
from harness.commands.checks import checks_app
from harness.commands.data import data_app
from harness.commands.models import models_app
from harness.commands.options import MetricName, OutFolder, Results
from harness.commands.runs import runs_app
from harness.commands.sharing import sharing_app
from harness.commands.slurm import slurm_app
from harness.commands.status import status_app
from harness.errors import USER_ERRORS
from harness.schema.failures import kind_of
from harness.terminal import JsonFlag, console, errors, print_rows, show_plugin_warnings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
app.add_typer(runs_app)
app.add_typer(slurm_app)
app.add_typer(checks_app)
app.add_typer(models_app)
app.add_typer(status_app)
app.add_typer(sharing_app)
app.add_typer(data_app, name="data")
app.command()(bench)


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"sctbench {version('sctbench')}")
        raise typer.Exit


@app.callback()
def common(
    cache_dir: Annotated[
        Path | None, typer.Option(help="Folder for weights, decoded images and bundled suites; also $SCTBENCH_CACHE.")
    ] = None,
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="Print the version.")
    ] = False,
) -> None:
    """Compare parameter-efficient fine-tuning methods for vision transformers."""
    show_plugin_warnings()
    if cache_dir is not None:
        os.environ["SCTBENCH_CACHE"] = str(cache_dir.absolute())  # the workers inherit it


@app.command()
def report(
    out: OutFolder = Path("results"),
    suite: Annotated[str | None, typer.Option(help="Only this suite; a file of your own: with its groups.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="Method to test the others against; linear, or the best, if not given.")
    ] = None,
    ablation: Annotated[str | None, typer.Option(help="Settings to tabulate, e.g. channels,lr.")] = None,
    metric: MetricName = None,
    results: Results = None,
    to: Annotated[Path | None, typer.Option(help="Folder for tables and figures; OUT/report if not given.")] = None,
) -> None:
    """Write tables and figures from whatever records there are."""
    from harness.commands.reports import write

    paths = write(out, suite, reference, ablation, to, metric, results=results)
    if paths:
        console.print(f"{len(paths) - 1} tables and figures in {paths[0].parent}, and one page with all of them:")
        console.print(f"wrote {paths[0]}")


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A method's name or table label, or a results folder or pack.")],
    second: Annotated[str, typer.Argument(help="The other one.")],
    out: OutFolder = Path("results"),
    suite: Annotated[str | None, typer.Option(help="Only this suite.")] = None,
    protocol: Annotated[str | None, typer.Option(help="Only this protocol.")] = None,
    metric: MetricName = None,
    margin: Annotated[
        float | None,
        typer.Option(min=0, help="What counts as practically equal, in the metric's unit; 1 point, or else 0."),
    ] = None,
    results: Results = None,
) -> None:
    """Compare two methods, or two results folders or packs, task by task and image by image: intervals, tests."""
    from analysis.commands import compare as tables_of
    from analysis.commands import show

    show(tables_of(first, second, out, suite, protocol, margin, errors, metric, results), console)


@app.command()
def published(
    source: Annotated[str | None, typer.Option(help="Print this source's tables.")] = None,
    reference: Annotated[str | None, typer.Option(help="Method of the source to test its others against.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List published numbers, with their sources; they are never merged with own runs."""
    from analysis.commands import published_rows, published_tables, show

    if source is None:
        print_rows(published_rows(), as_json)
    else:
        show(published_tables(source, reference), console)


@app.command("methods")
def list_methods(
    files: Annotated[list[str] | None, typer.Argument(help="Methods of your own to list too: file.py:Class")] = None,
    backbone: Annotated[str, typer.Option(help="Count parameters on this backbone.")] = "demo_vit",
    as_json: JsonFlag = False,
) -> None:
    """List the methods, with the parameters that each trains on a backbone (head excluded)."""
    from harness.models.backbones import skeleton
    from methods.registry import all_methods, describe, get

    model, listed = skeleton(backbone), [*all_methods().values(), *(get(file) for file in files or [])]
    print_rows([describe(method, model) for method in listed], as_json)


@app.command("check")
def check(
    method: Annotated[str, typer.Argument(help="A method's name, or path/to/file.py:ClassName.")],
    as_json: JsonFlag = False,
) -> None:
    """Check a method against the contract on small models: does it count, freeze, train, save and merge as it says?"""
    from harness.commands.two_processes import check_in_two

    results = check_in_two(method)
    print_rows([{"check": name, "result": result} for name, result in results.items()], as_json)
    if not as_json:
        from harness.training.method_check import summary

        print(f"\n{summary(method, results)}")
    if set(results.values()) != {"ok"}:
        raise typer.Exit(1)


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
def list_backbones(
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Which methods serve which kind; with --json why the others do not.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """List the embedded and the recommended backbones; timm's others of these kinds work by their names too."""
    if coverage:
        from methods.coverage import groups, refusals

        print_rows(refusals() if as_json else groups(), as_json)
        return
    from harness.models.backbones import listing

    print_rows(listing(), as_json)


def main() -> None:
    """Entry point of `sctbench`: errors meant for the user are printed without a traceback."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook passes on its own, which only its own installation knows
    try:
        app()
    except USER_ERRORS as error:
        errors.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, markup=True)
        raise SystemExit(2) from None
    except OSError as error:
        kind = kind_of(error)
        if kind.name in ("unexpected", "data"):
            raise
        errors.print(f"[red]error:[/red] {escape(f'{error}: {kind.about}')}", highlight=False)
        raise SystemExit(2) from None
