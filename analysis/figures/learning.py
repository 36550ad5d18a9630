"""Learning curves: training loss and accuracy per epoch."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.data import best_labels
from analysis.figures.panels import MOST, add_legend, line_with_band, panel_grid
from analysis.figures.style import ONE_COLUMN, TWO_COLUMNS, Style, paper, styles
from harness.schema.metrics import ACCURACY, Metric

MARKS = 3
"""Markers on a line of more than `MANY` epochs: colours alone do not tell twelve methods apart."""

MANY = 6

QUANTITIES = {"loss": "training loss", "train_accuracy": "training accuracy (%)"}


def curve_points(runs: pd.DataFrame) -> pd.DataFrame:
    """`label`, `task`, `epoch`, and both quantities: mean over all runs of the same label and task, and `<name> sd`."""
    points = pd.DataFrame(
        [
            (label, task, *point)
            for label, task, curve in zip(runs["label"], runs["task"], runs["curve"], strict=True)
            for point in (curve if isinstance(curve, list) else [])
        ],
        columns=["label", "task", "epoch", *QUANTITIES],
    )
    grouped = points.groupby(["label", "task", "epoch"])
    spread = grouped[list(QUANTITIES)].std(ddof=1).add_suffix(" sd")
    return grouped[list(QUANTITIES)].mean().join(spread).reset_index()


def with_curves(runs: pd.DataFrame, metric: Metric = ACCURACY) -> pd.DataFrame:
    """Runs of two epochs or more of the `MOST` best labels; of a few-shot suite those with most shots."""
    runs = runs[(runs["epochs"] > 1) & (runs["shots"] == runs["shots"].max())]
    return runs[runs["label"].isin(best_labels(runs, MOST, metric))]


def learning_curves(runs: pd.DataFrame, quantity: str, everything: int) -> Figure | None:
    """A panel per task, a line per method, a band over seeds. `everything`: number of methods, shown or not. None
    without runs."""
    if runs.empty:
        return None
    looks = styles(runs)
    points = curve_points(runs)
    tasks = [task for task in dict.fromkeys(runs["task"]) if task in set(points["task"])]
    with paper():
        columns = min(len(tasks), 5 if len(tasks) != 6 else 3)
        width, height = (TWO_COLUMNS, 1.5) if columns > 2 else (ONE_COLUMN, 2.0)
        figure, grid = panel_grid(len(tasks), columns, width, height, 0.7)
        for index, (axes, task) in enumerate(zip(grid, tasks, strict=True)):
            _panel(axes, points[points["task"] == task], quantity, looks)
            axes.set_title(task)
            axes.set_ylabel(QUANTITIES[quantity] if index % columns == 0 else "")
            axes.set_xlabel("epoch" if index >= len(tasks) - columns else "")
        add_legend(figure, looks, everything)
    return figure


def _panel(axes: Axes, points: pd.DataFrame, quantity: str, looks: Mapping[str, Style]) -> None:
    for place, (label, line) in enumerate(points.groupby("label")):
        marked = (place / len(looks) / MARKS, 1 / MARKS)  # of the line's length, so that lines are marked in turn
        names = ("epoch", quantity, f"{quantity} sd")
        often = marked if len(line) > MANY else 1
        line_with_band(axes, line, names, looks[str(label)], lw=0.9, ms=3, markevery=often)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(True)
