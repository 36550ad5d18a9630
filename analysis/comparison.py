"""Two methods, or two results folders, paired over the tasks they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis import metric_text
from analysis.comparability import CELL_KEYS, LeftOut, notes
from analysis.frame import IN_TITLE, REPLICATE_KEYS, ComparableSet, cell_name, suite_cells
from analysis.paired import ReadPredictions, none_kept
from analysis.statistics import (
    ALPHA,
    Interval,
    independent,
    seeds_interval,
    smallest_wilcoxon,
    tasks_interval,
    verdict,
    wilcoxon,
    win_tie_loss,
)
from analysis.tables.base import (
    Cell,
    Column,
    Key,
    Row,
    Table,
    difference_column,
    mean_cell,
    named_row,
    number_cell,
    value_column,
)
from analysis.tables.cells import seed_count, set_caption, set_title
from analysis.tables.images import with_images
from analysis.tables.pairs import settings_difference
from analysis.tables.significance import find_reference
from harness.errors import HarnessError
from harness.schema.metrics import Metric


class CompareError(HarnessError):
    """There is nothing to compare."""


@dataclass(frozen=True, slots=True)
class TaskPair:
    """Both methods on one task."""

    first: float
    second: float
    """Means over the replicates that both have; where they share none, over those of each."""

    interval: Interval
    """Student's interval of first - second over the seeds that both have, or the draws of the training list where there
    are several; unknown for fewer than two."""

    seeds: tuple[int, int]
    """How many replicates the mean of the first and of the second is over."""

    shared: int
    """How many replicates both have."""


@dataclass(frozen=True, slots=True)
class MethodComparison:
    """First minus second, by a metric."""

    first: str
    second: str
    metric: Metric
    pairs: dict[Key, TaskPair]
    lacking: list[str]
    """Tasks that only one of them has."""

    @property
    def differences(self) -> list[float]:
        """First minus second per shared task."""
        return [pair.first - pair.second for pair in self.pairs.values()]


def _values(runs: pd.DataFrame, metric: Metric) -> dict[Key, pd.Series]:
    """(task, shots) to the metric's values by replicate."""
    complete = runs[(runs["status"] == "complete") & runs[metric.name].notna()]
    cells = complete.groupby(CELL_KEYS)
    return {(str(t), int(str(s))): same.groupby(REPLICATE_KEYS)[metric.name].mean() for (t, s), same in cells}


def compare_runs(
    sides: tuple[pd.DataFrame, pd.DataFrame], names: tuple[str, str], peers: ComparableSet
) -> MethodComparison:
    """Pair the runs of two methods of `peers`, by its metric. `CompareError` if they share no task."""
    ours, theirs = (_values(side, peers.metric) for side in sides)
    order = list(suite_cells(peers.key["suite"], peers.rows))
    pairs = {}
    for key in (key for key in order if key in ours and key in theirs):
        a, b = ours[key], theirs[key]
        shared = a.index.intersection(b.index)
        if len(shared):
            a, b = a[shared], b[shared]
        interval = seeds_interval([independent(a - b)] if len(shared) else [])
        pairs[key] = TaskPair(float(a.mean()), float(b.mean()), interval, (len(a), len(b)), len(shared))
    if not pairs:
        none = f"no complete run with a {peers.metric.title}"
        tasks = [", ".join(sorted({task for task, _ in side})) or none for side in (ours, theirs)]
        raise CompareError(f"{names[0]} and {names[1]} share no task: {tasks[0]} against {tasks[1]}")
    lacking = [cell_name(*key) for key in order if (key in ours) != (key in theirs)]
    return MethodComparison(*names, peers.metric, pairs, lacking)


def compare_methods(peers: ComparableSet, first: str, second: str) -> MethodComparison:
    """Two methods of one set, by label or name. `CompareError` names the known ones."""
    names = peers.rows.drop_duplicates("label").set_index("label")["method"]
    a, b = (_label(names, wanted, peers) for wanted in (first, second))
    if a == b:
        raise CompareError(f"{first!r} and {second!r} are both {a}")
    rows = peers.rows
    return compare_runs((rows[rows["label"] == a], rows[rows["label"] == b]), (a, b), peers)


def _label(names: pd.Series, wanted: str, peers: ComparableSet) -> str:
    label = find_reference(names, wanted)
    if label is None:
        known = "; ".join(sorted(names.index))
        raise CompareError(f"no single method {wanted!r} in {set_title(peers)}. There are: {known}")
    return label


def overall(comparison: MethodComparison, margin: float | None = None) -> str:
    """The comparison in a sentence or two. `margin`: in units of the metric, the metric's own if not given."""
    differences, metric, better = comparison.differences, comparison.metric, comparison.metric.higher_is_better
    margin = metric_text.margin(metric) if margin is None else margin
    within = f"{margin:g} {metric_text.units(metric)}"
    mean, interval = sum(differences) / len(differences), tasks_interval(differences)
    counts, p = win_tie_loss(differences, better), wilcoxon(differences)
    reading = {
        "equal": f"practically equal within ±{within}",
        "better": f"{comparison.first} is better",
        "worse": f"{comparison.first} is worse",
        "undecided": f"undecided at a margin of ±{within}" if margin else "undecided",
        "unknown": "one task says nothing of others",
    }[verdict(interval, p, margin, higher_is_better=better)]
    smallest = smallest_wilcoxon(len(differences))
    never = (
        f" (over {len(differences)} tasks never below {smallest:.3g}, so it cannot decide)" if smallest > ALPHA else ""
    )
    signed = f"+.{metric_text.digits(metric) + 1}f"
    between = f" (95 % interval {interval.low:{signed}} to {interval.high:{signed}})" if interval.known else ""
    lower = "" if better else ", of which less is better"
    return (
        f"{comparison.first} beats {comparison.second} on {counts.wins} of {len(differences)} tasks, ties on "
        f"{counts.ties}, loses on {counts.losses}. Mean difference {mean:{signed}} "
        f"{metric_text.difference(metric)}{lower}{between}; Wilcoxon p = {p:.3g}{never}; {reading}."
    )


def comparison_table(comparison: MethodComparison, peers: ComparableSet, margin: float | None = None) -> Table:
    """A row per shared task, and their mean; the sentence of `overall` is in the caption."""
    columns = _columns(comparison)
    caption = (
        f"{overall(comparison, margin)} Means are over the seeds that both have; low, high: 95 % interval by "
        "Student's t, of a task over these seeds (over draws of the training list, where there are several), missing "
        f"where their differences are all the same, of the mean over tasks. {set_caption(peers)}"
    )
    if comparison.lacking:
        caption += f" Not compared, because only one of the two has them: {', '.join(comparison.lacking)}."
    table = Table(
        name="comparison",
        title=set_title(peers, f"{comparison.first} against {comparison.second}"),
        caption=caption,
        columns=columns,
        corner="task",
    )
    seeds = seed_count(peers.rows)
    for key, pair in comparison.pairs.items():
        table.rows[cell_name(*key)] = _pair_row(pair, columns, seeds)
    means = {column.key: mean_cell(row[column.key] for row in table.rows.values()) for column in columns[:3]}
    interval = tasks_interval(comparison.differences)
    ends = named_row(columns[2:], low=number_cell(interval.low), high=number_cell(interval.high))
    table.rows[f"mean of {len(comparison.pairs)} tasks"] = means | ends
    return table


def _columns(comparison: MethodComparison) -> list[Column]:
    metric = comparison.metric
    first, second = (
        dataclasses.replace(value_column(metric, name, 1), best="") for name in (comparison.first, comparison.second)
    )
    group = f"difference in {metric_text.units(metric)}"
    mean, low, high = (difference_column(metric, name, 1, group=group) for name in ("mean", "low", "high"))
    return [first, second, mean, low, high, Column(name="seeds shared", kind="integer")]


def _pair_row(pair: TaskPair, columns: list[Column], seeds: int) -> Row:
    first, second = ("" if n == seeds else f"{n}/{seeds}" for n in pair.seeds)
    values = {
        columns[0].key: Cell(value=pair.first, note=first),
        columns[1].key: Cell(value=pair.second, note=second),
    }
    return values | named_row(
        columns[2:],
        mean=Cell(value=pair.first - pair.second, note="" if pair.shared else "≠"),
        low=number_cell(pair.interval.low),
        high=number_cell(pair.interval.high),
        seeds_shared=Cell(value=float(pair.shared)),
    )


def compare_in_sets(
    sets: list[ComparableSet], first: str, second: str, margin: float | None = None, read: ReadPredictions = none_kept
) -> list[Table]:
    """Tables for every set that holds both methods. `CompareError` with the reasons if none does."""
    tables: list[Table] = []
    reasons = []
    for peers in sets:
        try:
            comparison = compare_methods(peers, first, second)
        except CompareError as error:
            reasons.append(str(error))
            continue
        names = comparison.first, comparison.second
        a, b = (peers.rows[peers.rows["label"] == name] for name in names)
        tables += with_images(comparison_table(comparison, peers, margin), peers, (a, b), names, (read, read))
    if not tables:
        raise CompareError("; ".join(reasons) or "there are no records to compare")
    return tables


def compare_folders(
    first: list[ComparableSet],
    second: list[ComparableSet],
    names: tuple[str, str],
    margin: float | None = None,
    read: tuple[ReadPredictions, ReadPredictions] = (none_kept, none_kept),
) -> list[Table]:
    """Tables per method that both folders hold with the same settings under the same conditions, which are never
    mixed; what was not compared is said below the last one."""
    others = {_conditions(other): other for other in second}
    tables: list[Table] = []
    reasons: list[str] = []
    for peers in first:
        other = others.pop(_conditions(peers), None)
        if other is None:
            reasons.append(f"{set_title(peers)}: only in {names[0]}{_other_conditions(peers, second)}")
            continue
        for made in _compare_sets(peers, other, names, margin, read):
            if isinstance(made, Table):
                tables.append(made)
            else:
                reasons.append(made)
    reasons += [f"{set_title(o)}: only in {names[1]}{_other_conditions(o, first)}" for o in others.values()]
    if not tables:
        raise CompareError(
            f"{names[0]} and {names[1]} share no method and task under the same conditions: "
            f"{'; '.join(reasons) or 'no records'}"
        )
    if reasons:
        tables[-1] = dataclasses.replace(
            tables[-1], caption=f"{tables[-1].caption} Not compared: {'; '.join(reasons)}."
        )
    return tables


def _conditions(peers: ComparableSet) -> tuple[Any, ...]:
    """What two sets must share for their runs to be compared."""
    return (*peers.key.values(), peers.metric.name)


def _other_conditions(peers: ComparableSet, others: list[ComparableSet]) -> str:
    """` (precision bf16 against float32)`, where the other folder has a set of the same title."""
    alike = next((other for other in others if all(other.key[key] == peers.key[key] for key in IN_TITLE)), peers)
    differ = [key for key in peers.key if peers.key[key] != alike.key[key]]
    words = [f"{key.replace('_', ' ')} {peers.key[key]} against {alike.key[key]}" for key in differ]
    return f" ({', '.join(words)})" if words else ""


def _compare_sets(
    peers: ComparableSet,
    other: ComparableSet,
    names: tuple[str, str],
    margin: float | None,
    read: tuple[ReadPredictions, ReadPredictions],
) -> Iterator[Table | str]:
    """Tables of each method and its settings, or the reason why there is none."""
    rows, rest = peers.rows, other.rows
    for label, runs in rows.groupby("label", sort=False):
        theirs = rest[rest["method"] == runs["method"].iloc[0]]
        same = theirs[theirs["variant"].isin(runs["variant"])]
        if theirs.empty:
            yield f"{label}: only in {names[0]}"
        elif same["source"].nunique() > 1:
            yield f"{label}: from {same['source'].nunique()} sources of the method in {names[1]}"
        elif same.empty:
            differ = settings_difference(runs["variant"].iloc[0], list(theirs["variant"].unique()))
            yield f"{label}: settings differ, {differ}"
        else:
            left_out = [*_named(peers, names[0]), *_named(other, names[1])]
            titles = f"{label} in {names[0]}", f"{label} in {names[1]}"
            yield from _folder_tables(peers, (runs, same), left_out, titles, margin, read)
    alone = rest[~rest["method"].isin(rows["method"])]
    yield from (f"{label}: only in {names[1]}" for label in alone["label"].unique())


def _named(peers: ComparableSet, folder: str) -> list[LeftOut]:
    return [run._replace(method=f"{run.method} in {folder}") for run in peers.left_out]


def _folder_tables(
    peers: ComparableSet,
    sides: tuple[pd.DataFrame, pd.DataFrame],
    left_out: list[LeftOut],
    titles: tuple[str, str],
    margin: float | None,
    read: tuple[ReadPredictions, ReadPredictions],
) -> list[Table] | list[str]:
    together = pd.concat(sides)
    if together.groupby([*CELL_KEYS, "split_seed"])[["data", "pixels"]].nunique().gt(1).any(axis=None):
        return [f"{titles[0]} and in the other folder: on different data (fingerprints differ)"]
    both = dataclasses.replace(peers, rows=together, left_out=left_out, notes=notes(together))
    try:
        table = comparison_table(compare_runs(sides, titles, both), both, margin)
    except CompareError as error:
        return [str(error)]
    return with_images(table, both, sides, titles, read)
