"""Learning curves: training loss and accuracy per epoch."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.panels import add_legend
from analysis.figures.style import TWO_COLUMNS, Style, paper, styles

QUANTITIES = {"loss": "training loss", "train_accuracy": "training accuracy (%)"}


def curve_points(runs: pd.DataFrame) -> pd.DataFrame:
    """`label`, `task`, `epoch`, and both quantities: mean over all runs of the same label and task, and `<name> sd`."""
    points = pd.DataFrame(
        [
            (row.label, row.task, epoch, loss, accuracy)
            for row in runs.itertuples()
            for epoch, loss, accuracy in (row.curve if isinstance(row.curve, list) else [])
        ],
        columns=["label", "task", "epoch", *QUANTITIES],
    )
    grouped = points.groupby(["label", "task", "epoch"])
    spread = grouped[list(QUANTITIES)].std(ddof=1).add_suffix(" sd")
    return grouped[list(QUANTITIES)].mean().join(spread).reset_index()


def learning_curves(runs: pd.DataFrame, quantity: str = "loss") -> Figure | None:
    """A panel per task, a line per method, a band over seeds. None where no record has a curve of two epochs."""
    points = curve_points(runs)
    if points["epoch"].nunique() < 2:
        return None
    tasks = [task for task in dict.fromkeys(runs["task"]) if task in set(points["task"])]
    with paper():
        columns = min(len(tasks), 5 if len(tasks) != 6 else 3)
        rows = -(-len(tasks) // columns)
        figure = Figure(figsize=(TWO_COLUMNS, 0.6 + 1.5 * rows + 0.03 * runs["label"].nunique()))
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        looks = styles(runs)
        for axes in grid[len(tasks) :]:
            axes.set_axis_off()
        for index, (axes, task) in enumerate(zip(grid, tasks, strict=False)):
            _panel(axes, points[points["task"] == task], quantity, looks)
            axes.set_title(task)
            axes.set_ylabel(QUANTITIES[quantity] if index % columns == 0 else "")
            axes.set_xlabel("epoch" if index >= len(tasks) - columns else "")
        add_legend(figure, looks, markers=False)
    return figure


def _panel(axes: Axes, points: pd.DataFrame, quantity: str, looks: Mapping[str, Style]) -> None:
    for label, line in points.groupby("label"):
        look, mean, spread = looks[str(label)], line[quantity], line[f"{quantity} sd"]
        axes.plot(line["epoch"], mean, color=look.colour, ls=look.line, lw=1.1)
        axes.fill_between(line["epoch"], mean - spread, mean + spread, color=look.colour, alpha=0.15, lw=0)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(True)
