"""Significance: average ranks, and every method of a set against a reference, paired over tasks."""

from __future__ import annotations

import dataclasses

import pandas as pd

from analysis.frame import REPLICATE_KEYS, ComparableSet, averaged, suite_cells
from analysis.metric_text import margin, units
from analysis.statistics import (
    ALPHA,
    CONFIDENCE,
    NO_INTERVAL,
    Interval,
    average_ranks,
    friedman,
    holm,
    independent,
    nemenyi_difference,
    seeds_interval,
    smallest_wilcoxon,
    tasks_interval,
    verdict,
    wilcoxon,
    win_tie_loss,
)
from analysis.tables.base import (
    MISSING,
    Cell,
    Column,
    Key,
    Row,
    Table,
    difference_column,
    named_row,
    number_cell,
    value_column,
)
from analysis.tables.cells import incomplete, metric_cells, set_caption, set_title
from harness.schema.metrics import Metric

DEFAULT_REFERENCE = "linear"

INTERVAL_GROUP = f"mean difference, {CONFIDENCE:.0%} interval".replace("%", " %")


def _columns(metric: Metric) -> list[Column]:
    against, tests = "against the reference", "Wilcoxon"
    return [
        value_column(metric, "mean", 1),
        Column(name="rank", kind="rank", best="min"),
        *(Column(name=name, group=against, kind="integer") for name in ("wins", "ties", "losses")),
        *(difference_column(metric, name, 1, group=INTERVAL_GROUP) for name in (units(metric), "low", "high")),
        *(Column(name=name, group=tests, kind="p") for name in ("p", "Holm p")),
        Column(name="reads", kind="text"),
    ]


def _seed_columns(metric: Metric) -> list[Column]:
    """Columns after `mean` where there are seeds; published tables have none."""
    columns = [value_column(metric, name, 1, group="mean, interval over seeds") for name in ("from", "to")]
    return [dataclasses.replace(column, best="") for column in columns]


def find_reference(labels: pd.Series, wanted: str | None) -> str | None:
    """The one label of that label or name; None if there is none or several. `labels`: label (index) to name."""
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


def _against(values: pd.DataFrame, reference: str, metric: Metric) -> dict[str, Row]:
    """Cells of every row of a complete matrix that compare it with the reference."""
    columns, better = _columns(metric), metric.higher_is_better
    differences = {label: values.loc[label] - values.loc[reference] for label in values.index if label != reference}
    p = {label: wilcoxon(list(d)) for label, d in differences.items()}
    corrected = holm(p)
    rows = {reference: named_row(columns, reads=Cell(text="reference"))}
    for label, difference in differences.items():
        counts, interval = win_tie_loss(list(difference), better), tasks_interval(list(difference))
        reading = verdict(interval, corrected[label], margin(metric), higher_is_better=better)
        rows[label] = named_row(
            columns,
            wins=Cell(value=float(counts.wins)),
            ties=Cell(value=float(counts.ties)),
            losses=Cell(value=float(counts.losses)),
            **{units(metric): number_cell(float(difference.mean()))},
            low=number_cell(interval.low),
            high=number_cell(interval.high),
            p=number_cell(p[label]),
            Holm_p=number_cell(corrected[label]),
            reads=Cell(text=reading),
        )
    return rows


def cannot_decide(comparisons: int, tasks: int) -> str:
    """A sentence where no numbers could make Wilcoxon's test significant after Holm's correction; else empty."""
    smallest = smallest_wilcoxon(tasks)
    if comparisons * smallest <= ALPHA:
        return ""
    times = f" (times {comparisons}, corrected)" if comparisons > 1 else ""
    return f"Over {tasks} tasks its p is never below {smallest:.3g}{times}: whatever the numbers, it cannot decide. "


def tests_caption(values: pd.DataFrame, reference: str, equal: float) -> str:
    """What was tested, over what, and the tests of all methods together."""
    methods, tasks = values.shape
    text = (
        f"Tests are paired over {tasks} tasks (means over seeds), against {reference}: Wilcoxon's signed-rank test, "
        f"two-sided, Holm's correction over {methods - 1} comparisons; interval of the mean difference: Student's t "
        f"over tasks; {f'equal: that interval lies within ±{equal:g} points; ' if equal else ''}better or worse: it "
        "excludes 0 and Holm p is at most 0.05. "
    )
    text += cannot_decide(methods - 1, tasks)
    whole = friedman(values)
    if whole:
        text += f"Friedman chi-squared({methods - 1}) = {whole[0]:.2f}, p = {whole[1]:.2g}. "
        text += f"Nemenyi: average ranks differ at 0.05 if {nemenyi_difference(methods, tasks):.2f} apart. "
    return text


def significance_of(
    values: pd.DataFrame, reference: str, metric: Metric, *, name: str, title: str, caption: str
) -> Table:
    """The table of a matrix methods x tasks, by average rank; a method that lacks a task is not tested. `caption`: what
    stands before the description of the tests."""
    whole, columns = values.dropna(), _columns(metric)
    ranks = average_ranks(whole, metric.higher_is_better)
    against = _against(whole, reference, metric)
    rows = {
        label: named_row(columns, mean=Cell(value=float(whole.loc[label].mean())), rank=Cell(value=float(ranks[label])))
        | against[label]
        for label in sorted(whole.index, key=lambda label: (ranks[label], label))
    }
    rows |= {label: {c.key: MISSING for c in columns} for label in values.index if label not in whole.index}
    caption += tests_caption(whole, reference, margin(metric))
    return Table(name=name, title=title, caption=caption, columns=columns, rows=rows)


def significance_table(peers: ComparableSet, reference: str | None = None) -> Table | None:
    """The table, sorted by average rank; None where fewer than two methods have all tasks, or there is one task.

    A task's value is its mean over numbers of shots, where there are several: they are no tasks of their own.
    `reference`: label, title or name of a method of the set; else `linear`, else the method with the best mean.
    """
    keys = list(averaged(suite_cells(peers.key["suite"], peers.rows)))
    cells = metric_cells(peers)
    values = matrix(cells, keys)
    whole = values.dropna()
    if len(whole) < 2 or values.shape[1] < 2:
        return None
    base, unused = choose_reference(peers, whole, reference)
    table = significance_of(
        values,
        base,
        peers.metric,
        name="significance",
        title=set_title(peers, f"significance against {base}"),
        caption=unused,
    )
    mean, rank, *_ = table.columns
    seed_columns, intervals = _seed_columns(peers.metric), _seed_intervals(peers, keys)
    for label, row in table.rows.items():
        note = incomplete(cells[label], keys)
        row |= {key: dataclasses.replace(row[key], note=note) for key in (mean.key, rank.key) if row[key].is_number}
        ends = zip(seed_columns, (intervals[label].low, intervals[label].high), strict=True)
        row |= {column.key: number_cell(end) for column, end in ends}
    return dataclasses.replace(
        table,
        caption=f"{table.caption}{BY_IMAGES if cannot_decide(len(whole) - 1, len(whole.T)) else ''}{SEED_CAPTION} "
        f"{set_caption(peers)}",
        columns=[mean, *seed_columns, *table.columns[1:]],
    )


def choose_reference(peers: ComparableSet, whole: pd.DataFrame, wanted: str | None) -> tuple[str, str]:
    """The row of `whole` (labels x tasks, `matrix`) that the others are tested against, and why it is not the one that
    was asked for; empty if it is."""
    everything = peers.rows.drop_duplicates("label").set_index("label")["method"]
    names, means = everything.loc[whole.index], whole.mean(axis=1)
    best = means.idxmax() if peers.metric.higher_is_better else means.idxmin()
    base = find_reference(names, wanted) or find_reference(names, DEFAULT_REFERENCE) or best
    return str(base), _unused(wanted, everything, names)


def _unused(reference: str | None, names: pd.Series, tested: pd.Series) -> str:
    if reference is None or find_reference(tested, reference):
        return ""
    label = find_reference(names, reference)
    same = [str(label) for label, name in names.items() if str(name).casefold() == reference.casefold()]
    several = f"it stands for {', '.join(same)}" if same else "no method here has that name"
    return f"Not against {reference!r}: {f'{label} lacks a task' if label else several}. "


def matrix(cells: dict[str, dict[Key, Cell]], keys: list[Key]) -> pd.DataFrame:
    """Labels x tasks, means over numbers of shots where there are several; NaN where one of these is missing."""
    columns = pd.MultiIndex.from_tuples(keys)
    given = {label: [row.get(key, MISSING).value for key in keys] for label, row in cells.items()}
    by_task = pd.DataFrame(given, index=columns).groupby(level=0, sort=False)
    return by_task.mean().where(by_task.count().eq(by_task.size(), axis=0)).T


BY_IMAGES = "A table of its own tests differences on the same images, of runs that kept their predictions. "
SEED_CAPTION = (
    f"from, to: {CONFIDENCE:.0%} interval of the mean over seeds (over draws of the training list, where there are "
    "several), Student's t with the variances of the tasks' seeds added up; missing where a task has one seed, or not "
    "all of its seeds at each number of shots."
).replace("%", " %")


def _seed_intervals(peers: ComparableSet, keys: list[Key]) -> dict[str, Interval]:
    """The interval of each label's mean; unknown where a task has not two seeds."""
    shots = {task: sorted(s for name, s in keys if name == task) for task, _ in keys}
    intervals = dict.fromkeys(map(str, peers.rows["label"].unique()), NO_INTERVAL)
    for label, runs in peers.rows[peers.rows["status"] == "complete"].groupby("label"):
        tasks = {task: same for task, same in runs.groupby("task") if task in shots}
        values = [_task_seeds(same, shots[str(task)], peers.metric) for task, same in tasks.items()]
        intervals[str(label)] = seeds_interval(values if len(values) == len(shots) else [])
    return intervals


def _task_seeds(runs: pd.DataFrame, shots: list[int], metric: Metric) -> list[float]:
    """Independent values of a task's mean over numbers of shots; none where a seed lacks one of them."""
    values = runs.pivot_table(index=REPLICATE_KEYS, columns="shots", values=metric.name).reindex(columns=shots)
    return [] if values.isna().any(axis=None) else independent(values.mean(axis=1))
