"""The data frame that figures are drawn from: one row per complete run, with what only figures need."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.columns import parsed, target_values
from analysis.comparability import CELL_KEYS
from analysis.frame import REPLICATE_KEYS, ComparableSet, suite_tasks
from analysis.index import ReadRecords
from analysis.tables.tasks import target_order
from harness.schema.metrics import Metric

MEBIBYTE = 2**20

PER_CELL = 5
"""How many runs of a cell are read whole, for curves and channels: those with the lowest seeds."""

SOURCE = "source"
"""Name of a task's own test set among the values of `splits`."""


def run_frame(peers: ComparableSet) -> pd.DataFrame:
    """Complete runs of the set in the suite's order of tasks, with the metric's `value`, `group`, and `settings` and
    `splits` as dictionaries."""
    rows = peers.rows[peers.rows["status"] == "complete"]
    tasks = suite_tasks(peers.key["suite"], peers.rows)
    order = {task: target_order(peers.key["suite"], task) for task in tasks}
    splits = [
        {SOURCE: value, **_in_order(target_values(targets, peers.metric), order[task])}
        for task, value, targets in zip(rows["task"], rows[peers.metric.name], rows["targets"], strict=True)
    ]
    rows = rows.assign(
        value=rows[peers.metric.name],
        group=rows["task"].map(tasks),
        memory=rows["memory"] / MEBIBYTE,
        settings=rows["settings"].map(parsed).astype(object),
        splits=pd.Series(splits, index=rows.index, dtype=object),
    )
    return rows.sort_values("task", key=lambda names: names.map({t: i for i, t in enumerate(tasks)}), kind="stable")


def _in_order(values: dict[str, float], names: Sequence[str]) -> dict[str, float]:
    return {name: values[name] for name in [*(n for n in names if n in values), *(v for v in values if v not in names)]}


def read_whole(runs: pd.DataFrame, read: ReadRecords) -> pd.DataFrame:
    """The first `PER_CELL` runs of each cell, with what only their records hold: `curve` and `channels`."""
    few = runs.sort_values(REPLICATE_KEYS, kind="stable").groupby(["label", *CELL_KEYS], sort=False).head(PER_CELL)
    few = few.loc[runs.index[runs.index.isin(few.index)]]  # in the order of tasks again
    extras = pd.DataFrame(
        [
            (
                record.spec.run_id,
                [(e.epoch, e.train_loss, e.train_accuracy) for e in record.curve],
                record.method_info.get("channels"),
            )
            for record in read(few)
        ],
        columns=["run_id", "curve", "channels"],
    )
    return few.merge(extras, on="run_id")


def cells(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean over the seeds: a row per label, a column per task and number of shots."""
    return runs.pivot_table(index="label", columns=CELL_KEYS, values="value", aggfunc="mean")


def complete(runs: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """Runs with a value on the tasks, of labels that have one on each of them, at every number of shots that occurs."""
    runs = runs[runs["task"].isin(list(tasks)) & runs["value"].notna()]
    if runs.empty or set(tasks) - set(runs["task"]):
        return runs[:0]
    return runs[runs["label"].isin(cells(runs).dropna().index)]


def best_labels(runs: pd.DataFrame, count: int, metric: Metric) -> list[str]:
    """The `count` labels that have most tasks, and of those with equally many the best."""
    labels = runs.groupby("label").agg(tasks=("task", "nunique"), value=("value", "mean"))
    best = labels.sort_values(["tasks", "value"], ascending=[False, not metric.higher_is_better])
    return [str(label) for label in best.index[:count]]


def seed_means(runs: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Mean over the tasks: `label`, `mean`, and `spread` over the seeds (ddof=1; NaN for one), best first.

    Give it runs that are `complete`; a seed that lacks a task is not in the spread.
    """
    per_cell = runs.groupby(["label", *CELL_KEYS])["value"].mean()
    seeds = runs.pivot_table(index=["label", *REPLICATE_KEYS], columns=CELL_KEYS, values="value").dropna()
    means = per_cell.groupby("label").mean().rename("mean").to_frame()
    means["spread"] = seeds.mean(axis=1).groupby("label").std(ddof=1)
    return means.sort_values("mean", ascending=not metric.higher_is_better).reset_index()
