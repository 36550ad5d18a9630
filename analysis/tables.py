"""Tables as data: columns, rows of cells, a caption. `analysis.render` turns them into text."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.frame import ComparableSet, suite_tasks
from harness.protocol import PROTOCOLS

MEANS = "mean of"
"""Header above the columns that are means of others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One value with its spread, or the reason why there is none."""

    value: float = float("nan")
    spread: float = float("nan")
    """Standard deviation over seeds (ddof=1); NaN for one seed."""

    note: str = ""
    """`missing`, `failed`, or how many of the seeds are there."""

    @property
    def is_number(self) -> bool:
        """Whether there is a value."""
        return not np.isnan(self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column."""

    name: str
    group: str = ""
    """Header above the column."""

    kind: str = "percent"
    """`percent`, `count` or `seconds`: how values are written."""

    best: str = "max"
    """Which value is marked: `max`, or nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table ready to be rendered."""

    name: str
    """Stem of file names."""

    title: str
    caption: str
    columns: list[Column]
    rows: dict[str, list[Cell]] = field(default_factory=dict)
    """Cells by row label, in the order of `columns`."""


def _task_cell(runs: pd.DataFrame, seeds: int) -> Cell:
    """Mean over the seeds of one method on one task."""
    complete = runs[runs["status"] == "complete"]["accuracy"]
    if complete.empty:
        return Cell(note="failed" if len(runs) else "missing")
    spread = float(complete.std(ddof=1)) if len(complete) > 1 else float("nan")
    return Cell(
        value=float(complete.mean()), spread=spread, note="" if len(complete) == seeds else f"{len(complete)}/{seeds}"
    )


def _mean_cell(cells: list[Cell]) -> Cell:
    """Mean of cells; missing if one of them is, for a mean over fewer tasks would not be comparable."""
    if not all(cell.is_number for cell in cells):
        return Cell(note="missing")
    return Cell(
        value=float(np.mean([cell.value for cell in cells])), note="*" if any(cell.note for cell in cells) else ""
    )


def _plain_mean(runs: pd.DataFrame, column: str) -> Cell:
    values = runs[runs["status"] == "complete"][column]
    return Cell(value=float(values.mean())) if len(values) else Cell(note="missing")


def _caption(chosen: ComparableSet, seeds: int) -> str:
    key, rows = chosen.key, chosen.rows
    protocol = PROTOCOLS[key["protocol"]].caption if key["protocol"] in PROTOCOLS else key["protocol"]
    spread = (
        f"mean ± standard deviation (ddof=1) over {seeds} seeds" if seeds > 1 else "one seed, so no spread is known"
    )
    devices = " and ".join(sorted(f"{d} ({p})" for d, p in set(zip(rows["device"], rows["precision"], strict=True))))
    caption = (
        f"Top-1 accuracy in per cent; {spread}. Protocol {key['protocol']}: {protocol}. "
        f"Backbone {key['backbone']} ({key['weights']} weights) at {key['image_size']} px, preprocessing "
        f"{key['preprocessing']}. Trained parameters without head. Device: {devices}."
    )
    if chosen.left_out:
        caption += f" Left out, for their data differ from the others': {', '.join(chosen.left_out)}."
    return caption


def label_order(rows: pd.DataFrame) -> list[str]:
    """Row labels by number of trained parameters, then by name."""
    first = rows.groupby("label")["parameters"].max().fillna(np.inf)
    return sorted(first.index, key=lambda label: (first[label], label))


def task_table(chosen: ComparableSet) -> Table:
    """VTAB-style table: one row per method, a column per task, group means, both averages, parameters, seconds."""
    rows, key = chosen.rows, chosen.key
    tasks = suite_tasks(key["suite"], rows)
    groups = list(dict.fromkeys(tasks.values()))
    seeds = int(rows["seed"].nunique())
    columns = [Column(name=task, group=group) for task, group in tasks.items()]
    columns += [Column(name=group, group=MEANS) for group in groups]
    columns += [Column(name="tasks", group=MEANS), Column(name="groups", group=MEANS)]
    columns += [Column(name="params", kind="count", best=""), Column(name="seconds", kind="seconds", best="")]
    table = Table(
        name="tasks",
        title=f"{key['suite']}, protocol {key['protocol']}, {key['backbone']} ({key['weights']})",
        caption=_caption(chosen, seeds),
        columns=columns,
    )
    for label in label_order(rows):
        runs = rows[rows["label"] == label]
        cells = {task: _task_cell(runs[runs["task"] == task], seeds) for task in tasks}
        means = [_mean_cell([cells[t] for t, g in tasks.items() if g == group]) for group in groups]
        averages = [_mean_cell(list(cells.values())), _mean_cell(means)]
        table.rows[label] = [
            *cells.values(),
            *means,
            *averages,
            _plain_mean(runs, "parameters"),
            _plain_mean(runs, "seconds"),
        ]
    return table


def weights_table(pretrained: ComparableSet, random: ComparableSet) -> Table:
    """What the pretrained weights are worth: accuracy with them minus accuracy of the same model at random."""
    tasks = suite_tasks(pretrained.key["suite"], pretrained.rows)
    table = Table(
        name="pretrained_minus_random",
        title=f"{pretrained.key['suite']}: pretrained minus random weights",
        caption="Difference of top-1 accuracies in points, same method, task, recipe and seeds; "
        "positive means that the pretrained weights are better.",
        columns=[Column(name=task, group=group, best="") for task, group in tasks.items()],
    )
    columns = task_table(pretrained).rows, task_table(random).rows
    for label in columns[0]:
        if label in columns[1]:
            pairs = list(zip(columns[0][label], columns[1][label], strict=True))[: len(tasks)]
            table.rows[label] = [
                Cell(value=a.value - b.value) if a.is_number and b.is_number else Cell(note="missing") for a, b in pairs
            ]
    return table
