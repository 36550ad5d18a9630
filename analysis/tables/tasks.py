"""Tables of the metric: per task (VTAB style), few-shot, domain generalisation."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain

import pandas as pd

from analysis.columns import parsed, target_values
from analysis.frame import OTHER, ComparableSet, averaged, cell_name, known_tasks, suite_cells, suite_tasks, tasks_text
from analysis.metric_text import in_words, sentence
from analysis.tables.base import MEANS, MISSING, UNKNOWN, Cell, Column, Key, Row, Table, mean_cell, value_column
from analysis.tables.cells import (
    by_label,
    cost_cells,
    metric_cells,
    rank_cells,
    seed_count,
    set_caption,
    set_title,
    spread_caption,
)
from harness.schema.metrics import Metric
from suites.corruptions import KINDS, STRENGTHS, SUFFIX, target_name

RANK = Column(name="rank", kind="rank", best="min")
COSTS = {
    "parameters": Column(name="params", kind="count"),
    "parameters_with_head": Column(name="params+head", kind="count"),
    "seconds": Column(name="seconds", kind="seconds"),
}
"""Columns after the averages: average rank, trained parameters, seconds of a run; costs by their name in the frame."""

FROM = Column(name="from", kind="text")
"""Which results folders and packs a row's runs are from, where there are several."""

RANK_CAPTION = "rank: average rank over the columns that the averages are over, among rows that have them all; "
COST_CAPTION = "params: trained parameters without head; params+head: with it; seconds: of a run; these are means over "
COST_CAPTION += "the complete runs"
OVER_COLUMNS = " of a column, then over the columns that the averages are over"


def _caption(peers: ComparableSet, rank: str = RANK_CAPTION, others: bool = False, over: str = OVER_COLUMNS) -> str:
    """`rank`: what the column says, if there is one; `others`: whether there are tasks that the suite does not have;
    `over`: what else costs are means over."""
    what = sentence(in_words(peers.metric))
    text = f"{what}; {spread_caption(peers.rows)}. {set_caption(peers)} {rank}{COST_CAPTION}{over}."
    return f"{text} {OTHER}: tasks unknown to this version's suite, in no mean and no rank." if others else text


def task_table(peers: ComparableSet) -> Table:
    """VTAB-style table: a row per method, a column per task, group means, both averages, rank, parameters, seconds.
    One task has neither averages nor a rank.

    `mean of tasks` is the mean over all tasks (SCT, V-PETL Bench), `mean of groups` that of the group means (VTAB,
    NOAH); the literature prints either.
    """
    keys = suite_cells(peers.key["suite"], peers.rows)
    over = averaged(keys)
    single = [value_column(peers.metric, cell_name(*key), group=group, over=(key,)) for key, group in keys.items()]
    by_group, several = _group_columns(peers, over), len(over) > 1
    tasks = tasks_text(peers.key["suite"], len({task for task, _ in over}))
    means = [*by_group, *([_mean_column(peers, tasks, over)] if several else [])]
    means += [_mean_column(peers, "groups", over, plain=False)] if by_group else []
    table = Table(
        name="tasks",
        title=set_title(peers),
        caption=_caption(peers, others=len(over) < len(keys)) if several else _caption(peers, rank="", over=""),
        columns=[*single, *means, *([RANK] if several else []), *COSTS.values(), *_from_column(peers)],
    )
    _fill(table, peers, list(over))
    for row in table.rows.values() if by_group else ():
        row[means[-1].key] = mean_cell(row[column.key] for column in by_group)
    return table


def _mean_column(
    peers: ComparableSet, name: str, over: Iterable[Key], group: str = MEANS, plain: bool = True
) -> Column:
    return value_column(peers.metric, name, group=group, over=tuple(over), plain=plain)


def _group_columns(peers: ComparableSet, over: dict[Key, str]) -> list[Column]:
    """Means per group of tasks, where there are several groups."""
    names = list(dict.fromkeys(over.values()))
    columns = [_mean_column(peers, name, (key for key in over if over[key] == name)) for name in names]
    return columns if len(columns) > 1 else []


def _fill(table: Table, peers: ComparableSet, keys: list[Key]) -> None:
    """Add a row per method to a table whose columns say what they are over; ranks and costs are over `keys`."""
    cells, seeds = metric_cells(peers), seed_count(peers.rows)
    ranks = rank_cells(cells, keys, peers.metric)
    for label, runs in by_label(peers.rows):
        row = {c.key: _value(c, cells[label]) for c in table.columns if c.over and c.plain}
        row |= {c.key: ranks[label] for c in table.columns if c.kind == "rank"}
        table.rows[label] = row | _cost_row(runs, keys, seeds)


def _value(column: Column, cells: dict[Key, Cell]) -> Cell:
    values = [cells.get(key, MISSING) for key in column.over]
    return mean_cell(values) if column.group.startswith(MEANS) else values[0]


def _cost_row(runs: pd.DataFrame, keys: list[Key], seeds: int) -> Row:
    costs = {COSTS[name].key: cell for name, cell in cost_cells(runs, list(COSTS), keys, seeds).items()}
    return costs | {FROM.key: Cell(text=_from_text(runs))} if "results" in runs else costs


def _from_column(peers: ComparableSet) -> list[Column]:
    several = "results" in peers.rows and peers.rows["results"].nunique() > 1
    return [FROM] if several else []


def _from_text(runs: pd.DataFrame) -> str:
    """`A`, or `A (15 runs), B.zip (5 runs)` where a row combines several."""
    counts = Counter(runs["results"])
    if len(counts) == 1:
        return str(next(iter(counts)))
    return ", ".join(f"{name} ({count} run{'s' * (count > 1)})" for name, count in counts.most_common())


def few_shot_table(peers: ComparableSet) -> Table:
    """A row per method, shots per data set, and, of several data sets, their mean per number of shots."""
    tasks = list(averaged(suite_tasks(peers.key["suite"], peers.rows)))
    shots = sorted(int(s) for s in peers.rows["shots"].unique())
    keys: list[Key] = [(task, s) for task in tasks for s in shots]
    whole = f"{MEANS} {tasks_text(peers.key['suite'], len(tasks)).replace('tasks', 'data sets')}"
    table = Table(
        name="few_shot",
        title=set_title(peers, "few-shot"),
        caption="Columns are training images per class. "
        + _caption(peers, RANK_CAPTION.replace(":", " over columns:", 1)),
        columns=[
            *(value_column(peers.metric, str(s), group=task, over=((task, s),)) for task, s in keys),
            *(_mean_column(peers, str(s), ((task, s) for task in tasks), whole) for s in shots if len(tasks) > 1),
            _mean_column(peers, "all", keys),
            dataclasses.replace(RANK, name="rank over columns"),
            *COSTS.values(),
            *_from_column(peers),
        ],
    )
    _fill(table, peers, keys)
    return table


def _target_cells(runs: pd.DataFrame, targets: Iterable[str], metric: Metric, seeds: int) -> dict[str, Cell]:
    """The metric of one method on its own test set (named `""`) and on each target, means over replicates."""
    return _means_over_targets(runs, {name: [name] for name in ("", *targets)}, metric, seeds)


def _means_over_targets(
    runs: pd.DataFrame, sets: Mapping[str, Sequence[str]], metric: Metric, seeds: int
) -> dict[str, Cell]:
    """The metric of one method by name, the mean over several targets, `""` for its own test set, and over replicates
    that have them all."""
    complete = runs[runs["status"] == "complete"]
    values = pd.DataFrame(
        [
            {"": own, **target_values(text, metric)}
            for own, text in zip(complete[metric.name], complete["targets"], strict=True)
        ],
        columns=list(dict.fromkeys(chain.from_iterable(sets.values()))),
    )
    scored = {"", *(name for text in complete["targets"] for name in parsed(text))} if len(complete) else set()
    empty = Cell(note="failed" if len(runs) and complete.empty else "missing")
    cells = {}
    for name, targets in sets.items():
        known = values[list(targets)].astype(float).mean(axis=1, skipna=False).dropna()
        note = "" if len(known) == seeds else f"{len(known)}/{seeds}"
        none = UNKNOWN if scored.issuperset(targets) else empty
        cells[name] = Cell(value=known.mean(), spread=known.std(ddof=1), note=note) if len(known) else none
    return cells


def domain_table(peers: ComparableSet, task: str, shots: int) -> Table:
    """Result on the source and on each target set: over all classes, and masked to the set's own where stored.

    ImageNet-A and -R hold 200 of 1000 classes. Papers print either number without saying which, so both have columns
    and both have a mean over the targets.
    """
    rows = peers.rows[(peers.rows["task"] == task) & (peers.rows["shots"] == shots)]
    known = {name for text in rows["targets"].unique() for name in parsed(text)}
    ordered = [name for name in target_order(peers.key["suite"], task) if name in known]
    ordered += sorted(known - set(ordered))
    whole = [name for name in ordered if not name.endswith("/masked")]
    averages = {
        _ways(peers.key["suite"], task): whole,
        "masked": [f"{name}/masked" if f"{name}/masked" in known else name for name in whole],
    }
    ways, over = next(iter(averages)), ((task, shots),)
    targets = {
        name: value_column(
            peers.metric,
            name.removesuffix("/masked"),
            group="targets, masked" if name.endswith("/masked") else f"targets, {ways}",
            target=name,
            over=over,
        )
        for name in sorted(ordered, key=lambda name: name.endswith("/masked"))
    }
    source = value_column(peers.metric, task, group="source", over=over)
    means = {name: _mean_column(peers, name, over, f"{MEANS} targets", plain=False) for name in averages}
    costs = [dataclasses.replace(column, over=over) for column in COSTS.values()]
    table = Table(
        name="domains",
        title=set_title(peers, f"domain generalisation from {cell_name(task, shots)}"),
        caption=f"{ways}: scored over all classes of the source; masked: among the classes that occur in the target "
        f"alone. The masked mean takes the masked value where there is one. {_caption(peers, rank='')}",
        columns=[source, *targets.values(), *means.values(), *costs, *_from_column(peers)],
    )
    seeds = seed_count(rows)
    for label, runs in by_label(rows):
        cells = _target_cells(runs, list(targets), peers.metric, seeds)
        row = {source.key: cells[""]} | {column.key: cells[name] for name, column in targets.items()}
        row |= {column.key: mean_cell(cells[target] for target in averages[name]) for name, column in means.items()}
        table.rows[label] = row | _cost_row(runs, list(over), seeds)
    return table


def corruption_table(peers: ComparableSet, shots: int) -> Table:
    """Result on the clean test images beside that on corrupted ones: the mean over all kinds and strengths, by kind, by
    strength and, of several tasks, by task."""
    rows = peers.rows[peers.rows["shots"] == shots]
    over = tuple((task, shots) for task in averaged(suite_tasks(peers.key["suite"], rows)))
    column = partial(value_column, peers.metric, over=over, plain=False)
    whole = {"clean": column("clean"), "corrupted": column("corrupted")}
    whole |= {kind: column(kind, group="corrupted, by kind") for kind in KINDS}
    whole |= {name: column(name, group="corrupted, by strength") for name in map(_of_strength, STRENGTHS)}
    by_task = {key: column(cell_name(*key), group="corrupted, by task", over=(key,)) for key in over}
    by_task = by_task if len(over) > 1 else {}
    costs = [dataclasses.replace(cost, over=over) for cost in COSTS.values()]
    few = f" {shots}-shot" if shots >= 0 else ""
    table = Table(
        name="corruptions",
        title=set_title(peers, f"common corruptions{few}"),
        caption=f"clean: the test split as it is; corrupted: {'means over the tasks of the ' * bool(by_task)}mean over "
        f"{len(KINDS)} kinds of corruption at {len(STRENGTHS)} strengths, on which nothing was trained or chosen, and "
        f"which are not those of ImageNet-C. {_caption(peers, rank='')}",
        columns=[*whole.values(), *by_task.values(), *costs, *_from_column(peers)],
    )
    seeds = seed_count(rows)
    for label, runs in by_label(rows):
        cells = {key: _corrupted_cells(runs[runs["task"] == key[0]], peers.metric, seeds) for key in over}
        row = {own.key: _only_or_mean([cells[key][name] for key in over]) for name, own in whole.items()}
        row |= {own.key: cells[key]["corrupted"] for key, own in by_task.items()}
        table.rows[label] = row | _cost_row(runs, list(over), seeds)
    return table


def _corrupted_cells(runs: pd.DataFrame, metric: Metric, seeds: int) -> dict[str, Cell]:
    """The metric of one method on one task: `clean`, `corrupted`, by kind and by strength."""
    every = {kind: [target_name(kind, strength) for strength in STRENGTHS] for kind in KINDS}
    by_strength = {_of_strength(strength): [target_name(kind, strength) for kind in KINDS] for strength in STRENGTHS}
    sets = {"clean": [""], "corrupted": [*chain.from_iterable(every.values())], **every, **by_strength}
    return _means_over_targets(runs, sets, metric, seeds)


def _of_strength(strength: int) -> str:
    return f"strength {strength}"


def _only_or_mean(cells: list[Cell]) -> Cell:
    return cells[0] if len(cells) == 1 else mean_cell(cells)


def target_order(suite: str, task: str) -> list[str]:
    """Targets of a task in the suite's order, over all classes, then masked."""
    known = known_tasks(suite)
    names = [target.name for target in known[task].targets] if task in known else []
    return [*names, *(f"{name}/masked" for name in names)]


def _ways(suite: str, task: str) -> str:
    known = known_tasks(suite)
    return f"{known[task].num_classes}-way" if task in known else "all classes"


def result_tables(peers: ComparableSet) -> list[Table]:
    """The tables of results that fit the set, the most telling first: by target, by number of shots, or by task."""
    rows = peers.rows
    if peers.key["suite"].endswith(SUFFIX):
        tables = [corruption_table(peers, int(shots)) for shots in sorted(rows["shots"].unique())]
        if len(tables) > 1:
            numbers = sorted(rows["shots"].unique())
            tables = [dataclasses.replace(t, name=f"{t.name}_{n}") for t, n in zip(tables, numbers, strict=True)]
        return tables if rows["task"].nunique() == 1 else [*tables, task_table(peers)]
    shifted = rows[rows["targets"] != "{}"][["task", "shots"]].drop_duplicates()
    tables = [domain_table(peers, task, int(shots)) for task, shots in shifted.itertuples(index=False)]
    if len(tables) > 1:
        cells = [cell_name(task, shots).replace(" ", "_") for task, shots in shifted.itertuples(index=False)]
        tables = [dataclasses.replace(t, name=f"{t.name}_{cell}") for t, cell in zip(tables, cells, strict=True)]
    if not tables and rows["shots"].nunique() > 1:
        return [few_shot_table(peers)]
    return tables if len(tables) == 1 and rows["task"].nunique() == 1 else [*tables, task_table(peers)]
