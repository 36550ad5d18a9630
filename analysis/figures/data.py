"""The data frame that figures are drawn from: one row per complete run, with what only figures need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from analysis.frame import ComparableSet, suite_tasks
from harness.record import RunRecord
from harness.spec import RunSpec

MEBIBYTE = 2**20


def settings_of(spec: RunSpec) -> dict[str, object]:
    """What may differ between runs of a method: its configuration, and the training recipe as `recipe.<field>`."""
    values = spec.as_dict()
    return {**{f"recipe.{key}": value for key, value in values["recipe"].items()}, **values["config"]}


def _extras(record: RunRecord) -> dict[str, object]:
    peak = record.cost.peak_memory_bytes if record.cost else None
    return {
        "run_id": record.spec.run_id,
        "shots": record.spec.shots,
        "split_seed": record.spec.split_seed,
        "memory": peak / MEBIBYTE if peak else float("nan"),
        "settings": settings_of(record.spec),
        "splits": {name: metrics.accuracy for name, metrics in record.metrics.items()},
        "curve": [(e.epoch, e.train_loss, e.train_accuracy) for e in record.curve],
        "channels": record.method_info.get("channels"),
    }


def run_frame(chosen: ComparableSet, records: Iterable[RunRecord]) -> pd.DataFrame:
    """Complete runs of the set: its rows, joined with shots, memory, curve, channels and the accuracies of all splits.

    `group` is the task's group; rows are in the suite's order of tasks. `records` may hold more runs than the set does.
    """
    wanted = set(chosen.rows["run_id"])
    extras = pd.DataFrame([_extras(record) for record in records if record.spec.run_id in wanted])
    complete = chosen.rows[chosen.rows["status"] == "complete"]
    complete = complete[[c for c in complete if c == "run_id" or c not in extras]]
    rows = complete.merge(extras, on="run_id", how="left")
    tasks = suite_tasks(chosen.key["suite"], chosen.rows)
    rows = rows.assign(group=rows["task"].map(tasks))
    return rows.sort_values("task", key=lambda names: names.map({t: i for i, t in enumerate(tasks)}), kind="stable")


def cells(runs: pd.DataFrame, value: str = "accuracy") -> pd.DataFrame:
    """Mean over the seeds: a row per label, a column per task (and number of shots, where there are several)."""
    columns = ["task", "shots"] if runs["shots"].nunique() > 1 else ["task"]
    return runs.pivot_table(index="label", columns=columns, values=value, aggfunc="mean")


def complete_labels(runs: pd.DataFrame, tasks: Sequence[str]) -> list[str]:
    """Labels with a run on every one of the tasks, at every number of shots that occurs."""
    if runs.empty:
        return []
    table = cells(runs)
    present = set(table.columns.get_level_values("task") if table.columns.nlevels > 1 else table.columns)
    return [] if set(tasks) - present else [str(label) for label in table.dropna().index]


def best_labels(runs: pd.DataFrame, count: int) -> list[str]:
    """The `count` labels that have most tasks, and of those with as many the most accurate."""
    labels = runs.groupby("label").agg(tasks=("task", "nunique"), accuracy=("accuracy", "mean"))
    return [str(label) for label in labels.sort_values(["tasks", "accuracy"], ascending=False).index[:count]]


def seed_means(runs: pd.DataFrame, value: str = "accuracy") -> pd.DataFrame:
    """Mean over the tasks: `label`, `mean`, and `spread` over the seeds (ddof=1; NaN for one), best first.

    Give it runs of labels that are complete, see `complete_labels`; a seed that lacks a task is not in the spread.
    """
    columns = ["task", "shots"] if runs["shots"].nunique() > 1 else ["task"]
    per_cell = runs.groupby(["label", *columns])[value].mean()
    seeds = runs.pivot_table(index=["label", "seed"], columns=columns, values=value, aggfunc="mean").dropna()
    means = per_cell.groupby("label").mean().rename("mean").to_frame()
    means["spread"] = seeds.mean(axis=1).groupby("label").std(ddof=1)
    return means.sort_values("mean", ascending=False).reset_index()
