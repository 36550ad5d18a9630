"""A table as data: columns, rows of cells, a caption. `analysis.render` turns it into text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.metric_text import digits
from harness.schema.metrics import Metric

Key = tuple[str, int]
"""(task, shots); shots is -1 where a suite has one training list."""

ColumnKey = tuple[str, str]
"""(group, name) of a column, which no other column of its table has."""

MEANS = "mean of"
"""Header above the columns that are means of others."""

MARKS = {
    "missing": "–: missing, no run, or a part of a mean is missing",
    "failed": "failed: no run of the cell succeeded",
    "unknown": "?: not known, because the metric is not defined there or the records are older than it",
    "*": "*: with a part that rests on fewer seeds or runs than others, or, of a cost, on none",
    "≠": "≠: no seed in common, so the means are over each side's own",
    "‡": "‡: runs on several kinds of device, not comparable",
    "§": "§: blocks before the first trained one give the same output in every step and were computed once",
    "≈": "≈: undecided, the difference may be chance",
    "†": "†: the test split was looked at more than once or chose the result",
}
"""What a cell's note or a row's mark means, for captions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One value with its spread, or the reason why there is none, or a text."""

    value: float = float("nan")
    spread: float = float("nan")
    """Standard deviation over seeds (ddof=1); NaN for one seed."""

    note: str = ""
    """A key of `MARKS`, or how many of the seeds are there, as `1/3`."""

    text: str = ""
    """What is shown where the cell is no number."""

    @property
    def is_number(self) -> bool:
        """Whether there is a value."""
        return not np.isnan(self.value)


MISSING = Cell(note="missing")
UNKNOWN = Cell(note="unknown")
BLANK = Cell()


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column."""

    name: str
    group: str = ""
    """Header above the column."""

    kind: str = "value"
    """How values are written: `value`, `difference` (signed), `count`, `milliseconds`, `seconds`, `hours`, `rate`,
    `bytes`, `flops`, `joules`, `rank`, `p`, `integer` or `text`."""

    best: str = ""
    """Which value is marked: `max`, `min`, or none."""

    digits: int = 1
    """Digits after the decimal point of `value` and `difference`."""

    over: tuple[Key, ...] = ()
    """(task, shots) of the runs that its values come from; all that a row has if empty."""

    target: str = ""
    """Data set that its values were scored on, where that is not the task's own."""

    plain: bool = True
    """Whether a value over several of them is their plain mean."""

    @property
    def key(self) -> ColumnKey:
        """What a row holds the column's cell under."""
        return self.group, self.name


Row = dict[ColumnKey, Cell]
"""Cells by column; a column that is not there is blank."""


def value_column(metric: Metric, name: str, more_digits: int = 0, **others: Any) -> Column:
    """A column of a metric's values, the best of which is marked."""
    best = "max" if metric.higher_is_better else "min"
    return Column(name=name, best=best, digits=digits(metric) + more_digits, **others)


def difference_column(metric: Metric, name: str, more_digits: int = 0, **others: Any) -> Column:
    """A column of differences of a metric's values."""
    return Column(name=name, kind="difference", digits=digits(metric) + more_digits, **others)


def named_row(columns: Iterable[Column], **cells: Cell) -> Row:
    """A row from cells by the columns' names, spaces written as `_`."""
    by_name = {column.name.replace(" ", "_"): column.key for column in columns}
    return {by_name[name]: cell for name, cell in cells.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table ready to be rendered."""

    name: str
    """Stem of file names."""

    title: str
    caption: str
    columns: list[Column]
    rows: dict[str, Row] = field(default_factory=dict)
    """Cells by row label and column."""

    corner: str = "method"
    """Header of the labels."""

    behind: dict[str, tuple[str, Key]] = field(default_factory=dict)
    """Row label to the method's label and the one (task, shots) that the row is about, where it is not the method's."""

    def cells(self, label: str) -> list[Cell]:
        """A row's cells in the order of the columns."""
        return [self.rows[label].get(column.key, BLANK) for column in self.columns]

    @property
    def label(self) -> str:
        """Name for cross references, out of title and name: small letters, digits and hyphens."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.title} {self.name}".lower()).strip("-")

    @property
    def full_caption(self) -> str:
        """The caption, and what the marks in this table mean."""
        return f"{self.caption} {self.legend}".strip()

    @property
    def legend(self) -> str:
        """What the marks that occur in this table mean."""
        notes = {cell.note for row in self.rows.values() for cell in row.values()}
        notes |= {"†" for label in self.rows if label.endswith("†")}
        known = [text for mark, text in MARKS.items() if mark in notes]
        if any("/" in note for note in notes):
            known.append("(k/n): k of n seeds are there")
        sentences = ["; ".join(known)] if known else []
        ranked = [column.key for column in self.columns if column.best]
        values = max((sum(row.get(key, BLANK).is_number for row in self.rows.values()) for key in ranked), default=0)
        if values > 1:
            second = ", second best underlined" if values > 2 else ""
            sentences.insert(0, f"Best of a column in bold{second}, as printed")
        return "".join(f"{sentence}. " for sentence in sentences).strip()


def mean_cell(cells: Iterable[Cell]) -> Cell:
    """Mean of cells; missing if one of them is, for a mean over fewer tasks would not be comparable."""
    cells = list(cells)
    if not cells or not all(cell.is_number for cell in cells):
        return MISSING
    return Cell(
        value=float(np.mean([cell.value for cell in cells])), note="*" if any(cell.note for cell in cells) else ""
    )


def number_cell(value: float, note: str = "") -> Cell:
    """A value without spread; missing if it is NaN."""
    return MISSING if np.isnan(value) else Cell(value=float(value), note=note)
