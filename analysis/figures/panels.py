"""Bars in panels side by side (groups, targets of domain generalisation) and few-shot curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.comparability import CELL_KEYS
from analysis.figures.data import SOURCE, best_labels, complete, seed_means
from analysis.figures.style import TWO_COLUMNS, Style, paper, styles
from analysis.frame import REPLICATE_KEYS, cell_name
from analysis.metric_text import digits, with_unit
from harness.schema.metrics import ACCURACY, Metric
from suites.corruptions import KINDS, STRENGTHS, target_name

OVERALL = "mean"

MOST_PANELS = 5
"""Panels of bars in a row; more are spread evenly over rows."""

MOST = 12
"""Lines in one panel; beyond that they cannot be told apart."""


def panel_grid(
    count: int, columns: int, width: float, height: float, more: float = 0.0, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, `columns` in a row. Inches: `width` in all, `height` of a row, `more` besides."""
    rows = -(-count // columns)
    figure = Figure(figsize=(width, more + height * rows))
    grid = figure.subplots(rows, columns, squeeze=False, **options).flatten()
    for axes in grid[count:]:
        axes.set_axis_off()
    return figure, list(grid[:count])


def line_with_band(axes: Axes, line: pd.DataFrame, names: tuple[str, str, str], look: Style, **options: Any) -> None:
    """A line and a band of one standard deviation. `names`: columns of x, of the mean and of the deviation."""
    x, mean, spread = (line[name] for name in names)
    axes.plot(x, mean, **look.line_arguments, **options)
    axes.fill_between(x, mean - spread, mean + spread, color=look.colour, alpha=0.15, lw=0)


def group_bars(runs: pd.DataFrame, tasks: Mapping[str, str], metric: Metric = ACCURACY) -> Figure | None:
    """The metric's mean per group of tasks and over the groups. `tasks`: task to group. None without a complete
    method."""
    runs = complete(runs, list(tasks))
    groups = list(dict.fromkeys(tasks.values()))
    if runs.empty or len(groups) < 2:
        return None
    panels = {group: seed_means(runs[runs["group"] == group], metric).set_index("label") for group in groups}
    over = (
        pd.concat([panel["mean"] for panel in panels.values()], axis=1)
        .mean(axis=1)
        .sort_values(ascending=metric.higher_is_better)
    )
    panels["mean of groups"] = pd.DataFrame({"mean": over, "spread": _spread_over_groups(runs, tasks)})
    return _bars(panels, list(over.index), styles(runs), metric)


def _spread_over_groups(runs: pd.DataFrame, tasks: Mapping[str, str]) -> pd.Series:
    """Standard deviation over seeds of the mean of group means, by label; of seeds that have every task."""
    seeds = runs.pivot_table(index=["label", *REPLICATE_KEYS], columns=["group", "task"], values="value")
    whole = seeds.reindex(columns=pd.MultiIndex.from_tuples([(group, task) for task, group in tasks.items()])).dropna()
    return whole.T.groupby(level=0).mean().mean().groupby("label").std(ddof=1)


def target_bars(runs: pd.DataFrame, metric: Metric = ACCURACY) -> Figure | None:
    """The metric on each source, at each number of shots, and on its targets, masked where there is such a value. None
    without targets."""
    panels = {}
    several = len(runs[CELL_KEYS].drop_duplicates()) > 1
    for (task, shots), same in runs.groupby(CELL_KEYS, sort=False):
        cell = cell_name(str(task), int(str(shots)))
        splits = pd.DataFrame(list(same["splits"]), index=same.index)
        for name in (str(name) for name in splits if len(splits.columns) > 1 and f"{name}/masked" not in splits):
            scored = same.assign(value=splits[name]).dropna(subset="value").groupby("label")["value"]
            title = f"{task} ({SOURCE})" if name == SOURCE else name.replace("/masked", ", masked")
            values = scored.agg(["mean", "std"]).rename(columns={"std": "spread"})
            panels[f"{title}\n{cell}" if several else title] = values
    if not panels:
        return None
    everywhere = pd.concat([panel["mean"] for panel in panels.values()], axis=1).mean(axis=1)
    order = everywhere.sort_values(ascending=metric.higher_is_better)
    return _bars(panels, list(order.index), styles(runs), metric)


def corruption_curves(runs: pd.DataFrame, metric: Metric = ACCURACY) -> Figure | None:
    """The metric against strength by kind of corruption, from the clean test split at 0, means over the tasks; with a
    band of one standard deviation over seeds. None without corruptions."""
    runs = complete(runs, list(dict.fromkeys(runs["task"])))
    points = _corruption_points(runs)
    if points.empty:
        return None
    best = best_labels(runs, MOST, metric)
    looks = {label: look for label, look in styles(runs).items() if label in best}
    with paper():
        figure, grid = panel_grid(len(KINDS), len(KINDS), TWO_COLUMNS, 1.7, 0.4, sharey=True)
        for axes, (kind, lines) in zip(grid, points.groupby("kind", sort=False), strict=True):
            for label, line in lines.groupby("label"):
                if label in looks:
                    line_with_band(axes, line, ("strength", "mean", "spread"), looks[str(label)], zorder=3)
            axes.set_title(str(kind))
            axes.set_xticks([0, *STRENGTHS], ["clean", *map(str, STRENGTHS)])
            axes.grid(True)
        grid[0].set_ylabel(with_unit(metric.title, metric))
        add_legend(figure, looks, runs["label"].nunique())
    return figure


def _corruption_points(runs: pd.DataFrame) -> pd.DataFrame:
    """`mean` and `spread` over seeds of the mean over tasks, by label, kind and strength."""
    columns = zip(*(runs[name] for name in ("label", *REPLICATE_KEYS, "splits")), strict=True)
    rows = [
        (label, draw, seed, kind, strength, splits[target_name(kind, strength)] if strength else splits[SOURCE])
        for label, draw, seed, splits in columns
        for kind in KINDS
        for strength in (0, *STRENGTHS)
        if not strength or target_name(kind, strength) in splits
    ]
    keys = ["label", "kind", "strength"]
    frame = pd.DataFrame(rows, columns=["label", *REPLICATE_KEYS, "kind", "strength", "value"])
    each = frame.groupby([*keys, *REPLICATE_KEYS], sort=False)["value"].mean()
    return each.groupby(keys, sort=False).agg(mean="mean", spread="std").reset_index()


def _bars(
    panels: Mapping[str, pd.DataFrame], order: Sequence[str], looks: Mapping[str, Style], metric: Metric
) -> Figure:
    """One panel per name; rows in `order` from below; frames with `mean` and `spread` by label."""
    with paper():
        rows = -(-len(panels) // MOST_PANELS)
        columns = -(-len(panels) // rows)
        height = max(1.5 / rows, 0.45 + 0.17 * len(order))
        figure, grid = panel_grid(len(panels), columns, TWO_COLUMNS, height, sharey=True)
        for index, (axes, (name, panel)) in enumerate(zip(grid, panels.items(), strict=True)):
            _panel(axes, panel.reindex(list(order)), looks, digits(metric))
            axes.set_title(name)
            axes.set_yticks(range(len(order)), order)
            axes.tick_params(axis="y", length=0)
            if index >= len(panels) - columns:
                axes.set_xlabel(with_unit(metric.title, metric))
    return figure


def _panel(axes: Axes, values: pd.DataFrame, looks: Mapping[str, Style], digits: int) -> None:
    means, spreads = values["mean"].to_numpy(float), values["spread"].fillna(0).to_numpy(float)
    for place, (label, mean, spread) in enumerate(zip(values.index, means, spreads, strict=True)):
        look = looks[str(label)]
        if np.isnan(mean):
            axes.text(0, place, " –", va="center", fontsize=6.5)
            continue
        axes.barh([place], [mean], 0.72, color=look.face, edgecolor=look.colour, hatch=None if look.filled else "////")
        if spread:
            axes.errorbar([mean], [place], xerr=spread, fmt="none", ecolor="#222222", elinewidth=0.8, capsize=1.5)
        axes.text(mean + spread, place, f" {mean:.{digits}f}", va="center", fontsize=6.5)
    axes.set_xlim(0, float(np.nanmax(means + spreads)) * 1.25)
    axes.set_ylim(-0.6, len(values) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)


def few_shot_curves(runs: pd.DataFrame, metric: Metric = ACCURACY) -> Figure | None:
    """The metric against shots per task and over tasks, with a band of one standard deviation over split and training
    seeds. None with fewer than two numbers of shots."""
    runs = runs[runs["shots"] >= 0]
    if runs["shots"].nunique() < 2:
        return None
    everything = runs["label"].nunique()
    best = best_labels(runs, MOST, metric)
    looks = {label: look for label, look in styles(runs).items() if label in best}
    runs = runs[runs["label"].isin(list(looks))]
    tasks = list(dict.fromkeys(runs["task"]))
    names = [*tasks, *([OVERALL] if len(tasks) > 1 else [])]
    with paper():
        columns = min(3, len(names))
        figure, grid = panel_grid(len(names), columns, TWO_COLUMNS, 2.0, 0.5)
        for index, (axes, name) in enumerate(zip(grid, names, strict=True)):
            for label, line in _shot_points(runs, tasks, name).groupby("label"):
                line_with_band(axes, line, ("shots", "mean", "spread"), looks[str(label)], zorder=3)
            _shot_axis(axes, runs, name)
            axes.set_ylabel(with_unit(metric.title, metric) if index % columns == 0 else "")
        add_legend(figure, looks, everything)
    return figure


def _shot_axis(axes: Axes, runs: pd.DataFrame, name: str) -> None:
    shots = sorted(int(s) for s in runs["shots"].unique())
    axes.set_xscale("log", base=2)
    axes.set_xticks(shots, [str(s) for s in shots])
    axes.minorticks_off()
    axes.set_title(name)
    axes.set_xlabel("training images per class")
    axes.grid(True)


def _shot_points(runs: pd.DataFrame, tasks: Sequence[str], name: str) -> pd.DataFrame:
    """`mean` and `spread` by label and shots; over tasks, only where all of them are there."""
    keys = ["label", "shots"]
    if name != OVERALL:
        values = runs[runs["task"] == name].groupby(keys)["value"]
    else:
        each = runs.pivot_table(index=[*keys, *REPLICATE_KEYS], columns="task", values="value")
        values = each.reindex(columns=list(tasks)).dropna().mean(axis=1).groupby(keys)
    return values.agg(mean="mean", spread="std").reset_index()


def add_legend(figure: Figure, looks: Mapping[str, Style], everything: int = 0, lines: bool = True) -> None:
    """One legend for all panels, below them. `everything`: number of methods, shown or not."""
    handles = [
        Line2D([], [], label=label, **(look.line_arguments if lines else look.point_arguments))
        for label, look in looks.items()
    ]
    longest = max(len(label) for label in looks)
    columns = max(1, min(len(looks), int(17 * figure.get_figwidth() / (longest + 8))))
    title = f"the {len(looks)} best of {everything}" if everything > len(looks) else None
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, title=title, title_fontsize=7
    )
