"""Hyper-parameters per method and task: those of the runs, what tuning chose, and ablations over one of them."""

from __future__ import annotations

import dataclasses
from numbers import Real
from typing import Any

import pandas as pd

from analysis.columns import parsed
from analysis.frame import ComparableSet, cell_name, differing_keys, suite_cells
from analysis.metric_text import digits, in_words
from analysis.tables.base import Cell, Column, Key, Row, Table, named_row, number_cell
from analysis.tables.cells import by_label, set_caption, set_title
from analysis.tables.tasks import task_table
from harness.schema.metrics import Metric
from harness.schema.metrics import get as get_metric

RECIPE = "recipe."
OWN = Column(name="method's own", kind="text")


def _settings_rows(peers: ComparableSet) -> list[tuple[str, Key | None, dict[str, Any]]]:
    """Label, cell and settings: one row for a method that has the same on all tasks (no cell), else one per cell."""
    rows: list[tuple[str, Key | None, dict[str, Any]]] = []
    order = list(suite_cells(peers.key["suite"], peers.rows))
    for label, runs in by_label(peers.rows):
        texts = runs.groupby(["task", "shots"])["settings"].unique()
        if len({tuple(one) for one in texts}) == 1:
            rows += [(label, None, parsed(text)) for text in texts.iloc[0]]
            continue
        for key in (key for key in order if key in texts.index):
            rows += [(label, key, parsed(text)) for text in texts[key]]
    return rows


def settings_table(peers: ComparableSet) -> Table:
    """Recipe and method configuration that produced the results, so that a cell can be run again."""
    rows = _settings_rows(peers)
    recipe = list(dict.fromkeys(key for _, _, settings in rows for key in settings if key.startswith(RECIPE)))
    columns = {key: Column(name=key.removeprefix(RECIPE), group="recipe", kind="text") for key in recipe}
    columns[OWN.name] = OWN
    table = Table(
        name="settings",
        title=set_title(peers, "hyper-parameters"),
        caption=f"One row per method, or per method and task where they differ. {set_caption(peers)}",
        columns=list(columns.values()),
    )
    for label, cell, settings in rows:
        own = ", ".join(f"{key}={value}" for key, value in settings.items() if not key.startswith(RECIPE))
        name = f"{label}, {cell_name(*cell)}" if cell else label
        unique = name if name not in table.rows else f"{name} #{sum(k.startswith(name) for k in table.rows) + 1}"
        texts = {**{key: str(settings.get(key, "")) for key in recipe}, OWN.name: own}
        table.rows[unique] = {columns[name].key: Cell(text=text) for name, text in texts.items()}
        if cell:
            table.behind[unique] = (label, cell)
    return table


def ablation_axes(peers: ComparableSet) -> list[str]:
    """Settings in which variants (labels) of one method differ: what an ablation can be shown over."""
    axes: dict[str, None] = {}
    for _, runs in peers.rows.groupby("title"):
        if runs["label"].nunique() > 1:
            axes |= dict.fromkeys(differing_keys(runs["settings"].unique()))
    return [axis for axis in axes if len(_ablation_rows(peers, axis))]


def _ablation_rows(peers: ComparableSet, axis: str) -> pd.DataFrame:
    """Runs of the methods that have the setting and occur with several values of it, all else equal; None counts."""
    rows = peers.rows[peers.rows["settings"].map(lambda text: axis in parsed(text)).astype(bool)]
    values = [parsed(text)[axis] for text in rows["settings"]]
    rows = rows.assign(axis=pd.Series(values, index=rows.index, dtype=object))
    others = rows["settings"].map(lambda text: repr({k: v for k, v in parsed(text).items() if k != axis}))
    several = (
        rows["axis"].map(repr).groupby([rows["title"], rows["source"], others, rows["task"]]).transform("nunique") > 1
    )
    return rows[several]


def ablation_table(peers: ComparableSet, axis: str) -> Table:
    """The per-task table of the methods that ran with several values of `axis`, one of `ablation_axes`, in the order of
    the values. Methods are compared with themselves: all other settings are equal."""
    kept = _ablation_rows(peers, axis)
    table = task_table(dataclasses.replace(peers, rows=kept.drop(columns="axis")))
    first = kept.drop_duplicates("label").set_index("label")
    order = sorted(table.rows, key=lambda label: (first["title"][label], *_sortable(first["axis"][label]), label))
    return dataclasses.replace(
        table,
        name=f"ablation_{shown(axis)}",
        title=set_title(peers, f"ablation over {shown(axis)}"),
        rows={label: table.rows[label] for label in order},
    )


def shown(axis: str) -> str:
    """A setting's name without `recipe.`."""
    return axis.removeprefix(RECIPE)


def _sortable(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, Real) and not isinstance(value, bool)
    return not number, float(value) if number else 0.0, str(value)


def _tuning_columns(metrics: list[Metric]) -> list[Column]:
    return [
        Column(name="chosen", kind="text"),
        Column(name="val", digits=max(map(digits, metrics))),
        Column(name="trials", kind="integer"),
        Column(name="failed", kind="integer"),
        Column(name="hours", kind="hours"),
    ]


TUNING_CAPTION = (
    "The settings that won on val, of those that were searched; {} of the winner there, so not a result; trials "
    "that were done, those that failed, and device hours of all of them together."
)


def tuning_table(peers: ComparableSet) -> Table | None:
    """A row per method, task and draw of the training list; None where nothing was tuned."""
    tuned = peers.rows[peers.rows["tuning_trials"].notna()]
    if tuned.empty:
        return None
    by = tuned.drop_duplicates("task").groupby("chosen_by", sort=False)["task"].agg(", ".join)
    metrics = {get_metric(str(name)): tasks for name, tasks in by.items()}
    named = [in_words(metric) + (f" ({tasks})" if len(by) > 1 else "") for metric, tasks in metrics.items()]
    table = Table(
        name="tuning",
        title=set_title(peers, "chosen settings"),
        caption=f"{TUNING_CAPTION.format(', '.join(named))} {set_caption(peers)}",
        columns=_tuning_columns(list(metrics)),
    )
    for label, runs in by_label(tuned):
        own = runs.drop_duplicates(["task", "shots", "split_seed"])
        for task, shots in suite_cells(peers.key["suite"], tuned):
            for _, run in own[(own["task"] == task) & (own["shots"] == shots)].sort_values("split_seed").iterrows():
                draw = f", draw {run['split_seed']}" if run["split_seed"] >= 0 else ""
                table.rows[f"{label}, {cell_name(task, shots)}{draw}"] = _tuning_row(run, table.columns)
    return table


def _tuning_row(run: pd.Series, columns: list[Column]) -> Row:
    text = ", ".join(f"{key.removeprefix('recipe.')}={value}" for key, value in parsed(run["chosen"]).items())
    if run["tuning_failed"] == run["tuning_trials"]:
        text = "none: all trials failed"
    return named_row(
        columns,
        chosen=Cell(text=text or "nothing searched"),
        val=number_cell(run["tuning_score"]),
        trials=number_cell(run["tuning_trials"]),
        failed=number_cell(run["tuning_failed"]),
        hours=number_cell(run["tuning_seconds"] / 3600),
    )
