"""Renderers of `analysis.tables.Table`: terminal, Markdown, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from analysis.tables import MEANS, Cell, Column, Table

UNLIMITED = 10_000
"""Width of a line in a file."""

MARKS = {"missing": "–", "failed": "failed"}


def count_text(value: float) -> str:
    """A number of parameters for humans: 0, 14.1k, 0.11M."""
    if value < 1000:
        return f"{value:.0f}"
    return f"{value / 1e3:.1f}k" if value < 1e5 else f"{value / 1e6:.2f}M"


def cell_text(cell: Cell, column: Column) -> str:
    """A cell's text, without emphasis."""
    if not cell.is_number:
        return MARKS.get(cell.note, cell.note)
    if column.kind == "count":
        return count_text(cell.value)
    text = f"{cell.value:.1f}"
    if not np.isnan(cell.spread):
        text += f" ±{cell.spread:.1f}"
    return text + (cell.note if cell.note == "*" else f" ({cell.note})" if cell.note else "")


def best_rows(table: Table) -> list[set[str]]:
    """Per column, the rows that hold the best value as printed; empty for a single row."""
    best = []
    for index, column in enumerate(table.columns):
        values = {label: round(cells[index].value, 1) for label, cells in table.rows.items() if cells[index].is_number}
        marked = column.best == "max" and len(values) > 1
        best.append({label for label, value in values.items() if value == max(values.values())} if marked else set())
    return best


def heading(column: Column) -> str:
    """A column's name when its group is not shown above it."""
    return f"mean of {column.name}" if column.group == MEANS else column.name


def _grid(table: Table) -> list[list[str]]:
    """All texts with a header row and a header column, best values marked up; the longer side runs downwards."""
    best = best_rows(table)
    rows = [["", *(heading(column) for column in table.columns)]]
    for label, cells in table.rows.items():
        texts = [cell_text(cell, column) for cell, column in zip(cells, table.columns, strict=True)]
        rows.append(
            [label, *(f"[bold]{t}[/bold]" if label in marked else t for t, marked in zip(texts, best, strict=True))]
        )
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
        console = Console(file=console.file, width=UNLIMITED)
    grid = _grid(table)
    console.print(f"\n[bold]{table.title}[/bold]", highlight=False)
    for part in _chunks(grid, console.width):
        shown = RichTable(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1))
        for index in (0, *part):
            shown.add_column(grid[0][index], no_wrap=True, justify="right" if index else "left")
        for row in grid[1:]:
            shown.add_row(*(row[index] for index in (0, *part)))
        console.print(shown)
    console.print(table.caption, style="dim", soft_wrap=False, highlight=False)


def to_markdown(table: Table) -> str:
    """A GitHub table with the best value of each column in bold, and the caption below."""
    names = " | ".join(heading(column) for column in table.columns)
    lines = [f"### {table.title}", "", f"| method | {names} |", "|---|" + "---:|" * len(table.columns)]
    best = best_rows(table)
    for label, cells in table.rows.items():
        texts = [cell_text(cell, column) for cell, column in zip(cells, table.columns, strict=True)]
        texts = [f"**{t}**" if label in marked else t for t, marked in zip(texts, best, strict=True)]
        lines.append(f"| {label} | {' | '.join(texts)} |")
    return "\n".join([*lines, "", table.caption, ""])


def to_csv(table: Table) -> str:
    """Full-precision values and spreads, a column each."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = [f"{c.group}/{c.name}" if c.group else c.name for c in table.columns]
    writer.writerow(["method", *(name + suffix for name in header for suffix in ("", " sd", " note"))])
    for label, cells in table.rows.items():
        values = [
            [cell.value if cell.is_number else "", "" if np.isnan(cell.spread) else cell.spread, cell.note]
            for cell in cells
        ]
        writer.writerow([label, *(value for triple in values for value in triple)])
    return out.getvalue()
