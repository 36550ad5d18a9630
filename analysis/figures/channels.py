"""Which channels a method chose: how often per block, and how much two tasks have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from analysis.figures.data import best_labels
from analysis.figures.style import ONE_COLUMN, TWO_COLUMNS, paper
from harness.schema.metrics import ACCURACY, Metric

Choice = list[list[int]]
"""Chosen channels of each tuned place, from input to output."""


def with_channels(runs: pd.DataFrame, metric: Metric = ACCURACY) -> pd.DataFrame:
    """Runs that say which channels they chose, of the label that has most tasks, and of those the best."""
    selective = runs[runs["chose_channels"].astype(bool)]
    return selective[selective["label"].isin(best_labels(selective, 1, metric))]


def channel_counts(choices: Sequence[Choice]) -> np.ndarray:
    """How many of the choices have each channel, int [places, channels up to the last one chosen]."""
    width = 1 + max(channel for choice in choices for place in choice for channel in place)
    counts = np.zeros((max(map(len, choices)), width), dtype=int)
    for choice in choices:
        for place, channels in enumerate(choice):
            counts[place, channels] += 1
    return counts


def channel_heatmap(runs: pd.DataFrame) -> Figure | None:
    """Share of the runs of one label that chose each channel, per tuned place. None without runs."""
    if runs.empty:
        return None
    share = channel_counts(list(runs["channels"])) / len(runs) * 100
    with paper():
        figure = Figure(figsize=(TWO_COLUMNS, 0.85 + 0.16 * len(share)))
        axes = figure.subplots()
        image = axes.imshow(share, aspect="auto", cmap="cividis", vmin=0, vmax=100, interpolation="nearest")
        step = max(1, len(share) // 12)
        axes.set_yticks(range(0, len(share), step), [str(i + 1) for i in range(0, len(share), step)])
        axes.set_xlabel("channel")
        axes.set_ylabel("tuned place")
        axes.set_title(
            f"{runs['label'].iloc[0]}: {_count(len(runs), 'run')} on {_count(runs['task'].nunique(), 'task')}",
            loc="left",
        )
        figure.colorbar(image, ax=axes, label="runs that chose it (%)", pad=0.01, aspect=12)
    return figure


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def jaccard(one: Choice, other: Choice) -> float:
    """Mean over the places of |A and B| / |A or B|."""
    pairs = [(set(a), set(b)) for a, b in zip(one, other, strict=True)]
    return float(np.mean([len(a & b) / len(a | b) for a, b in pairs]))


def chance_jaccard(choice: Choice, width: int) -> float:
    """What two random choices of as many channels have in common, about: K / (2 d - K)."""
    sizes = [len(place) for place in choice]
    return float(np.mean([k / (2 * width - k) for k in sizes]))


def overlap_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean Jaccard index between tasks, over all pairs of different runs; NaN on the diagonal with one run per task."""
    by_task = {task: list(zip(g["run_id"], g["channels"], strict=True)) for task, g in runs.groupby("task", sort=False)}
    values = {
        (a, b): [jaccard(x, y) for (i, x), (j, y) in product(by_task[a], by_task[b]) if i != j and len(x) == len(y)]
        for a, b in product(by_task, by_task)
    }
    means = {pair: np.mean(v) if v else np.nan for pair, v in values.items()}
    return pd.DataFrame([[means[a, b] for b in by_task] for a in by_task], index=list(by_task), columns=list(by_task))


def channel_overlap(runs: pd.DataFrame) -> Figure | None:
    """Heat map of the overlap between tasks; the title gives what chance would. None below two tasks with channels."""
    if runs["task"].nunique() < 2:
        return None
    table = overlap_table(runs)
    counts = Counter(len(place) for choice in runs["channels"] for place in choice)
    chance = chance_jaccard(runs["channels"].iloc[0], channel_counts(list(runs["channels"])).shape[1])
    diagonal = np.eye(len(table), dtype=bool)  # seeds of one task, often near 1: numbers alone, beyond the scale
    between = table.to_numpy()[~diagonal]
    small = len(table) <= 8
    with paper():
        side = ONE_COLUMN if small else TWO_COLUMNS
        figure = Figure(figsize=(side, side * 0.85))
        axes = figure.subplots()
        sns.heatmap(
            table,
            ax=axes,
            mask=diagonal,
            cmap="cividis",
            vmin=min(chance, np.nanmin(between)),
            vmax=np.nanmax(between),
            annot=True,
            fmt=".2f",
            annot_kws={"size": 6.5 if small else 5.5},
            square=True,
            linewidths=0.4,
            cbar_kws={"label": "Jaccard index of chosen channels"},
        )
        for place, value in enumerate(np.diag(table)):
            text = "" if np.isnan(value) else f"{value:.2f}"
            axes.text(place + 0.5, place + 0.5, text, ha="center", va="center", fontsize=6.5 if small else 5.5)
        axes.set_title(
            f"{runs['label'].iloc[0]}, K = {counts.most_common(1)[0][0]}\nby chance {chance:.2f}", loc="left"
        )
        axes.tick_params(axis="x", rotation=45, length=0)
        axes.set_xticks(
            axes.get_xticks(), [text.get_text() for text in axes.get_xticklabels()], ha="right", rotation_mode="anchor"
        )
        axes.tick_params(axis="y", rotation=0, length=0)
    return figure
