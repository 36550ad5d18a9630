"""Significance: average ranks, and every method of a set against a reference, paired over tasks."""

from __future__ import annotations

import dataclasses

import pandas as pd

from analysis.frame import REPLICATE_KEYS, ComparableSet, averaged, suite_cells
from analysis.statistics import (
    CONFIDENCE,
    average_ranks,
    friedman,
    holm,
    independent,
    nemenyi_difference,
    seeds_interval,
    tasks_interval,
    verdict,
    wilcoxon,
    win_tie_loss,
)
from analysis.tables.base import MISSING, Cell, Column, Table, number_cell
from analysis.tables.cells import Key, accuracy_cells, incomplete, set_caption, set_title

MARGIN = 1.0
"""Points within which two methods count as practically equal."""

DEFAULT_REFERENCE = "linear"

INTERVAL_GROUP = f"mean difference, {CONFIDENCE:.0%} interval".replace("%", " %")

COLUMNS = [
    Column(name="mean", best="max", digits=2),
    Column(name="rank", kind="rank", best="min"),
    Column(name="wins", group="against the reference", kind="integer", best=""),
    Column(name="ties", group="against the reference", kind="integer", best=""),
    Column(name="losses", group="against the reference", kind="integer", best=""),
    Column(name="points", group=INTERVAL_GROUP, kind="points", best="", digits=2),
    Column(name="low", group=INTERVAL_GROUP, kind="points", best="", digits=2),
    Column(name="high", group=INTERVAL_GROUP, kind="points", best="", digits=2),
    Column(name="p", group="Wilcoxon", kind="p", best=""),
    Column(name="Holm p", group="Wilcoxon", kind="p", best=""),
    Column(name="reads", kind="text", best=""),
]


SEED_COLUMNS = [Column(name=n, group="mean, interval over seeds", best="", digits=2) for n in ("from", "to")]
"""Columns behind `mean` where there are seeds; published tables have none."""


def find_reference(labels: pd.Series, wanted: str | None) -> str | None:
    """The one label of that label, title or name; None if there is none or several.

    `labels` maps labels (index) to the method's own name; titles are the labels' beginnings.
    """
    if wanted is None:
        return None
    text = wanted.casefold()
    for matches in (
        [label for label in labels.index if label.casefold() == text],
        [label for label in labels.index if label.casefold().removesuffix(" †") == text],
        [label for label, name in labels.items() if str(name).casefold() == text],
    ):
        if len(matches) == 1:
            return str(matches[0])
    return None


def _against(values: pd.DataFrame, reference: str, margin: float) -> dict[str, list[Cell]]:
    """Cells behind `rank` of every row of a complete matrix."""
    differences = {label: values.loc[label] - values.loc[reference] for label in values.index if label != reference}
    p = {label: wilcoxon(list(d)) for label, d in differences.items()}
    corrected = holm(p)
    cells = {reference: [*[Cell(text="") for _ in range(8)], Cell(text="reference")]}
    for label, difference in differences.items():
        counts, interval = win_tie_loss(list(difference)), tasks_interval(list(difference))
        numbers = [difference.mean(), interval.low, interval.high, p[label], corrected[label]]
        cells[label] = [Cell(value=float(count)) for count in (counts.wins, counts.ties, counts.losses)]
        cells[label] += [number_cell(float(number)) for number in numbers]
        cells[label] += [Cell(text=verdict(interval, corrected[label], margin))]
    return cells


def tests_caption(values: pd.DataFrame, reference: str, margin: float) -> str:
    """What was tested, over what, and the tests of all methods together."""
    methods, tasks = values.shape
    text = (
        f"Tests are paired over {tasks} tasks (means over seeds), against {reference}: Wilcoxon's signed-rank test, "
        f"two-sided, Holm's correction over {methods - 1} comparisons; interval of the mean difference: Student's t "
        f"over tasks; equal: that interval lies within ±{margin:g} points; better or worse: it excludes 0 and "
        "Holm p is at most 0.05. "
    )
    whole = friedman(values)
    if whole:
        text += f"Friedman chi-squared({methods - 1}) = {whole.statistic:.2f}, p = {whole.p:.2g}. "
        text += f"Nemenyi: average ranks differ at 0.05 if {nemenyi_difference(methods, tasks):.2f} apart. "
    return text


def significance_rows(values: pd.DataFrame, reference: str, margin: float = MARGIN) -> dict[str, list[Cell]]:
    """Rows of `COLUMNS` for a matrix methods x tasks; a method that lacks a task is not tested."""
    whole = values.dropna()
    ranks = average_ranks(whole)
    against = _against(whole, reference, margin)
    rows = {
        label: [Cell(value=float(whole.loc[label].mean())), Cell(value=float(ranks[label])), *against[label]]
        for label in sorted(whole.index, key=lambda label: (ranks[label], label))
    }
    return rows | {label: [MISSING] * len(COLUMNS) for label in values.index if label not in whole.index}


def significance_table(chosen: ComparableSet, reference: str | None = None, margin: float = MARGIN) -> Table | None:
    """The table, sorted by average rank; None where fewer than two methods have all tasks, or there is one task.

    A task's value is its mean over numbers of shots, where there are several: they are no tasks of their own.
    `reference`: label, title or name of a method of the set; else `linear`, else the method with the best mean.
    """
    keys = list(averaged(suite_cells(chosen.key["suite"], chosen.rows)))
    cells = accuracy_cells(chosen)
    values = _matrix(cells, keys)
    whole = values.dropna()
    if len(whole) < 2 or values.shape[1] < 2:
        return None
    everything = chosen.rows.drop_duplicates("label").set_index("label")["method"]
    names = everything.loc[whole.index]
    base = find_reference(names, reference) or find_reference(names, DEFAULT_REFERENCE) or whole.mean(axis=1).idxmax()
    rows = significance_rows(values, str(base), margin)
    intervals = _seed_cells(chosen, keys)

    def starred(cell: Cell, label: str) -> Cell:
        return dataclasses.replace(cell, note=incomplete(cells[label], keys)) if cell.is_number else cell

    return Table(
        name="significance",
        title=set_title(chosen, f"significance against {base}"),
        caption=f"{_unused(reference, everything, names)}{tests_caption(whole, str(base), margin)}{SEED_CAPTION} "
        f"{set_caption(chosen)}",
        columns=[COLUMNS[0], *SEED_COLUMNS, *COLUMNS[1:]],
        rows={
            label: [starred(mean, label), *intervals[label], starred(rank, label), *rest]
            for label, (mean, rank, *rest) in rows.items()
        },
    )


def _unused(reference: str | None, names: pd.Series, tested: pd.Series) -> str:
    """Why the reference that was asked for is not the one; empty if it is."""
    if reference is None or find_reference(tested, reference):
        return ""
    found = find_reference(names, reference)
    same = [str(label) for label, name in names.items() if str(name).casefold() == reference.casefold()]
    several = f"it stands for {', '.join(same)}" if same else "no method here is called so"
    return f"Not against {reference!r}: {f'{found} lacks a task' if found else several}. "


def _matrix(cells: dict[str, dict[Key, Cell]], keys: list[Key]) -> pd.DataFrame:
    """Labels x tasks, means over numbers of shots where there are several; NaN where one of these is missing."""
    columns = pd.MultiIndex.from_tuples(keys)
    given = {label: [row.get(key, MISSING).value for key in keys] for label, row in cells.items()}
    by_task = pd.DataFrame(given, index=columns).groupby(level=0, sort=False)
    return by_task.mean().where(by_task.count().eq(by_task.size(), axis=0)).T


SEED_CAPTION = (
    f"from, to: {CONFIDENCE:.0%} interval of the mean over seeds (over draws of the training list, where there are "
    "several), Student's t with the variances of the tasks' seeds added up; missing where a task has one seed, or not "
    "all of its seeds at each number of shots."
).replace("%", " %")


def _seed_cells(chosen: ComparableSet, keys: list[Key]) -> dict[str, list[Cell]]:
    """Both ends of the interval of each label's mean; missing where a task has not two seeds."""
    shots = {task: sorted(s for name, s in keys if name == task) for task, _ in keys}
    found = {}
    for label, runs in chosen.rows[chosen.rows["status"] == "complete"].groupby("label"):
        tasks = {task: same for task, same in runs.groupby("task") if task in shots}
        values = [_task_seeds(same, shots[str(task)]) for task, same in tasks.items()]
        interval = seeds_interval(values if len(values) == len(shots) else [])
        found[str(label)] = [number_cell(interval.low), number_cell(interval.high)]
    return {str(label): [MISSING, MISSING] for label in chosen.rows["label"].unique()} | found


def _task_seeds(runs: pd.DataFrame, shots: list[int]) -> list[float]:
    """Independent values of a task's mean over numbers of shots; none where a seed lacks one of them."""
    values = runs.pivot_table(index=REPLICATE_KEYS, columns="shots", values="accuracy").reindex(columns=shots)
    return [] if values.isna().any(axis=None) else independent(values.mean(axis=1))
