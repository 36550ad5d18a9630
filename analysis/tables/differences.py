"""Differences of paired runs: what choosing the epoch by the test split gains, what pretrained weights are worth."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.comparability import CELL_KEYS
from analysis.frame import ComparableSet, cell_name, suite_cells
from analysis.metric_text import difference, sentence
from analysis.statistics import DECIMALS
from analysis.tables.base import MEANS, MISSING, Table, difference_column, mean_cell
from analysis.tables.cells import label_order, set_title
from analysis.tables.pairs import Pairs, pair_runs
from harness.errors import HarnessError
from harness.schema.metrics import Metric

CAPTION = (
    "What a method gains when the best epoch on the test split is reported (oracle) instead of the last one (fixed), "
    "mean over pairs of runs with the same settings, task, seeds and data. `within a run` compares both epochs of one "
    "training, so it is free of what differs between two trainings on a GPU. None of it carries over to new data."
)

ALL = "over tasks"
"""Header above what sums the tasks up otherwise than by their mean."""

WEIGHTS_TABLE = "pretrained_minus_random"


def bias_table(oracle: ComparableSet, fixed: ComparableSet) -> Table:
    """A row per method that ran under both protocols, in points; means over the tasks, and the largest."""
    metric = oracle.metric
    tasks = {
        key: difference_column(metric, cell_name(*key), group=group)
        for key, group in suite_cells(oracle.key["suite"], pd.concat([oracle.rows, fixed.rows])).items()
    }
    mean = difference_column(metric, "tasks", 1, group=MEANS)
    largest = difference_column(metric, "largest", group=ALL)
    inside = difference_column(metric, "mean within a run", 1, group=ALL)
    pairs = pair_runs(oracle, fixed, ("oracle", "fixed"))
    gained, within = pairs.cells(), pairs.cells("first", "last")
    table = Table(
        name="oracle_minus_fixed",
        title=set_title(fixed, "oracle minus fixed"),
        caption=f"{sentence(difference(metric))}. {CAPTION} {_ranks(pairs, len(tasks), metric)}{pairs.alone}".strip(),
        columns=[*tasks.values(), mean, largest, inside],
    )
    sign = 1 if metric.higher_is_better else -1
    for label in (label for label in label_order(fixed.rows) if label in gained):
        cells = {column.key: gained[label].get(key, MISSING) for key, column in tasks.items()}
        table.rows[label] = cells | {
            mean.key: mean_cell(cells.values()),
            largest.key: max(cells.values(), key=lambda cell: sign * cell.value if cell.is_number else -np.inf),
            inside.key: mean_cell(within.get(label, {}).get(key, MISSING) for key in tasks),
        }
    return table


def _ranks(pairs: Pairs, tasks: int, metric: Metric) -> str:
    """How many methods change their rank by the mean over tasks, of those that have all tasks under both."""
    means = pairs.runs.groupby(["label", *CELL_KEYS])[["first", "second"]].mean().groupby("label")
    values = means.mean()[means.size() == tasks]
    if len(values) < 2:
        return ""
    ranks = values.round(DECIMALS).rank(ascending=not metric.higher_is_better)
    return f"{int((ranks['first'] != ranks['second']).sum())} of {len(ranks)} methods change their rank by the mean. "


def bias_tables(sets: list[ComparableSet]) -> list[Table]:
    """A table for each pair of sets that differ in nothing but the protocol. `HarnessError` if there is none."""
    pairs = [
        bias_table(oracle, fixed)
        for oracle in sets
        for fixed in sets
        if (oracle.key["protocol"], fixed.key["protocol"]) == ("oracle", "fixed")
        and oracle.rest_of_key("protocol") == fixed.rest_of_key("protocol")
        and oracle.metric == fixed.metric
    ]
    tables = [table for table in pairs if table.rows]
    if not tables:
        raise HarnessError(
            "no run has a partner under both protocols: do the same `sctbench run` once with --protocol fixed and once "
            f"with --protocol oracle. {' '.join(table.caption.partition(CAPTION)[2] for table in pairs)}".strip()
        )
    return tables


def weights_tables(pretrained: ComparableSet, randoms: list[ComparableSet]) -> list[Table]:
    """A table for each set of the same model at random, with its checkpoint in the name where there are several."""
    names = [f"_{random.key['weights_digest'][:8]}" if len(randoms) > 1 else "" for random in randoms]
    return [_weights_table(pretrained, random, name) for random, name in zip(randoms, names, strict=True)]


def _weights_table(pretrained: ComparableSet, random: ComparableSet, suffix: str) -> Table:
    keys = suite_cells(pretrained.key["suite"], pretrained.rows)
    pairs = pair_runs(pretrained, random, ("pretrained", "random"))
    cells = pairs.cells()
    columns = {k: difference_column(pretrained.metric, cell_name(*k), group=group) for k, group in keys.items()}
    which = f" {suffix[1:]}" if suffix else ""
    metric, sign = pretrained.metric, "positive" if pretrained.metric.higher_is_better else "negative"
    caption = f"Difference in {difference(metric)}, mean over pairs of runs with the same method, settings, task, "
    caption += f"seeds and data; {sign} means that the pretrained weights are better."
    return Table(
        name=WEIGHTS_TABLE + suffix,
        title=set_title(pretrained, f"pretrained minus random weights{which}"),
        caption=f"{caption} {pairs.alone}".strip(),
        columns=list(columns.values()),
        rows={
            label: {column.key: cells[label].get(key, MISSING) for key, column in columns.items()}
            for label in label_order(pretrained.rows)
            if label in cells
        },
    )
