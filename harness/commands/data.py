"""`sctbench data`: check, convert and clean up data."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from harness.commands.options import DataFolders, ShotCounts, SuiteName, TaskNames, grouped
from harness.errors import HarnessError
from harness.terminal import JsonFlag, console, counting, errors, human_size, print_rows, split_shots, split_tasks

T = TypeVar("T")

TargetFolder = Annotated[
    Path | None, typer.Option(file_okay=False, help="Folder to write to; it must not hold these tasks yet.")
]

data_app = typer.Typer(no_args_is_help=True, help="Check, convert and clean up data.")
cache_app = typer.Typer(no_args_is_help=True, help="Decoded images that runs keep on disk.")
data_app.add_typer(cache_app, name="cache")


@data_app.command("check")
@grouped
def check_data(
    *,
    suite: SuiteName = None,
    folders: DataFolders,
    tasks: TaskNames = None,
    shots: ShotCounts = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode every image, and find copies by pixels instead of bytes.")
    ] = False,
    show: Annotated[int, typer.Option(min=1, help="Problems of each kind to print; --json has all.")] = 3,
    as_json: JsonFlag = False,
) -> None:
    """Check every list and image of a suite; the exit status is 1 if there is any error."""
    from harness.data.check import check
    from harness.plans.experiment import find_suite

    start = time.perf_counter()
    with counting("images") as advance:
        result = check(
            find_suite(_given(suite, "--suite"), tuple(split_shots(shots) or ())),
            folders.roots(),
            tuple(split_tasks(tasks) or ()),
            tuple(split_shots(shots) or ()),
            deep,
            advance,
        )
    _print_check(result, as_json, show, time.perf_counter() - start)
    if result.errors:
        raise typer.Exit(1)


def _given(value: T | None, flag: str) -> T:
    if value is None:
        raise HarnessError(f"say which: {flag}")
    return value


def _print_check(result: Any, as_json: bool, show: int, seconds: float) -> None:
    from harness.data.problems import told

    rows = [
        {
            "task": row.task.name,
            "split": row.split,
            "shots": row.shots,
            "draw": row.split_seed,
            "found": row.size,
            "known": row.known,
            "errors": sum(problem.severity == "error" for problem in row.problems),
            "warnings": sum(problem.severity == "warning" for problem in row.problems),
        }
        for row in result.lists
    ]
    if as_json:
        problems = [
            {"severity": problem.severity, "text": problem.text, "hint": problem.hint.text}
            for problem in result.problems
        ]
        print(json.dumps({"lists": rows, "taken": result.choices, "problems": problems}, indent=1))
        return
    if rows:
        print_rows(rows, False)
    for line in [*result.choices, *told(result.problems, show)]:
        errors.print(line, markup=False, highlight=False)
    warnings = len(result.problems) - result.errors
    console.print(f"{result.images} images in {seconds:.1f} s: {result.errors} errors, {warnings} warnings")


@data_app.command("export")
@grouped
def export_data(
    *,
    suite: SuiteName = None,
    to: TargetFolder = None,
    image_format: Annotated[str, typer.Option("--format", help="png, which is lossless, or jpeg.")] = "png",
    quality: Annotated[int | None, typer.Option(help="JPEG quality, 1 to 100; 95 by default.")] = None,
    folders: DataFolders,
    tasks: TaskNames = None,
) -> None:
    """Write a suite's data to folders and lists that `--root` reads back: for VTAB suites, the usual layout."""
    from harness.data.export import ImageFormat, export
    from harness.plans.experiment import find_suite

    target = _given(to, "--to")
    how, roots = ImageFormat(name=image_format, quality=quality), folders.roots()
    with counting("images") as advance:
        count = export(
            find_suite(_given(suite, "--suite")), target, how, roots, tuple(split_tasks(tasks) or ()), advance
        )
    console.print(f"{count} images written below {target}")


@data_app.command("lists")
def write_lists(
    data: Annotated[Path, typer.Argument(help="A folder of class folders, a CSV, an image folder or a saved copy.")],
    to: Annotated[Path | None, typer.Option(file_okay=False, help="Folder to write to.")] = None,
) -> None:
    """Write the lists of your own data, and a commented suite file, for editing. `run --suite DATA` needs neither."""
    from harness.paths import writing
    from suites.own import write_lists as write

    target = _given(to, "--to")
    with writing(target, "--to"):
        suite, file = write(data, target)
    console.print(suite.about, highlight=False)
    console.print(f"wrote {file} and the lists in {target / suite.tasks[0].name}", highlight=False)


@cache_app.command("ls")
def list_cache(as_json: JsonFlag = False) -> None:
    """List the arrays of decoded images, largest first."""
    from harness.data import arrays

    cached = arrays.cached()
    if as_json:
        print_rows([{"array": array.path.name, "bytes": array.bytes} for array in cached], True)
        return
    if cached:
        print_rows([{"array": array.path.name, "size": human_size(array.bytes)} for array in cached], False)
    total = human_size(sum(array.bytes for array in cached))
    console.print(f"{len(cached)} arrays, {total}, in {arrays.folder()}")


@cache_app.command("clear")
def clear_cache() -> None:
    """Delete the arrays; runs rebuild them when they need them."""
    from harness.data import arrays

    console.print(f"{human_size(arrays.clear())} freed in {arrays.folder()}")
