"""Accuracy tables: per task (VTAB style), few-shot, domain generalisation."""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas as pd

from analysis.frame import (
    OTHER,
    ComparableSet,
    averaged,
    cell_name,
    parsed,
    suite_cells,
    suite_tasks,
    tasks_text,
)
from analysis.tables.base import MEANS, MISSING, Cell, Column, Table, mean_cell
from analysis.tables.cells import (
    Key,
    accuracy_cells,
    cost_cells,
    label_order,
    rank_cells,
    seed_count,
    set_caption,
    set_title,
    spread_caption,
)
from suites import SUITES

TAIL = [
    Column(name="rank", kind="rank", best="min"),
    Column(name="params", kind="count", best=""),
    Column(name="params+head", kind="count", best=""),
    Column(name="seconds", kind="seconds", best=""),
]
"""Columns behind the averages: average rank, trained parameters, seconds of a run."""

RANK_CAPTION = "rank: average rank over the columns that the averages are over, among rows that have them all; "
COST_CAPTION = "params: trained parameters without head; params+head: with it; seconds: of a run; these are means over "
COST_CAPTION += "the complete runs of a column, then over the columns that the averages are over."
COSTS = ["parameters", "parameters_with_head", "seconds"]


def _caption(chosen: ComparableSet, rank: str = RANK_CAPTION, others: bool = False) -> str:
    """`rank`: what the column says, if there is one; `others`: whether there are tasks that the suite does not have."""
    text = f"Top-1 accuracy in per cent; {spread_caption(chosen.rows)}. {set_caption(chosen)} {rank}{COST_CAPTION}"
    return f"{text} {OTHER}: tasks unknown to this version's suite, in no mean and no rank." if others else text


def task_table(chosen: ComparableSet) -> Table:
    """VTAB-style table: a row per method, a column per task, group means, both averages, rank, parameters, seconds.

    `mean of tasks` is the mean over all tasks (SCT, V-PETL Bench), `mean of groups` that of the group means (VTAB,
    NOAH); the literature prints either.
    """
    suite = chosen.key["suite"]
    keys = suite_cells(suite, chosen.rows)
    over = averaged(keys)
    groups = {name: tuple(key for key in over if over[key] == name) for name in dict.fromkeys(over.values())}
    columns = [Column(name=cell_name(*key), group=group, over=(key,)) for key, group in keys.items()]
    several = len(groups) > 1
    columns += [Column(name=name, group=MEANS, over=members) for name, members in groups.items() if several]
    whole = tasks_text(suite, len({task for task, _ in over}))
    columns += [Column(name=whole, group=MEANS, over=tuple(over))]
    columns += [Column(name="groups", group=MEANS, over=tuple(over), plain=False)] * several
    caption = _caption(chosen, others=len(over) < len(keys))
    table = Table(name="tasks", title=set_title(chosen), caption=caption, columns=[*columns, *TAIL])
    cells = accuracy_cells(chosen)
    ranks, seeds = rank_cells(cells, list(over)), seed_count(chosen.rows)
    for label, runs in _by_label(chosen):
        row = {key: cells[label].get(key, MISSING) for key in keys}
        means = [mean_cell(row[key] for key in members) for members in groups.values()]
        averages = [*means, mean_cell(row[key] for key in over), mean_cell(means)] if several else means
        costs = cost_cells(runs, COSTS, list(over), seeds)
        table.rows[label] = [*row.values(), *averages, ranks[label], *costs]
    return table


def _by_label(chosen: ComparableSet) -> list[tuple[str, pd.DataFrame]]:
    groups = dict(list(chosen.rows.groupby("label")))
    return [(label, groups[label]) for label in label_order(chosen.rows)]


def few_shot_table(chosen: ComparableSet) -> Table:
    """A row per method, shots per data set, and the mean over data sets per number of shots."""
    tasks = list(averaged(suite_tasks(chosen.key["suite"], chosen.rows)))
    shots = sorted(int(s) for s in chosen.rows["shots"].unique())
    keys: list[Key] = [(task, s) for task in tasks for s in shots]
    columns = [Column(name=str(s), group=task, over=((task, s),)) for task, s in keys]
    whole = f"{MEANS} {tasks_text(chosen.key['suite'], len(tasks)).replace('tasks', 'data sets')}"
    columns += [Column(name=str(s), group=whole, over=tuple((task, s) for task in tasks)) for s in shots]
    columns += [Column(name="all", group=MEANS, over=tuple(keys))]
    columns += [dataclasses.replace(TAIL[0], name="rank over columns"), *TAIL[1:]]
    caption = (
        f"Columns are training images per class. {_caption(chosen, RANK_CAPTION.replace(':', ' over columns:', 1))}"
    )
    table = Table(name="few_shot", title=set_title(chosen, "few-shot"), caption=caption, columns=columns)
    cells = accuracy_cells(chosen)
    ranks, seeds = rank_cells(cells, keys), seed_count(chosen.rows)
    for label, runs in _by_label(chosen):
        row = {key: cells[label].get(key, MISSING) for key in keys}
        means = [mean_cell(row[task, s] for task in tasks) for s in shots]
        costs = cost_cells(runs, COSTS, keys, seeds)
        table.rows[label] = [*row.values(), *means, mean_cell(row.values()), ranks[label], *costs]
    return table


def _target_cells(runs: pd.DataFrame, source: str, targets: list[str], seeds: int) -> list[Cell]:
    """Source and target accuracies of one method, means over replicates."""
    complete = runs[runs["status"] == "complete"]
    values = pd.DataFrame(
        [{source: a, **parsed(t)} for a, t in zip(complete["accuracy"], complete["targets"], strict=True)],
        columns=[source, *targets],
    )
    cells = []
    for name in values:
        known = values[name].dropna()
        note = "" if len(known) == seeds else f"{len(known)}/{seeds}"
        empty = Cell(note="failed" if len(runs) and complete.empty else "missing")
        cells.append(Cell(value=known.mean(), spread=known.std(ddof=1), note=note) if len(known) else empty)
    return cells


def domain_table(chosen: ComparableSet, task: str, shots: int) -> Table:
    """Source accuracy and that of each target set: over all classes, and masked to the set's own where stored.

    ImageNet-A and -R hold 200 of 1000 classes. Papers print either number without saying which, so both have columns
    and both have a mean over the targets.
    """
    rows = chosen.rows[(chosen.rows["task"] == task) & (chosen.rows["shots"] == shots)]
    found = {name for text in rows["targets"].unique() for name in parsed(text)}
    targets = [name for name in target_order(chosen.key["suite"], task) if name in found]
    targets += sorted(found - set(targets))
    whole = [name for name in targets if not name.endswith("/masked")]
    masked = [f"{name}/masked" if f"{name}/masked" in found else name for name in whole]
    ways = _ways(chosen.key["suite"], task)
    source: dict[str, Any] = {"over": ((task, shots),)}
    columns = [Column(name=task, group="source", **source)]
    columns += [Column(name=t, group=f"targets, {ways}", target=t, **source) for t in whole]
    columns += [
        Column(name=t.removesuffix("/masked"), group="targets, masked", target=t, **source)
        for t in targets
        if t not in whole
    ]
    columns += [Column(name=name, group=f"{MEANS} targets", plain=False, **source) for name in (ways, "masked")]
    columns += [dataclasses.replace(column, **source) for column in TAIL[1:]]
    caption = (
        f"{ways}: scored over all classes of the source; masked: among the classes that occur in the target alone. The "
        f"masked mean takes the masked value where there is one. {_caption(chosen, rank='')}"
    )
    title = set_title(chosen, f"domain generalisation from {cell_name(task, shots)}")
    table = Table(name="domains", title=title, caption=caption, columns=columns)
    order = [*whole, *(t for t in targets if t not in whole)]
    for label in label_order(rows):
        runs = rows[rows["label"] == label]
        cells = _target_cells(runs, task, order, seed_count(rows))
        by_name = dict(zip(order, cells[1:], strict=True))
        means = [mean_cell(by_name[t] for t in names) for names in (whole, masked)]
        table.rows[label] = [*cells, *means, *cost_cells(runs, COSTS, [(task, shots)], seed_count(rows))]
    return table


def target_order(suite: str, task: str) -> list[str]:
    """Targets of a task in the suite's order, over all classes, then masked."""
    known = {t.name: t for t in SUITES[suite].tasks} if suite in SUITES else {}
    names = [target.name for target in known[task].targets] if task in known else []
    return [*names, *(f"{name}/masked" for name in names)]


def _ways(suite: str, task: str) -> str:
    classes = {t.name: t.num_classes for t in SUITES[suite].tasks} if suite in SUITES else {}
    return f"{classes[task]}-way" if task in classes else "all classes"


def accuracy_tables(chosen: ComparableSet) -> list[Table]:
    """The accuracy tables that fit the set, the most telling first: by target, by number of shots, or by task."""
    rows = chosen.rows
    shifted = rows[rows["targets"] != "{}"][["task", "shots"]].drop_duplicates()
    tables = [domain_table(chosen, task, int(shots)) for task, shots in shifted.itertuples(index=False)]
    if len(tables) > 1:
        cells = [cell_name(task, shots).replace(" ", "_") for task, shots in shifted.itertuples(index=False)]
        tables = [dataclasses.replace(t, name=f"{t.name}_{cell}") for t, cell in zip(tables, cells, strict=True)]
    if not tables and rows["shots"].nunique() > 1:
        return [few_shot_table(chosen)]
    return tables if len(tables) == 1 and rows["task"].nunique() == 1 else [*tables, task_table(chosen)]
