"""Learning curves: training loss and accuracy per epoch."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.data import best_labels
from analysis.figures.panels import MOST, add_legend
from analysis.figures.style import ONE_COLUMN, TWO_COLUMNS, Style, paper, styles

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


def learning_curves(runs: pd.DataFrame, quantity: str = "loss") -> Figure | None:
    """A panel per task, a line per method, a band over seeds; of a few-shot suite those with most
    shots. None where no record has a curve of two epochs."""
    if runs["shots"].nunique() > 1:
        runs = runs[runs["shots"] == runs["shots"].max()]
    looks = {label: look for label, look in styles(runs).items() if label in best_labels(runs, MOST)}
    points = curve_points(runs[runs["label"].isin(list(looks))])
    if points["epoch"].nunique() < 2:
        return None
    tasks = [task for task in dict.fromkeys(runs["task"]) if task in set(points["task"])]
    with paper():
        columns = min(len(tasks), 5 if len(tasks) != 6 else 3)
        rows = -(-len(tasks) // columns)
        width = TWO_COLUMNS if columns > 2 else ONE_COLUMN
        figure = Figure(figsize=(width, 0.7 + (1.5 if columns > 2 else 2.0) * rows))
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes in grid[len(tasks) :]:
            axes.set_axis_off()
        for index, (axes, task) in enumerate(zip(grid, tasks, strict=False)):
            _panel(axes, points[points["task"] == task], quantity, looks)
            axes.set_title(task)
            axes.set_ylabel(QUANTITIES[quantity] if index % columns == 0 else "")
            axes.set_xlabel("epoch" if index >= len(tasks) - columns else "")
        add_legend(figure, looks, runs["label"].nunique(), markers=False)
    return figure


def _panel(axes: Axes, points: pd.DataFrame, quantity: str, looks: Mapping[str, Style]) -> None:
    for label, line in points.groupby("label"):
        look, mean, spread = looks[str(label)], line[quantity], line[f"{quantity} sd"]
        axes.plot(line["epoch"], mean, color=look.colour, ls=look.line, lw=1.1)
        axes.fill_between(line["epoch"], mean - spread, mean + spread, color=look.colour, alpha=0.15, lw=0)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(True)
