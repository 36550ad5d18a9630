"""What all renderers share: a cell's text, which cells are marked, header groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from analysis.tables.base import BLANK, MEANS, Cell, Column, Table

NO_VALUE = {"missing": "–", "failed": "failed", "unknown": "?"}
SUFFIXES = ("*", "≠", "‡", "§", "≈")
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


WRITERS: dict[str, Callable[[float], str]] = {
    "count": count_text,
    "milliseconds": lambda value: f"{1000 * value:.0f}" if value >= 0.1 else f"{1000 * value:.3g}",
    "seconds": lambda value: f"{value:.1f}",
    "hours": lambda value: f"{value:.2f}",
    "rate": lambda value: f"{value:.0f}" if value >= 100 else f"{value:.1f}",
    "bytes": lambda value: scaled_text(value, 1024, "KMGT") + "B",
    "flops": lambda value: scaled_text(value, 1000, "kMGT"),
    "joules": lambda value: scaled_text(value, 1000, "kMG") + "J",
    "rank": lambda value: f"{value:.2f}",
    "p": lambda value: "<0.001" if value < 0.001 else f"{value:.3f}",
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


def group_spans(columns: Iterable[Any]) -> list[tuple[str, int]]:
    """Neighbouring columns (or headings) of one group, as (group, number of columns)."""
    return [(group, len(list(same))) for group, same in groupby(columns, key=lambda column: column.group)]


def row_texts(table: Table, escape: Callable[[str], str], best: str, second: str) -> Iterator[tuple[str, list[str]]]:
    """Each row's label and its cells' texts, escaped, inside the format `best` or `second` (`**{}**`) where marked."""
    marks = marked_rows(table)
    for label in table.rows:
        texts = []
        for cell, column, mark in zip(table.cells(label), table.columns, marks, strict=True):
            pattern = best if label in mark.best else second if label in mark.second else "{}"
            texts.append(pattern.replace("{}", escape(cell_text(cell, column))))
        yield label, texts
