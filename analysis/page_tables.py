"""Tables for the page: each cell with its text, its sort value, and the runs behind it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pandas as pd

from analysis.frame import ComparableSet, cell_name, parsed, suite_cells
from analysis.render import cell_text, marked_rows
from analysis.tables import MEANS, Cell, Column, Key, Table

RunRow = list[Any]
"""What the page knows of one run: seed, split seed (or None), accuracy (or None), run id, why it failed, and the
accuracies on its targets if it has any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageCell:
    """One cell as the page shows it."""

    text: str
    sort: str
    """Number that the column is sorted by; empty where there is none."""

    mark: str
    """`best`, `second`, or nothing."""

    href: str
    """Record of the first run behind the cell; empty where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """One column as the page shows it."""

    name: str
    group: str
    ascending: bool
    """Whether the lowest value comes first when the column is sorted."""

    tasks: list[str]
    """Keys into a row's runs: one for a task's column, all that it is made of for another."""

    target: str
    """Data set that the values were scored on, where that is not the task's own."""

    accuracy: bool
    """Whether a value is the plain mean of the accuracies of `tasks`, so that those of a seed say how it came about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row as the page shows it."""

    label: str
    method: str
    family: str
    cells: list[PageCell]
    runs: dict[str, list[RunRow]] = field(default_factory=dict)
    """Runs by task, with the number of shots where it has several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageTable:
    """A table of the page."""

    name: str
    title: str
    caption: str
    headings: list[Heading]
    rows: list[Row]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headers above the columns, with the number of columns below each."""
        spans: list[tuple[str, int]] = []
        for heading in self.headings:
            if spans and spans[-1][0] == heading.group:
                spans[-1] = (heading.group, spans[-1][1] + 1)
            else:
                spans.append((heading.group, 1))
        return spans


def _record_path(task: str, method: str, run_id: str) -> str:
    return "/".join([*(quote(part, safe="") for part in (task, f"{method}-{run_id}")), "record.json"])


def record_href(base: str, suite: str, task: str, method: str, run_id: str) -> str:
    """Address of a record below `base`, the folder of the runs as seen from the page."""
    return f"{base}/{quote(suite, safe='')}/{_record_path(task, method, run_id)}"


RunsBehind = dict[str, dict[Key, list[RunRow]]]
"""Runs by method's label and (task, shots)."""


def runs_of_rows(rows: pd.DataFrame) -> RunsBehind:
    """Runs behind each cell, ordered by seeds."""
    found: RunsBehind = {}
    columns = ("label", "task", "shots", "split_seed", "seed", "accuracy", "run_id", "reason", "targets")
    for label, task, shots, split, seed, accuracy, run_id, reason, targets in zip(
        *(rows[name] for name in columns), strict=True
    ):
        draw = int(split) if split >= 0 else None
        run = [int(seed), draw, None if pd.isna(accuracy) else round(float(accuracy), 4), run_id, reason or ""]
        run += [parsed(targets)] if targets != "{}" else []
        found.setdefault(str(label), {}).setdefault((str(task), int(shots)), []).append(run)
    for runs in (runs for cells in found.values() for runs in cells.values()):
        runs.sort(key=lambda run: (run[1] or 0, run[0]))
    return found


def _shown(cell: Cell, column: Column, label: str, marks: tuple[set[str], set[str]], href: str) -> PageCell:
    return PageCell(
        text=cell_text(cell, column),
        sort=repr(float(cell.value)) if cell.is_number else "",
        mark="best" if label in marks[0] else "second" if label in marks[1] else "",
        href=href,
    )


def _column_order(table: Table) -> list[int]:
    """Means over everything, then what else is no task, then the tasks: on a narrow screen the first are in sight."""
    most = max((len(column.over) for column in table.columns), default=0)

    def place(index: int) -> int:
        column = table.columns[index]
        if column.group.startswith(MEANS):
            return 0 if column.group == MEANS and len(column.over) in (0, most) else 1
        return 2 if column.over else 1

    return sorted(range(len(table.columns)), key=place)


def _heading(column: Column, cells: list[Key]) -> Heading:
    return Heading(
        name=column.name,
        group=column.group,
        ascending=column.best == "min" or column.kind != "percent",
        tasks=[cell_name(*key) for key in column.over or cells],
        target=column.target,
        accuracy=column.kind == "percent" and column.plain and bool(column.over),
    )


def make_board(chosen: ComparableSet, table: Table, families: dict[str, str], base: str) -> PageTable:
    """The table with the runs of `chosen` behind its cells. `families`: by method; `base`: see `record_href`."""
    runs = runs_of_rows(chosen.rows)
    cells = list(suite_cells(chosen.key["suite"], chosen.rows))
    order = _column_order(table)
    columns = [table.columns[index] for index in order]
    all_marks = marked_rows(table)
    marks = [all_marks[index] for index in order]
    folder = f"{base}/{quote(chosen.key['suite'], safe='')}"
    methods = dict(zip(chosen.rows["label"], chosen.rows["method"], strict=True))
    rows = []
    for name, values in table.rows.items():
        label, only = table.behind.get(name, (name, None))
        method = str(methods.get(label, ""))
        mine = {key: same for key, same in runs.get(label, {}).items() if only in (None, key)}
        hrefs = [_first_href(column.over or cells, mine, method, folder) for column in columns]
        parts = zip([values[index] for index in order], columns, marks, hrefs, strict=True)
        shown = [_shown(cell, column, name, mark, href) for cell, column, mark, href in parts]
        behind = {cell_name(*key): same for key, same in mine.items()}
        rows.append(Row(label=name, method=method, family=families.get(method, "other"), cells=shown, runs=behind))
    headings = [_heading(column, cells) for column in columns]
    return PageTable(name=table.name, title=table.title, caption=table.full_caption, headings=headings, rows=rows)


def _first_href(keys: Iterable[Key], runs: dict[Key, list[RunRow]], method: str, folder: str) -> str:
    """Address of the first run's record among those of `keys`; empty if there is none."""
    found = next(((key, runs[key][0]) for key in keys if runs.get(key)), None)
    return f"{folder}/{_record_path(found[0][0], method, found[1][3])}" if found else ""
