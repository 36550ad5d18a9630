"""What the commands share: consoles, printed rows, a progress bar, and reading of `a,b,c`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from harness.errors import HarnessError
from methods.base import PluginWarning

console = Console(soft_wrap=True, markup=False)  # paths and reasons may hold brackets
errors = Console(stderr=True, soft_wrap=True, markup=False)

WIDE = 10_000
"""Width of a table that goes to a file or a pipe."""

Advance = Callable[[int, int], None]
"""Called with the number done and the total."""

T = TypeVar("T")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def show_plugin_warnings() -> None:
    """From now on print what is wrong with installed packages' methods as a line, without a place in our source."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **further: Any) -> None:
        if issubclass(category, PluginWarning):
            errors.print(f"warning: {message}", highlight=False)
        else:
            usual(message, category, *place, **further)

    warnings.showwarning = show


def tell(line: str) -> None:
    """Print a line for the user: a warning or a note on the error stream, anything else as output."""
    to = errors if line.startswith(("warning: ", "note: ")) else console
    to.print(line, highlight=False, markup=False)


def split_csv(text: str | None) -> list[str] | None:
    """The parts of `a,b,c`; None if there is no text."""
    return [word.strip() for word in text.split(",") if word.strip()] if text is not None else None


def split_tasks(text: str | None, flag: str = "--tasks") -> list[str] | None:
    """The parts of `a,b,c`. `HarnessError` for none: that would stand for all of them."""
    tasks = split_csv(text)
    if tasks == []:
        raise HarnessError(f"{flag} {text}: names nothing; leave it out for all of them")
    return tasks


def split_shots(text: str | None) -> list[Any] | None:
    """The numbers of `1,4`; what is no number stays a text, for the error message."""
    return [int(word) if word.isdecimal() else word for word in split_tasks(text, "--shots") or []] or None


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Rows with the same keys as JSON, or as a table with one line each; a narrow terminal cuts the last column."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    texts = cell_texts(rows)
    table = Table(box=None, header_style="bold", padding=(0, 1))
    *first, last = rows[0] if rows else [""]
    for key in first:
        width = max(len(key), *(len(row[key]) for row in texts))
        table.add_column(key.replace("_", " "), min_width=width, no_wrap=True)
    table.add_column(last, no_wrap=True, overflow="ellipsis")
    for row in texts:
        table.add_row(*row.values())
    shown = Console()
    (shown if shown.is_terminal else Console(width=WIDE)).print(table, highlight=False, markup=False)


def cell_texts(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The rows with texts as they are shown: yes and no, nothing for None."""
    return [{key: _cell(value) for key, value in row.items()} for row in rows]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def human_size(count: int | None) -> str:
    """`1.5 GB`; `?` for None."""
    if count is None:
        return "?"
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"


class _Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


@contextmanager
def counting(what: str) -> Iterator[Advance]:
    """A progress bar on the error stream; nothing where that is no terminal. Gives `advance(done, total)`."""
    bars = Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )
    task = bars.add_task(what, total=None)
    with bars:
        yield lambda done, total: bars.update(task, completed=done, total=total)


def tracked(items: Iterable[T], total: int, advance: Advance | None, every: int = 100) -> Iterator[T]:
    """The items; `advance` is called after each `every` of them, and after the last."""
    for done, item in enumerate(items, start=1):
        yield item
        if advance and (done % every == 0 or done == total):
            advance(done, total)
