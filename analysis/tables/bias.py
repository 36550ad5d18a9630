"""What choosing the epoch by the test split gains: runs of `oracle` minus those of `fixed`."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.frame import CELL_KEYS, ComparableSet, cell_name, suite_cells
from analysis.statistics import DECIMALS
from analysis.tables.base import MEANS, MISSING, Column, Table, mean_cell
from analysis.tables.cells import label_order, set_title
from analysis.tables.pairs import Pairs, pair_runs

CAPTION = (
    "Points of top-1 accuracy that a method gains when the best epoch on the test split is reported (oracle) in place "
    "of the last one (fixed), mean over pairs of runs with the same settings, task, seeds and data. `within a run` "
    "compares both epochs of one training, so it is free of what differs between two trainings on a GPU. "
    "None of it can be had on new data."
)

ALL = "over tasks"
"""Header above what sums the tasks up otherwise than by their mean."""


def bias_table(oracle: ComparableSet, fixed: ComparableSet) -> Table:
    """A row per method that ran under both protocols, in points; means over the tasks, and the largest."""
    keys = list(suite_cells(oracle.key["suite"], pd.concat([oracle.rows, fixed.rows])).items())
    pairs = pair_runs(oracle.rows, fixed.rows, ("oracle", "fixed"))
    gained, within = pairs.cells(), pairs.cells("first", "last")
    table = Table(
        name="oracle_minus_fixed",
        title=set_title(fixed, "oracle minus fixed"),
        caption=f"{CAPTION} {_ranks(pairs, len(keys))}{pairs.alone}".strip(),
        columns=[
            *(Column(name=cell_name(*key), group=group, kind="points", best="") for key, group in keys),
            Column(name="tasks", group=MEANS, kind="points", best="", digits=2),
            Column(name="largest", group=ALL, kind="points", best=""),
            Column(name="mean within a run", group=ALL, kind="points", best="", digits=2),
        ],
    )
    for label in (label for label in label_order(fixed.rows) if label in gained):
        cells = [gained[label].get(key, MISSING) for key, _ in keys]
        inside = mean_cell(within.get(label, {}).get(key, MISSING) for key, _ in keys)
        largest = max(cells, key=lambda cell: cell.value if cell.is_number else -np.inf)
        table.rows[label] = [*cells, mean_cell(cells), largest, inside]
    return table


def _ranks(pairs: Pairs, tasks: int) -> str:
    """How many methods change their rank by the mean over tasks, of those that have all tasks under both."""
    means = pairs.runs.groupby(["label", *CELL_KEYS])[["first", "second"]].mean().groupby("label")
    values = means.mean()[means.size() == tasks]
    if len(values) < 2:
        return ""
    ranks = values.round(DECIMALS).rank(ascending=False)
    return f"{int((ranks['first'] != ranks['second']).sum())} of {len(ranks)} methods change their rank by the mean. "


def bias_tables(sets: list[ComparableSet]) -> list[Table]:
    """A table for each pair of sets that differ in nothing but the protocol. `AnalysisError` if there is none."""

    def rest(one: ComparableSet) -> dict[str, object]:
        return {key: value for key, value in one.key.items() if key != "protocol"}

    pairs = [
        bias_table(oracle, fixed)
        for oracle in sets
        for fixed in sets
        if (oracle.key["protocol"], fixed.key["protocol"]) == ("oracle", "fixed") and rest(oracle) == rest(fixed)
    ]
    found = [table for table in pairs if table.rows]
    if not found:
        raise AnalysisError(
            "no run has a partner under both protocols: do the same `sctbench run` once with --protocol fixed and once "
            f"with --protocol oracle. {' '.join(table.caption.removeprefix(CAPTION) for table in pairs)}".strip()
        )
    return found
