"""Tables for the page: each cell with its text, its sort value, and the runs behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import quote

import pandas as pd

from analysis.columns import target_values
from analysis.frame import ComparableSet, cell_name, suite_cells
from analysis.render.text import Marks, cell_text, group_spans, marked_rows
from analysis.tables.base import BLANK, MEANS, Cell, Column, Key, Table
from harness.schema.metrics import Metric


class RunBehind(NamedTuple):
    """What the page knows of one run, in the order that its script reads."""

    seed: int
    split_seed: int | None
    value: float | None
    run_id: str
    reason: str
    """Why it failed."""

    targets: dict[str, float]
    """Values by target."""

    place: int = 0
    """Where its record is: the number of one of the table's `bases`."""


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

    plain_mean: bool
    """Whether a value is the plain mean of the values of `tasks`, so that those of a seed say how it came about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRow:
    """One row as the page shows it."""

    label: str
    method: str
    family: str
    cells: list[PageCell]
    runs: dict[str, list[RunBehind]] = field(default_factory=dict)
    """Runs by task, with the number of shots where it has several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageTable:
    """A table of the page."""

    table: Table
    """The same as data, for the downloads."""

    metric: Metric
    headings: list[Heading]
    rows: list[PageRow]
    bases: list[str]
    """Folders of the runs as seen from the page; empty where there is none."""

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headers above the columns, with the number of columns below each."""
        return group_spans(self.headings)


Bases = str | Mapping[str, str]
"""Folder of the runs as seen from the page; of several places, by their name in the column `results`, and empty for a
pack, into which no link leads."""


def base_of(bases: Bases, place: str) -> str:
    """The folder of a place's runs as seen from the page."""
    return bases if isinstance(bases, str) else bases[place]


def places_of(rows: pd.DataFrame) -> list[str]:
    """The column `results`; empty texts for records in memory."""
    return list(rows["results"]) if "results" in rows else [""] * len(rows)


def record_href(base: str, suite: str, task: str, method: str, run_id: str) -> str:
    """Address of a record below `base`, the folder of the runs as seen from the page; empty if that is."""
    if not base:
        return ""
    return "/".join([base, *(quote(part, safe="") for part in (suite, task, f"{method}-{run_id}")), "record.json"])


RunsByCell = dict[Key, list[RunBehind]]


def runs_by_label(peers: ComparableSet) -> dict[str, RunsByCell]:
    """Runs behind each cell by method's label, ordered by seeds."""
    rows, metric = peers.rows, peers.metric
    numbers = pd.factorize(pd.Series(places_of(rows)))[0]
    cells: dict[str, RunsByCell] = {}
    names = ("label", "task", "shots", "split_seed", "seed", metric.name, "run_id", "reason", "targets")
    columns = (*(rows[name] for name in names), numbers)
    for label, task, shots, split, seed, value, run_id, reason, targets, place in zip(*columns, strict=True):
        run = RunBehind(
            seed=int(seed),
            split_seed=int(split) if split >= 0 else None,
            value=None if pd.isna(value) else round(float(value), 4),
            run_id=run_id,
            reason=reason or "",
            targets=target_values(targets, metric),
            place=int(place),
        )
        cells.setdefault(str(label), {}).setdefault((str(task), int(shots)), []).append(run)
    for runs in (runs for by_cell in cells.values() for runs in by_cell.values()):
        runs.sort(key=lambda run: (run.split_seed or 0, run.seed))
    return cells


def _page_cell(cell: Cell, column: Column, label: str, marks: Marks, href: str) -> PageCell:
    return PageCell(
        text=cell_text(cell, column),
        sort=repr(float(cell.value)) if cell.is_number else "",
        mark="best" if label in marks.best else "second" if label in marks.second else "",
        href=href,
    )


def _in_page_order(table: Table) -> list[Column]:
    """Means over everything, then what else is no task, then the tasks: on a narrow screen the first are in sight."""
    most = max((len(column.over) for column in table.columns), default=0)

    def place(column: Column) -> int:
        if column.group.startswith(MEANS):
            return 0 if column.group == MEANS and len(column.over) in (0, most) else 1
        return 2 if column.over else 1

    return sorted(table.columns, key=place)


def _heading(column: Column, cells: list[Key]) -> Heading:
    return Heading(
        name=column.name,
        group=column.group,
        ascending=column.best == "min" or column.kind != "value",
        tasks=[cell_name(*key) for key in column.over or cells],
        target=column.target,
        plain_mean=column.kind == "value" and column.plain and bool(column.over),
    )


def make_page_table(peers: ComparableSet, table: Table, base: Bases) -> PageTable:
    """The table with the runs of `peers` behind its cells."""
    runs = runs_by_label(peers)
    bases = [base_of(base, place) for place in dict.fromkeys(places_of(peers.rows))]
    cells = list(suite_cells(peers.key["suite"], peers.rows))
    marks = dict(zip((column.key for column in table.columns), marked_rows(table), strict=True))
    columns = _in_page_order(table)
    about = peers.rows.groupby("label")[["method", "family"]].max()
    methods = {str(label): (str(method), str(family)) for label, method, family in about.itertuples()}
    rows = []
    for name, row in table.rows.items():
        label, only = table.behind.get(name, (name, None))
        method, family = methods.get(label, ("", ""))
        mine = {key: same for key, same in runs.get(label, {}).items() if only in (None, key)}
        hrefs = {c.key: _first_href(c.over or cells, mine, bases, peers.key["suite"], method) for c in columns}
        shown = [_page_cell(row.get(c.key, BLANK), c, name, marks[c.key], hrefs[c.key]) for c in columns]
        behind = {cell_name(*key): same for key, same in mine.items()}
        rows.append(PageRow(label=name, method=method, family=family or "other", cells=shown, runs=behind))
    headings = [_heading(column, cells) for column in columns]
    return PageTable(table=table, metric=peers.metric, headings=headings, rows=rows, bases=bases)


def _first_href(keys: Iterable[Key], runs: RunsByCell, bases: list[str], suite: str, method: str) -> str:
    """Address of the first run's record among those of `keys`; empty if there is none."""
    for task, shots in keys:
        if same := runs.get((task, shots)):
            return record_href(bases[same[0].place], suite, task, method, same[0].run_id)
    return ""
