"""What choosing the epoch by the test split gains: runs of `oracle` minus those of `fixed`."""

from __future__ import annotations

import pandas as pd

from analysis.errors import AnalysisError
from analysis.frame import OPENED_OFTEN, ComparableSet, cell_name, suite_cells
from analysis.tables.base import MEANS, MISSING, Cell, Column, Table, mean_cell, number_cell
from analysis.tables.cells import Key, accuracy_cells, spread_caption

CAPTION = (
    "Points of top-1 accuracy that a method gains when the best epoch on the test split is reported (oracle) in place "
    "of the last one (fixed): same task, recipe and seeds. `within a run` compares both epochs of one training, so it "
    "is free of what differs between two trainings on a GPU. None of it can be had on new data."
)

ALL = "over tasks"
"""Header above what sums the tasks up otherwise than by their mean."""


def bias_table(oracle: ComparableSet, fixed: ComparableSet) -> Table:
    """A row per method that ran under both protocols, in points; means over the tasks, and the largest."""
    keys = list(suite_cells(oracle.key["suite"], pd.concat([oracle.rows, fixed.rows])).items())
    chosen = {label.removesuffix(f" {OPENED_OFTEN}"): cells for label, cells in accuracy_cells(oracle).items()}
    honest = accuracy_cells(fixed)
    table = Table(
        name="oracle_minus_fixed",
        title=f"{oracle.key['suite']}, {oracle.key['backbone']} ({oracle.key['weights']}): oracle minus fixed",
        caption=f"{CAPTION} {_ranks(chosen, honest)}Accuracies behind it: {spread_caption(oracle.rows)}.",
        columns=[
            *(Column(name=cell_name(*key), group=group, kind="points", best="") for key, group in keys),
            Column(name="tasks", group=MEANS, kind="points", best="", digits=2),
            Column(name="largest", group=ALL, kind="points", best=""),
            Column(name="mean within a run", group=ALL, kind="points", best="", digits=2),
        ],
    )
    within = _within(oracle, len(keys))
    for label in (label for label in honest if label in chosen):
        cells = [_difference(chosen[label].get(key, MISSING), honest[label].get(key, MISSING)) for key, _ in keys]
        known = [cell.value for cell in cells if cell.is_number]
        largest = number_cell(max(known)) if known else MISSING
        table.rows[label] = [*cells, mean_cell(cells), largest, within.get(label, MISSING)]
    return table


def _difference(first: Cell, second: Cell) -> Cell:
    return Cell(value=first.value - second.value) if first.is_number and second.is_number else MISSING


def _within(oracle: ComparableSet, tasks: int) -> dict[str, Cell]:
    """By label: the best epoch's accuracy minus the last one's, mean over runs and then over so many tasks."""
    gained = oracle.rows["accuracy"] - oracle.rows["last_accuracy"]
    means = gained.groupby([oracle.rows["label"], oracle.rows["task"], oracle.rows["shots"]]).mean()
    return {
        str(label).removesuffix(f" {OPENED_OFTEN}"): mean_cell(map(number_cell, values))
        if len(values) == tasks
        else MISSING
        for label, values in means.groupby(level=0)
    }


def _ranks(chosen: dict[str, dict[Key, Cell]], honest: dict[str, dict[Key, Cell]]) -> str:
    """How many methods change their rank by the mean over tasks, of those that have all tasks under both."""
    means = {
        label: (mean_cell(chosen[label].values()), mean_cell(honest[label].values()))
        for label in honest
        if label in chosen and chosen[label].keys() == honest[label].keys()
    }
    values = pd.DataFrame({label: [a.value, b.value] for label, (a, b) in means.items()}).T.dropna()
    if len(values) < 2:
        return ""
    ranks = values.rank(ascending=False)
    return f"{int((ranks[0] != ranks[1]).sum())} of {len(ranks)} methods change their rank by the mean. "


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
            "no method has runs under both protocols: do the same `sctbench run` once with --protocol fixed and once "
            "with --protocol oracle"
        )
    return found
