"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from analysis.render.text import flat_headings, row_texts
from analysis.tables.base import Table

UNLIMITED = 10_000
"""Width of a line in a file."""


def _grid(table: Table) -> list[list[str]]:
    """All texts with a header row and a header column, best values marked up; the longer side runs downwards."""
    rows = [["", *map(escape, flat_headings(table))]]
    for label, cells in row_texts(table, escape, "[bold]{}[/bold]", "[underline]{}[/underline]"):
        rows.append([escape(label), *cells])
    if len(table.columns) > len(table.rows):
        return [list(column) for column in zip(*rows, strict=True)]
    return rows


def _chunks(grid: list[list[str]], width: int) -> Iterator[list[int]]:
    """Split the value columns so that each part fits into `width` together with the header column."""
    border = 3  # padding on both sides and a divider
    widths = [max(len(Text.from_markup(row[i])) for row in grid) + border for i in range(len(grid[0]))]
    part: list[int] = []
    for index in range(1, len(widths)):
        if part and 1 + widths[0] + sum(widths[i] for i in part) + widths[index] > width:
            yield part
            part = []
        part.append(index)
    yield part


def to_terminal(table: Table, console: Console) -> None:
    """Print the table, in several parts where the terminal is too narrow, so that nothing is cut."""
    if not console.is_terminal and not console.quiet:
        console = Console(file=console.file, width=UNLIMITED, force_jupyter=console.is_jupyter)
    grid = _grid(table)
    console.print(f"\n[bold]{escape(table.title)}[/bold]", highlight=False, markup=True)
    for part in _chunks(grid, console.width):
        shown = RichTable(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1))
        for index in (0, *part):
            shown.add_column(grid[0][index], no_wrap=True, justify="right" if index else "left")
        for row in grid[1:]:
            shown.add_row(*(row[index] for index in (0, *part)))
        console.print(shown, markup=True)
    console.print(table.full_caption, style="dim", soft_wrap=False, highlight=False, markup=False)
