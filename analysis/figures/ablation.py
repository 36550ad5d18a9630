"""A setting on the x axis: the result that each of its values gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from analysis.figures.data import complete, seed_means
from analysis.figures.style import ONE_COLUMN, paper, styles
from analysis.metric_text import with_unit
from harness.schema.metrics import ACCURACY, Metric

FACTOR = 6
"""Values whose largest is more than this many times the smallest get a logarithmic axis."""

FEW = 8
"""Up to this many values, each has a tick of its own."""


def varied_fields(runs: pd.DataFrame) -> list[str]:
    """Settings in which runs of one method differ (`recipe.lr`, or a knob of the method), by name."""
    fields: set[str] = set()
    for _, group in runs.groupby("method"):
        settings = pd.DataFrame(list(group["settings"]))
        fields |= {str(c) for c in settings if settings[c].map(repr).nunique() > 1}
    return sorted(fields)


def ablation_points(
    runs: pd.DataFrame, field: str, fields: Sequence[str], metric: Metric = ACCURACY
) -> tuple[pd.DataFrame, list[str]]:
    """`method`, `line` (what else of `fields` differs), `setting`, `mean`, `spread`, and the tasks of all points."""
    other = [name for name in fields if name != field]
    runs = runs.assign(
        setting=pd.Series([s.get(field) for s in runs["settings"]], index=runs.index, dtype=object),
        line=[
            ", ".join([name, *(f"{k.removeprefix('recipe.')}={s[k]}" for k in other if k in s)])
            for name, s in zip(_names(runs), runs["settings"], strict=True)
        ],
    )
    varied = runs.groupby("line")["setting"].transform(lambda v: v.map(repr).nunique()) > 1
    runs = runs[varied & runs["settings"].map(lambda settings: field in settings)]
    if runs.empty:
        return pd.DataFrame(), []
    per_label = [set(tasks) for tasks in runs.groupby("label")["task"].unique()]
    tasks = sorted(set.intersection(*per_label))
    runs = complete(runs, tasks)
    if runs.empty:
        return pd.DataFrame(), tasks
    points = seed_means(runs, metric)
    about = runs.drop_duplicates("label")[["label", "method", "family", "line", "setting"]]
    return points.merge(about, on="label"), tasks


def _names(runs: pd.DataFrame) -> list[str]:
    """What a line is called before its settings: the title, with the own name and the source where titles clash and
    where sources of one method differ."""
    by_title = runs.groupby("title")
    clash, several = (by_title[column].transform("nunique") > 1 for column in ("method", "source"))
    columns = zip(runs["title"], runs["method"], runs["source"], clash, several, strict=True)
    return [
        f"{title}{f' [{method}]' if own else ''}{f', source {source}' if sources else ''}"
        for title, method, source, own, sources in columns
    ]


def ablation(runs: pd.DataFrame, field: str, fields: Sequence[str], metric: Metric = ACCURACY) -> Figure | None:
    """The metric's mean against the field, a line per method. `fields`: all settings that make variants of methods.
    None where no method was run with two values of it, or where they share no task."""
    points, tasks = ablation_points(runs, field, fields, metric)
    if len(points) < 2:
        return None
    looks = styles(points.assign(label=points["line"]))
    with paper():
        figure = Figure(figsize=(ONE_COLUMN, 2.5 + 0.13 * -(-len(looks) // 2)))
        axes = figure.subplots()
        place = _axis(axes, list(points["setting"]))
        for name, line in points.groupby("line"):
            line = line.assign(x=line["setting"].map(place)).sort_values("x")
            spread = None if line["spread"].isna().all() else line["spread"]
            arguments = looks[str(name)].line_arguments
            axes.errorbar(line["x"], line["mean"], yerr=spread, label=name, capsize=2, elinewidth=0.8, **arguments)
        axes.grid(True)
        axes.set_xlabel(field.removeprefix("recipe."))
        over = f"mean {metric.title} over {len(tasks)} tasks" if len(tasks) > 1 else f"{metric.title}, {tasks[0]}"
        axes.set_ylabel(with_unit(over, metric))
        figure.legend(loc="outside lower center", ncols=1 if max(map(len, looks)) > 25 else 3, frameon=False)
    return figure


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _axis(axes: Axes, values: list[Any]) -> Any:
    """Set up the x axis and return a function from a value to its place: numbers to scale, else one step each."""
    if not all(map(_is_number, values)):
        by_text = {repr(value): value for value in values}
        ordered = sorted(by_text, key=lambda text: (0, by_text[text]) if _is_number(by_text[text]) else (1, text))
        axes.set_xticks(range(len(ordered)), ["default" if t == "None" else t.strip("'") for t in ordered])
        return lambda value: ordered.index(repr(value))
    distinct = sorted(set(values))
    if distinct[0] > 0 and distinct[-1] / distinct[0] > FACTOR:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    if len(distinct) <= FEW:
        axes.set_xticks(distinct, [f"{v:g}" for v in distinct])
    return float
