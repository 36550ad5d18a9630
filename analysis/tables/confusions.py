"""Which classes are taken for which, of runs that kept predictions on tasks whose classes have names."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.comparability import CELL_KEYS
from analysis.frame import ComparableSet, cell_name, suite_cells
from analysis.paired import ReadPredictions
from analysis.tables.base import Cell, Column, Table
from analysis.tables.cells import label_order, set_caption, set_title
from harness.errors import HarnessError

CONFUSIONS_TABLE = "confusions"

MOST = 10
"""Confusions of a task that are shown."""

IMAGES = Column(name="images of the class", kind="integer")

Confusion = tuple[int, int]
"""Class by the list, and class that it was taken for."""


@dataclass(frozen=True, slots=True)
class _Task:
    """The confusions on one task."""

    names: list[str]
    images: np.ndarray
    """Images per class, int64 [C]."""

    counts: dict[str, Counter[Confusion]]
    """By method's label: over all its runs."""

    runs: dict[str, int]

    def most(self) -> list[Confusion]:
        """The most frequent ones, all methods counted alike."""
        shares: Counter[Confusion] = Counter()
        for label, counts in self.counts.items():
            shares.update({confusion: count / self.runs[label] for confusion, count in counts.items()})
        return sorted(shares, key=lambda confusion: (-shares[confusion], confusion))[:MOST]


def confusions_table(peers: ComparableSet, read: ReadPredictions) -> Table | None:
    """A row for each of the most frequent confusions of a task, a column for each method; None where no run kept
    predictions of classes with names, or nothing was confused."""
    complete = peers.rows[peers.rows["status"] == "complete"]
    rows = complete[complete["predictions"] & complete["class_names"].notna()]
    tasks = {key: _counted(same, read) for key, same in rows.groupby(CELL_KEYS)}
    found = {key: task for key, task in tasks.items() if task}
    labels = [label for label in label_order(peers.rows) if any(label in task.counts for task in found.values())]
    digits = int(any(count > 1 for task in found.values() for count in task.runs.values()))
    columns = {label: Column(name=label, group="taken so by", digits=digits) for label in labels}
    table = Table(
        name=CONFUSIONS_TABLE,
        title=set_title(peers, "which classes are taken for which"),
        caption=f"Test images of the first class that were taken for the second, mean over a method's runs; the {MOST} "
        f"most frequent confusions{' of each task' if len(found) > 1 else ''}, all methods counted alike. "
        f"{set_caption(peers)}",
        columns=[IMAGES, *columns.values()],
        corner="class → taken for",
    )
    for key in (key for key in suite_cells(peers.key["suite"], peers.rows) if key in found):
        task, where = found[key], f"{cell_name(*key)}: " if len(found) > 1 else ""
        for true, taken in task.most():
            cells = {IMAGES.key: Cell(value=float(task.images[true]))}
            for label, counts in task.counts.items():
                cells[columns[label].key] = Cell(value=counts[true, taken] / task.runs[label])
            table.rows[f"{where}{task.names[true]} → {task.names[taken]}"] = cells
    return table if table.rows else None


def _counted(runs: pd.DataFrame, read: ReadPredictions) -> _Task | None:
    """What the runs on one task confused; None if their predictions cannot be had."""
    names = json.loads(runs["class_names"].iloc[0])
    images, counts, number = np.zeros(len(names), np.int64), dict[str, Counter[Confusion]](), Counter[str]()
    try:
        by_run = read(runs)
    except HarnessError:
        return None
    for label, split, by_split in zip(runs["label"], runs["split"], by_run, strict=True):
        one = by_split[split]
        images = np.bincount(one.labels, minlength=len(names))
        wrong = ~one.correct
        pairs = zip(one.labels[wrong].tolist(), one.predicted[wrong].tolist(), strict=True)
        counts.setdefault(str(label), Counter()).update(pairs)
        number[str(label)] += 1
    return _Task(names, images, counts, dict(number))
