"""Tables for the page: each cell with its text, its sort value, and the runs behind it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pandas as pd

from analysis.frame import ComparableSet, suite_tasks
from analysis.render import cell_text
from analysis.tables import MEANS, Cell, Column, Table

RunRow = list[Any]
"""What the page knows of one run: seed, split seed (or None), accuracy (or None), run id, and why it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One cell as the page shows it."""

    text: str
    sort: str
    """Number that the column is sorted by; empty where there is none."""

    best: bool
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
    """Keys into a row's runs: the column itself for a task, all that it averages for a mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row as the page shows it."""

    label: str
    method: str
    family: str
    cells: list[Shown]
    runs: dict[str, list[RunRow]] = field(default_factory=dict)
    """Runs by name of the task's column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
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


def record_href(base: str, suite: str, task: str, method: str, run_id: str) -> str:
    """Address of a record below `base`, the folder of the runs as seen from the page."""
    return "/".join([base, *(quote(part, safe="") for part in (suite, task, f"{method}-{run_id}")), "record.json"])


def runs_of_rows(rows: pd.DataFrame) -> dict[tuple[str, str], list[RunRow]]:
    """Runs by row label and name of the column (`task`, or `task N-shot` where runs have shots), ordered by seeds."""
    optional = {name: rows.get(name) for name in ("shots", "split_seed")}
    found: dict[tuple[str, str], list[RunRow]] = {}
    shots, splits = (list(v) if v is not None else [None] * len(rows) for v in optional.values())
    columns = (rows[name] for name in ("label", "task", "seed", "accuracy", "run_id", "reason"))
    for shot, split, label, task, seed, accuracy, run_id, reason in zip(shots, splits, *columns, strict=True):
        name = task if pd.isna(shot) or shot < 0 else f"{task} {int(shot)}-shot"
        draw = None if pd.isna(split) or split < 0 else int(split)
        run = [int(seed), draw, None if pd.isna(accuracy) else round(float(accuracy), 4), run_id, reason or ""]
        found.setdefault((str(label), name), []).append(run)
    for runs in found.values():
        runs.sort(key=lambda run: (run[1] or 0, run[0]))
    return found


def _averaged(column: Column, groups: dict[str, list[str]]) -> list[str]:
    """Names of the task columns that a column is made of: its own, those of its group, or all."""
    everything = [name for names in groups.values() for name in names]
    if column.name in everything:
        return [column.name]
    return groups.get(column.name, everything) if column.group.startswith(MEANS) else everything


def _best(table: Table, index: int) -> float | None:
    """The best value of a column as printed; None where nothing is marked."""
    column = table.columns[index]
    values = [round(cells[index].value, 1) for cells in table.rows.values() if cells[index].is_number]
    if column.best not in ("max", "min") or len(values) < 2:
        return None
    return max(values) if column.best == "max" else min(values)


def _shown(cell: Cell, column: Column, best: float | None, href: str) -> Shown:
    return Shown(
        text=cell_text(cell, column),
        sort=repr(float(cell.value)) if cell.is_number else "",
        best=best is not None and cell.is_number and round(cell.value, 1) == best,
        href=href,
    )


def _column_order(table: Table, tasks: set[str]) -> list[int]:
    """Means over everything, then what else is no task, then the tasks: on a narrow screen the first are in sight."""

    def place(index: int) -> int:
        column = table.columns[index]
        over_all = column.group == MEANS and column.name in ("tasks", "groups")
        return 0 if over_all else 2 if column.name in tasks else 1

    return sorted(range(len(table.columns)), key=place)


def make_board(chosen: ComparableSet, table: Table, families: dict[str, str], base: str) -> Board:
    """The table with the runs of `chosen` behind its cells. `families`: by method; `base`: see `record_href`."""
    suite = chosen.key["suite"]
    runs = runs_of_rows(chosen.rows)
    groups: dict[str, list[str]] = {}
    for column in table.columns:
        task = column.name.rsplit(" ", 1)[0] if column.name.endswith("-shot") else column.name
        if task in suite_tasks(suite, chosen.rows):
            groups.setdefault(column.group, []).append(column.name)
    order = _column_order(table, {name for names in groups.values() for name in names})
    columns = [table.columns[index] for index in order]
    headings = [
        Heading(
            name=c.name, group=c.group, ascending=c.best == "min" or c.kind != "percent", tasks=_averaged(c, groups)
        )
        for c in columns
    ]
    best = [_best(table, index) for index in order]
    methods = dict(zip(chosen.rows["label"], chosen.rows["method"], strict=True))
    rows = []
    for label, cells in table.rows.items():
        method = str(methods.get(label, ""))
        mine = {name: runs.get((label, name), []) for names in groups.values() for name in names}
        hrefs = [_first_href(h.tasks, mine, method, suite, base) for h in headings]
        shown = [_shown(*parts) for parts in zip([cells[i] for i in order], columns, best, hrefs, strict=True)]
        rows.append(Row(label=label, method=method, family=families.get(method, "other"), cells=shown, runs=mine))
    return Board(name=table.name, title=table.title, caption=_caption(table), headings=headings, rows=rows)


def _caption(table: Table) -> str:
    return str(getattr(table, "full_caption", table.caption))


def _first_href(names: Iterable[str], runs: dict[str, list[RunRow]], method: str, suite: str, base: str) -> str:
    for name in names:
        if runs[name]:
            return record_href(base, suite, task_of(name), method, runs[name][0][3])
    return ""


def task_of(name: str) -> str:
    """The task of a column's name: `food101` of `food101 4-shot`."""
    task, _, shots = name.rpartition(" ")
    return task if shots.endswith("-shot") and shots[:-5].isdecimal() else name
