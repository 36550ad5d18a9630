"""Critical-difference diagram after Demšar, Statistical Comparisons of Classifiers, JMLR 2006."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.data import cells, complete
from analysis.figures.style import TWO_COLUMNS, Style, paper, styles
from analysis.statistics import average_ranks, nemenyi_difference
from harness.schema.metrics import ACCURACY, Metric


def cliques(average: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """Largest runs of neighbours that differ by less than `difference`, as first and last index of sorted ranks."""
    spans: list[tuple[int, int]] = []
    for first in range(len(average)):
        last = max(i for i in range(first, len(average)) if average[i] - average[first] < difference)
        if last > first and (not spans or last > spans[-1][1]):
            spans.append((first, last))
    return spans


def critical_difference_diagram(runs: pd.DataFrame, tasks: Sequence[str], metric: Metric = ACCURACY) -> Figure | None:
    """Average ranks on a line; a bar joins what does not differ significantly. None below 3 methods or 2 tasks."""
    runs = complete(runs, tasks)
    if runs["label"].nunique() < 3 or len(tasks) < 2:
        return None
    table = cells(runs).T.groupby(level="task").mean().T
    ranks = average_ranks(table, metric.higher_is_better).sort_values()
    difference = nemenyi_difference(*table.shape)
    spans = cliques(list(ranks), difference)
    with paper():
        half = -(-len(ranks) // 2)
        height = 0.75 + 0.1 * len(spans) + 0.17 * half
        figure = Figure(figsize=(TWO_COLUMNS, height))
        figure.set_layout_engine("none")
        axes = figure.add_axes((0.22, 0, 0.56, 1))
        axes.set_axis_off()
        axes.set_ylim(height, 0)
        axes.set_xlim(0.9, len(ranks) + 0.1)
        _ruler(axes, difference, *table.shape)
        for level, (first, last) in enumerate(spans):
            y = 0.62 + 0.1 * level
            axes.plot([ranks.iloc[first] - 0.04, ranks.iloc[last] + 0.04], [y, y], color="#222222", lw=2.5)
        _names(axes, ranks, styles(runs), 0.72 + 0.1 * len(spans))
    return figure


LINE = 0.5
"""Distance of the ruler from the top in inches, as are all heights here."""


def _ruler(axes: Axes, difference: float, methods: int, tasks: int) -> None:
    axes.plot([1, methods], [LINE, LINE], color="black", lw=0.8)
    step = max(1, methods // 12)
    for rank in range(1, methods + 1):
        axes.plot([rank, rank], [LINE - 0.05, LINE], color="black", lw=0.8)
        if (rank - 1) % step == 0:
            axes.text(rank, LINE - 0.07, str(rank), ha="center", va="bottom", fontsize=7)
    shown = min(difference, methods - 1)
    axes.plot([1, 1 + shown], [0.2, 0.2], color="black", lw=1.2, marker="|", ms=6)
    more = "" if shown == difference else ", beyond the scale"
    axes.text(1 + shown / 2, 0.15, f"CD = {difference:.2f}{more}, {tasks} tasks", ha="center", va="bottom", fontsize=7)


def _names(axes: Axes, average: pd.Series, looks: Mapping[str, Style], top: float) -> None:
    """Names left (better half) and right, each joined to its rank by an angled line."""
    count = len(average)
    half = -(-count // 2)
    for place, (label, rank) in enumerate(average.items()):
        left = place < half
        y = top + 0.17 * (place if left else count - 1 - place) + 0.06
        x = 0.9 if left else count + 0.1
        look = looks[str(label)]
        axes.plot([rank, rank, x], [LINE, y, y], color=look.colour, lw=0.9, ls=look.line, clip_on=False, zorder=1)
        axes.plot([rank], [LINE], **look.point_arguments, ms=4.5, clip_on=False, zorder=4)
        text = f"{label}  {rank:.2f} " if left else f" {rank:.2f}  {label}"
        axes.text(x, y, text, ha="right" if left else "left", va="center", fontsize=7)
