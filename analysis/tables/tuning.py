"""What tuning chose: the winner's settings per task, and what finding it took."""

from __future__ import annotations

import pandas as pd

from analysis.columns import parsed
from analysis.frame import ComparableSet, cell_name, suite_cells
from analysis.tables.base import Cell, Column, Row, Table, named_row, number_cell
from analysis.tables.cells import label_order, set_caption, set_title

COLUMNS = [
    Column(name="chosen", kind="text"),
    Column(name="val"),
    Column(name="trials", kind="integer"),
    Column(name="failed", kind="integer"),
    Column(name="hours", kind="hours"),
]

CAPTION = (
    "The settings that won on val, of those that were searched; accuracy of the winner there, so not a result; trials "
    "that were done, those that failed, and device hours of all of them together."
)


def tuning_table(peers: ComparableSet) -> Table | None:
    """A row per method, task and draw of the training list; None where nothing was tuned."""
    tuned = peers.rows[peers.rows["tuning_trials"].notna()]
    if tuned.empty:
        return None
    table = Table(
        name="tuning",
        title=set_title(peers, "chosen settings"),
        caption=f"{CAPTION} {set_caption(peers)}",
        columns=COLUMNS,
    )
    cells = tuned.drop_duplicates(["label", "task", "shots", "split_seed"])
    groups = dict(list(cells.groupby("label")))
    for label in label_order(tuned):
        for task, shots in suite_cells(peers.key["suite"], tuned):
            own = groups[label]
            for _, run in own[(own["task"] == task) & (own["shots"] == shots)].sort_values("split_seed").iterrows():
                draw = f", draw {run['split_seed']}" if run["split_seed"] >= 0 else ""
                table.rows[f"{label}, {cell_name(task, shots)}{draw}"] = _row(run)
    return table


def _row(run: pd.Series) -> Row:
    text = ", ".join(f"{key.removeprefix('recipe.')}={value}" for key, value in parsed(run["chosen"]).items())
    if run["tuning_failed"] == run["tuning_trials"]:
        text = "none: all trials failed"
    return named_row(
        COLUMNS,
        chosen=Cell(text=text or "nothing searched"),
        val=number_cell(run["tuning_accuracy"]),
        trials=number_cell(run["tuning_trials"]),
        failed=number_cell(run["tuning_failed"]),
        hours=number_cell(run["tuning_seconds"] / 3600),
    )
