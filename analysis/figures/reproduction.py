"""Measured against published accuracies."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.labels import place_labels
from analysis.figures.panels import add_legend
from analysis.figures.style import ONE_COLUMN, paper, styles

MARK = 0.3
"""Half the size of a point in per cent, for labels to stay off."""

NAMED = 6
"""How many of the largest differences are named in the figure."""


def reproduction_scatter(pairs: pd.DataFrame) -> Figure | None:
    """A point per `label` and `task` with its `method`, `family`, `published` and `measured`. None without a pair."""
    pairs = pairs.dropna(subset=["published", "measured"])
    if pairs.empty:
        return None
    with paper():
        figure = Figure(figsize=(ONE_COLUMN, 3.7))
        axes = figure.subplots()
        both = pairs[["published", "measured"]].to_numpy(float)
        low, high = max(0.0, both.min() - 4), min(102.0, both.max() + 4)
        axes.plot([low, high], [low, high], color="#555555", lw=0.8, ls="--", zorder=1)
        looks = styles(pairs)
        for label, group in pairs.groupby("label"):
            x, y = group["published"].to_numpy(float), group["measured"].to_numpy(float)
            axes.plot(x, y, **looks[str(label)].point_arguments, ms=4, alpha=0.85, zorder=3)
        axes.set(xlim=(low, high), ylim=(low, high), xlabel="published (%)", ylabel="measured (%)", aspect="equal")
        axes.grid(True)
        add_legend(figure, looks, lines=False)
        far = pairs.assign(off=(pairs["measured"] - pairs["published"]).abs()).nlargest(NAMED, "off")
        places = far[["published", "measured"]].to_numpy(float)
        colours = [looks[str(label)].colour for label in far["label"]]
        marks = np.concatenate([both - MARK, both + MARK], axis=1)
        place_labels(figure, axes, list(far["task"]), places, colours, marks)
    return figure
