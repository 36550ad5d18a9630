"""The metric against what it costs, with the Pareto front."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from analysis.figures.data import complete, seed_means
from analysis.figures.labels import place_labels
from analysis.figures.style import ONE_COLUMN, TWO_COLUMNS, paper, styles
from analysis.metric_text import with_unit
from analysis.tables.significance import DEFAULT_REFERENCE
from harness.schema.metrics import ACCURACY, Metric

AXES = {
    "parameters": "trained parameters without head",
    "seconds": "seconds per run (attach, train, evaluate)",
    "memory": "peak memory in training (MiB)",
}
"""Costs for the x axis, with the axis label."""

FIRST_TICK = 1_000
"""Below this number of parameters the axis is linear, so that a method that trains none can be shown."""

CROWD = 30
"""With more points than this, not all are named."""

BEST = 8
"""How many of the best are named in a crowd."""

MANY = 10
"""From this number of points on, the figure is two columns wide."""


def tick_text(value: float) -> str:
    """A power of ten as a number of parameters: 0, 10k, 1M."""
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def pareto_front(cost: Sequence[float], value: Sequence[float], higher_is_better: bool = True) -> list[int]:
    """Indices of the points that no other one beats (cheaper and as good, or as cheap and better), by rising cost.
    Points that tie in both are all on it."""
    front: list[int] = []
    value = value if higher_is_better else [-v for v in value]
    for index in sorted(range(len(cost)), key=lambda i: (cost[i], -value[i])):
        tied = front and (cost[index], value[index]) == (cost[front[-1]], value[front[-1]])
        if not front or value[index] > value[front[-1]] or tied:
            front.append(index)
    return front


def tradeoff(
    runs: pd.DataFrame,
    tasks: Sequence[str],
    cost: str,
    reference: str = DEFAULT_REFERENCE,
    metric: Metric = ACCURACY,
) -> Figure | None:
    """The metric's mean over the tasks against a cost of `AXES`. None without two methods that have both. `reference`:
    label or name of a method that is named even in a crowd."""
    runs = complete(runs, tasks)
    runs = runs[runs[cost].notna()]
    if runs["label"].nunique() < 2:
        return None
    points = seed_means(runs, metric)
    points["cost"] = points["label"].map(runs.groupby("label")[cost].mean()).astype(float)
    with paper():
        many = len(points) >= MANY
        figure = Figure(figsize=(TWO_COLUMNS, 4.3) if many else (ONE_COLUMN, 2.8))
        axes = figure.subplots()
        front = pareto_front(list(points["cost"]), list(points["mean"]), metric.higher_is_better)
        named = _named(points, front, runs, reference)
        _draw(axes, points, front, named, runs)
        _scale(axes, cost, points["cost"].to_numpy())
        axes.set_xlabel(AXES[cost])
        shots = ", mean over shots" if runs["shots"].nunique() > 1 else ""
        over = f"mean {metric.title} over tasks" if len(tasks) > 1 else f"{metric.title}, {tasks[0]}{shots}"
        axes.set_ylabel(with_unit(over, metric))
        if not named.all():
            text = f"named: the front, the {BEST} best and {reference}; light dots: the others of {len(points)}"
            axes.set_title(text, loc="left", fontsize=7)
        shown, looks = points[named], styles(runs)
        place_labels(
            figure,
            axes,
            list(shown["label"]),
            shown[["cost", "mean"]].to_numpy(dtype=float),
            [looks[label].colour for label in shown["label"]],
            _lines(points, front, named),
            points.loc[~named, ["cost", "mean"]].to_numpy(dtype=float),
        )
    return figure


def _named(points: pd.DataFrame, front: list[int], runs: pd.DataFrame, reference: str) -> np.ndarray:
    """Which points have a name and colours, bool [points]: all, or of too many the front, the best, the reference."""
    if len(points) <= CROWD:
        return np.ones(len(points), dtype=bool)
    references = runs.loc[(runs["method"] == reference) | (runs["label"] == reference), "label"]
    named = points["label"].isin(references).to_numpy(copy=True)
    named[front] = True
    named[:BEST] = True  # they come best first
    return named


def _lines(points: pd.DataFrame, front: list[int], named: np.ndarray) -> np.ndarray:
    """Error bars and the steps of the front, which labels stay off: [M, 4] of x0, y0, x1, y1."""
    values = points[["cost", "mean", "spread"]].fillna(0).to_numpy(float)
    bars = [(x, y - spread, x, y + spread) for x, y, spread in values[named]]
    steps = [(a[0], a[1], b[0], a[1]) for a, b in itertools.pairwise(values[front])]
    rises = [(b[0], a[1], b[0], b[1]) for a, b in itertools.pairwise(values[front])]
    return np.array([*bars, *steps, *rises])


def _draw(axes: Axes, points: pd.DataFrame, front: list[int], named: np.ndarray, runs: pd.DataFrame) -> None:
    looks, best = styles(runs), points.iloc[front]
    axes.step(best["cost"], best["mean"], where="post", color="#555555", lw=0.9, ls="--", zorder=1)
    values = points[["cost", "mean", "spread"]].to_numpy(float)
    axes.plot(values[~named, 0], values[~named, 1], "o", color="#bbbbbb", ms=3.5, zorder=2)
    for label, (x, y, spread) in zip(points["label"][named], values[named], strict=True):
        whisker = None if np.isnan(spread) else spread
        axes.errorbar(
            [x], [y], yerr=whisker, **looks[label].point_arguments, ms=5.5, elinewidth=0.8, capsize=2, zorder=3
        )
    axes.grid(True)
    axes.margins(x=0.12, y=0.14)


def _scale(axes: Axes, cost: str, values: np.ndarray) -> None:
    if cost == "parameters":
        axes.set_xscale("symlog", linthresh=FIRST_TICK)
        axes.set_xlim(left=-FIRST_TICK / 3, right=max(FIRST_TICK, values.max()) * 8)
        decades = range(3, int(np.log10(max(FIRST_TICK, values.max()))) + 2)
        axes.set_xticks([0, *(10.0**d for d in decades)])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: tick_text(x)))
    elif values.min() > 0 and values.max() / values.min() > 20:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
