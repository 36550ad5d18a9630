"""What all renderers share: a cell's text, which cells are marked, header groups."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple

import numpy as np

from analysis.tables.base import BLANK, MEANS, Cell, Column, Table

NO_VALUE = {"missing": "–", "failed": "failed"}
SUFFIXES = ("*", "≠", "‡", "§")
"""Notes that follow a value directly, without brackets."""


class Marks(NamedTuple):
    """The rows of one column that are emphasised."""

    best: set[str]
    second: set[str]


def count_text(value: float) -> str:
    """A number of parameters for humans: 0, 14.1k, 0.11M."""
    if value < 1000:
        return f"{value:.0f}"
    return f"{value / 1e3:.1f}k" if value < 1e5 else f"{value / 1e6:.2f}M"


def scaled_text(value: float, step: int, units: str) -> str:
    """A number with the unit in which it has one to three digits before the point: `3.4M`, `512`."""
    power = 0
    while abs(value) >= step and power < len(units):
        value, power = value / step, power + 1
    return f"{value:.1f}{units[power - 1]}" if power else f"{value:.0f}"


def p_text(value: float) -> str:
    """A p-value: three digits, or that it is below them."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


WRITERS: dict[str, Callable[[float], str]] = {
    "count": count_text,
    "milliseconds": lambda value: f"{1000 * value:.0f}" if value >= 0.1 else f"{1000 * value:.3g}",
    "seconds": lambda value: f"{value:.1f}",
    "hours": lambda value: f"{value:.2f}",
    "rate": lambda value: f"{value:.0f}" if value >= 100 else f"{value:.1f}",
    "bytes": lambda value: scaled_text(value, 1024, "KMGT") + "B",
    "flops": lambda value: scaled_text(value, 1000, "kMGT"),
    "rank": lambda value: f"{value:.2f}",
    "p": p_text,
    "integer": lambda value: f"{value:.0f}",
}


def value_text(value: float, column: Column) -> str:
    """A value as its column writes it."""
    if column.kind in WRITERS:
        return WRITERS[column.kind](value)
    sign = "+" if column.kind == "difference" else ""
    return f"{value:{sign}.{column.digits}f}"


def cell_text(cell: Cell, column: Column) -> str:
    """A cell's text, without emphasis."""
    if not cell.is_number:
        return cell.text or NO_VALUE.get(cell.note, cell.note)
    text = value_text(cell.value, column)
    if not np.isnan(cell.spread):
        text += f" ±{value_text(cell.spread, column).lstrip('+')}"
    return text + (cell.note if cell.note in SUFFIXES else f" ({cell.note})" if cell.note else "")


def row_texts(table: Table, label: str) -> list[str]:
    """Texts of one row."""
    return [cell_text(cell, column) for cell, column in zip(table.cells(label), table.columns, strict=True)]


def _printed(value: float, column: Column) -> float:
    """The value that ranks a cell: as printed, so that what looks equal is marked alike."""
    return float(f"{value:.{ {'rank': 2, 'p': 3}.get(column.kind, column.digits) }f}")


def marked_rows(table: Table) -> list[Marks]:
    """Per column, the rows with the best and the second best printed value.

    Nothing is best among fewer than two values, and nothing second best among fewer than three.
    """
    marked = []
    for column in table.columns:
        sign = -1 if column.best == "min" else 1
        values = {
            label: sign * _printed(row[column.key].value, column)
            for label, row in table.rows.items()
            if column.best and row.get(column.key, BLANK).is_number
        }
        levels = sorted(set(values.values()), reverse=True)
        best = {label for label, value in values.items() if len(values) > 1 and value == levels[0]}
        enough = len(values) > 2 and len(levels) > 1
        marked.append(Marks(best, {label for label, value in values.items() if enough and value == levels[1]}))
    return marked


def heading(column: Column) -> str:
    """A column's name when its group is not shown above it."""
    if column.group.startswith(MEANS):
        return f"{MEANS} {column.name}" if column.group == MEANS else f"{column.group}, {column.name}"
    return column.name


def flat_headings(table: Table) -> list[str]:
    """Names of all columns when groups are not shown; with the group where names alone would repeat."""
    plain = [heading(column) for column in table.columns]
    return [
        f"{column.group} {name}" if plain.count(name) > 1 and column.group else name
        for name, column in zip(plain, table.columns, strict=True)
    ]


def group_spans(table: Table) -> list[tuple[str, int]]:
    """Neighbouring columns of one group, as (group, number of columns)."""
    return [(group, len(list(columns))) for group, columns in groupby(table.columns, key=lambda column: column.group)]


def emphasised(text: str, label: str, marks: Marks, best: str, second: str) -> str:
    """`text` inside the format `best` or `second` (`**{}**`) where the row is marked."""
    pattern = best if label in marks.best else second if label in marks.second else "{}"
    return pattern.replace("{}", text)
