"""Figures from comparable sets of runs."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from analysis.frame import ComparableSet
from analysis.render import count_text
from analysis.tables import MEANS, Table

FIRST_TICK = 1_000
"""Below this number of parameters the axis is linear, so that a method with none has a place."""


def save(figure: Figure, path: Path) -> Path:
    """Write the figure and close it."""
    figure.savefig(path, dpi=160, bbox_inches="tight")
    plt.close(figure)
    return path


def accuracy_against_parameters(chosen: ComparableSet, table: Table) -> Figure:
    """Mean accuracy over the tasks against trained parameters, one point per complete row of a task table."""
    names = [(column.group, column.name) for column in table.columns]
    mean_at, parameters_at = names.index((MEANS, "tasks")), names.index(("", "params"))
    points = {
        label: (cells[parameters_at].value, cells[mean_at].value)
        for label, cells in table.rows.items()
        if cells[mean_at].is_number
    }
    with sns.axes_style("whitegrid"), sns.plotting_context("paper", font_scale=1.1):
        figure, axes = plt.subplots(figsize=(6, 3.8))
        colours = sns.color_palette("colorblind", max(1, len(points)))
        for (label, (x, y)), colour in zip(points.items(), colours, strict=False):
            axes.scatter([x], [y], s=60, color=colour, zorder=3)
            axes.annotate(label, (x, y), xytext=(6, 5), textcoords="offset points", fontsize=9)
        axes.set_xscale("symlog", linthresh=FIRST_TICK)
        axes.set_xlim(left=-FIRST_TICK / 4, right=12 * max([FIRST_TICK, *(x for x, _ in points.values())]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: count_text(x)))
        axes.margins(y=0.15)
        axes.set_xlabel("trained parameters without head")
        axes.set_ylabel("mean accuracy over the tasks (%)")
        key = chosen.key
        axes.set_title(f"{key['suite']}, {key['backbone']} ({key['weights']} weights), protocol {key['protocol']}")
        sns.despine(figure)
    return figure
