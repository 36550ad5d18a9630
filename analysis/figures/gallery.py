"""All figures that the runs of a comparable set allow, each with its caption, and why the others are not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pandas as pd
from matplotlib.figure import Figure

from analysis.comparability import taken_in_part
from analysis.figures.ablation import ablation, varied_fields
from analysis.figures.channels import channel_heatmap, channel_overlap, with_channels
from analysis.figures.data import PER_CELL, read_whole, run_frame
from analysis.figures.learning import QUANTITIES, learning_curves, with_curves
from analysis.figures.panels import corruption_curves, few_shot_curves, group_bars, target_bars
from analysis.figures.ranks import critical_difference_diagram
from analysis.figures.reproduction import reproduction_scatter
from analysis.figures.tradeoff import tradeoff
from analysis.frame import CHOSEN_PER_TASK, ComparableSet, averaged, suite_tasks
from analysis.index import ReadRecords
from analysis.metric_text import sentence
from analysis.tables.settings import ablation_axes
from analysis.tables.significance import DEFAULT_REFERENCE
from harness.schema.metrics import Metric
from suites.corruptions import SUFFIX

WHOLE = "methods that are complete on every task of the suite"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A figure that may be drawn."""

    name: str
    """Stem of its files."""

    caption: str
    needs: str
    """What the records must hold; printed where they do not."""

    draw: Callable[[], Figure | None]


def drawings(
    peers: ComparableSet, read: ReadRecords, published: pd.DataFrame | None = None, reference: str = DEFAULT_REFERENCE
) -> Iterator[Drawing]:
    """Every figure for this set. `published`: see `reproduction_scatter`; `reference`: see `tradeoff`."""
    runs, other, metric = run_frame(peers), taken_in_part(peers.rows), peers.metric
    tasks = averaged(suite_tasks(peers.key["suite"], peers.rows))
    corrupted = peers.key["suite"].endswith(SUFFIX)
    further = (CORRUPTED_APART if corrupted else TARGETS_APART) if (runs["targets"] != "{}").any() else ""
    yield from _costs(runs, list(tasks), further, reference, metric)
    yield Drawing(
        name="groups",
        caption=f"Mean {metric.title} per group of tasks; whiskers are one standard deviation over seeds.",
        needs=f"two groups of tasks and {WHOLE}",
        draw=lambda: group_bars(runs, tasks, metric),
    )
    yield Drawing(
        name="critical_difference",
        caption="Average ranks over the tasks (1 is best). A bar joins methods whose ranks do not differ significantly "
        "(Nemenyi, alpha = 0.05).",
        needs=f"two tasks and three {WHOLE}",
        draw=lambda: critical_difference_diagram(runs, list(tasks), metric),
    )
    yield from _of_special_suites(runs, metric, corrupted)
    yield from _of_training(runs, read, metric)
    yield from _of_settings(peers, runs)
    yield Drawing(
        name="published",
        caption="Measured against published accuracy, a point per method and task; the largest differences are named."
        f"{f' Not on the data of the published ones: {other}.' if other else ''}",
        needs="published numbers for this suite",
        draw=lambda: reproduction_scatter(published) if published is not None else None,
    )


TARGETS_APART = " On the source alone: the targets have a figure of their own."
CORRUPTED_APART = " On the clean images alone: the corrupted ones have a figure of their own."


def _costs(runs: pd.DataFrame, tasks: list[str], further: str, reference: str, metric: Metric) -> Iterator[Drawing]:
    what = f"Mean {metric.title}" if len(tasks) > 1 else sentence(f"{metric.title} on {tasks[0]}")
    for cost, text, also in (
        ("parameters", "trained parameters without head", ""),
        ("seconds", "seconds of a run, mean over tasks and seeds", ""),
        ("memory", "peak memory in training", ", on a device that reports its memory"),
    ):
        yield Drawing(
            name=f"{metric.name}_{cost}",
            caption=f"{what} against {text}.{further} The dashed line is the Pareto front: nothing cheaper is better.",
            needs=f"two {WHOLE}{also}",
            draw=lambda cost=cost: tradeoff(runs, tasks, cost, reference, metric),  # type: ignore[misc]
        )


def _of_special_suites(runs: pd.DataFrame, metric: Metric, corrupted: bool) -> Iterator[Drawing]:
    yield Drawing(
        name="few_shot",
        caption=f"{sentence(metric.title)} against training images per class; bands are one standard deviation over "
        "split and training seeds.",
        needs="a suite with several numbers of shots",
        draw=lambda: few_shot_curves(runs, metric),
    )
    if corrupted:
        yield Drawing(
            name="corruptions",
            caption=f"{sentence(metric.title)} on the test split, clean and with each kind of corruption at five "
            "strengths, means over the tasks; bands are one standard deviation over seeds.",
            needs="methods that are complete on every task that has runs",
            draw=lambda: corruption_curves(runs, metric),
        )
        return
    yield Drawing(
        name="targets",
        caption=f"{sentence(metric.title)} of the trained model on its own test set and on each target.",
        needs="a suite with targets (domain generalisation)",
        draw=lambda: target_bars(runs, metric),
    )


def _of_training(runs: pd.DataFrame, read: ReadRecords, metric: Metric) -> Iterator[Drawing]:
    curves = cache(lambda: read_whole(with_curves(runs, metric), read))
    choices = cache(lambda: read_whole(with_channels(runs, metric), read))
    for quantity, text in QUANTITIES.items():
        yield Drawing(
            name=f"learning_{quantity.removeprefix('train_')}",
            caption=f"{text.removesuffix(' (%)').capitalize()} per epoch; bands are one standard deviation over runs"
            f" (at most {PER_CELL}).",
            needs="learning curves of at least two epochs",
            draw=lambda quantity=quantity: learning_curves(curves(), quantity, runs["label"].nunique()),  # type: ignore[misc]
        )
    yield Drawing(
        name="channels",
        caption="Channels that were chosen, per tuned place from input to output.",
        needs="records that name chosen channels (SCT)",
        draw=lambda: channel_heatmap(choices()),
    )
    yield Drawing(
        name="channel_overlap",
        caption="How many of the chosen channels two tasks share (Jaccard index, mean over the tuned places). "
        "On the diagonal: two seeds of one task.",
        needs="records that name chosen channels (SCT) on two tasks",
        draw=lambda: channel_overlap(choices()),
    )


def _of_settings(peers: ComparableSet, runs: pd.DataFrame) -> Iterator[Drawing]:
    axes = ablation_axes(peers)
    fields = axes if peers.key["protocol"] in CHOSEN_PER_TASK else varied_fields(runs)
    for field in axes or ["setting"]:
        yield Drawing(
            name=f"ablation_{field.removeprefix('recipe.')}",
            caption=f"{sentence(peers.metric.title)} against {field.removeprefix('recipe.')}, all else equal.",
            needs="a method that was run with several values of a setting, on the same tasks",
            draw=lambda field=field: ablation(runs, field, fields, peers.metric),  # type: ignore[misc]
        )
