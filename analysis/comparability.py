"""Which records must not stand in one column, and what else differs among them.

Refused are records of a task whose lists or images differ from those that most records have (decoded pixels, which
records of schema 2 do not know, among those that know them), records whose settings or epoch were chosen by another
metric than most on the task, and tuned records of one cell that other trials decided than those behind most of its
seeds: these are left out, with what differs. Another backbone, checkpoint, preprocessing, precision, protocol or budget
makes a table of its own (`frame.SET_KEYS`). The code's state and the versions of torch, timm and peft are noted and not
refused: most commits and releases change no number, and the runs of a cluster could otherwise not stand beside those of
a laptop. Nor are devices, which every caption names: at one precision a GPU draws other random numbers than a CPU, as
another seed does, and rounds otherwise.

A run that was done twice, because its spec once left the precision to the device and once named it, counts once.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pandas as pd

CELL_KEYS = ["task", "shots"]
"""What one column of a table holds: a task, at one number of shots where a suite has several."""

LIST_KEYS = [*CELL_KEYS, "split_seed"]
"""What stands for one training list."""

NOTED = {"results": "results folders or packs", "code": "code states"}
NOTED |= {name: f"versions of {name}" for name in ("torch", "timm", "peft")}
"""Columns in which records may differ side by side, and what the note calls them."""

MOST_NOTED = 4
"""States that a note spells out; of more it gives the number."""


class LeftOut(NamedTuple):
    """A run that must not stand beside the others."""

    run_id: str
    method: str
    """Its title."""

    task: str
    reason: str
    """In what it differs from the others."""

    def __str__(self) -> str:
        return f"{self.run_id} ({self.method} on {self.task}: {self.reason})"


def set_aside_unlike(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[LeftOut]]:
    """Keep what belongs together, and name the others."""
    left_out = []
    for keys, column, differ in (
        (LIST_KEYS, "data", _data_difference),
        (LIST_KEYS, "pixels", lambda _, __: "images differ"),
        (CELL_KEYS, "chosen_by", lambda run, usual: f"chosen by {run['chosen_by']} instead of {usual['chosen_by']}"),
        ([*LIST_KEYS, "method", "variant", "source"], "choice", lambda _, __: "settings chosen by other trials"),
    ):
        usual = usual_values(rows, keys, column)
        other = rows[column].notna() & (rows[column] != usual[column])
        for (_, run), (_, normal) in zip(rows[other].iterrows(), usual[other].iterrows(), strict=True):
            left_out.append(LeftOut(run["run_id"], run["title"], run["task"], differ(run, normal)))
        rows = rows[~other]
    order = rows.assign(worse=rows["status"] != "complete").sort_values(["worse", "by_device"], kind="stable")
    twice = order[order.duplicated([*LIST_KEYS, "method", "settings", "seed"])].index
    for _, run in rows.loc[twice].iterrows():
        left_out.append(LeftOut(run["run_id"], run["title"], run["task"], "the same run as one that is in"))
    return rows.drop(index=twice), left_out


def usual_values(rows: pd.DataFrame, keys: list[str], column: str) -> pd.DataFrame:
    """For each row, `column` and `data_sizes` as most rows with the same `keys` have them."""
    known = rows.dropna(subset=column)
    most = known.groupby(keys)[column].agg(lambda values: values.mode().iloc[0]).reset_index()
    usual = known.merge(most, on=[*keys, column])[[*keys, column, "data_sizes"]].drop_duplicates(keys)
    return rows[keys].merge(usual, how="left", on=keys).set_axis(rows.index)


def _data_difference(run: Any, usual: Any) -> str:
    """`lists differ (train 160 instead of 200), images differ`."""
    (lists, images), (usual_lists, usual_images) = (str(row["data"]).split("/", 1) for row in (run, usual))
    sizes, usual_sizes = json.loads(run["data_sizes"]), json.loads(usual["data_sizes"])
    counts = [
        f"{split} {sizes.get(split, 0)} instead of {usual_sizes.get(split, 0)}"
        for split in dict.fromkeys([*usual_sizes, *sizes])
        if sizes.get(split) != usual_sizes.get(split)
    ]
    where = f" ({', '.join(counts)})" if counts else ""
    differ = {f"lists differ{where}": lists != usual_lists, "images differ": images != usual_images}
    return ", ".join(words for words, holds in differ.items() if holds)


def left_out_text(left_out: list[LeftOut]) -> str:
    """`3 runs of SCT on digits (images differ)` for each method and reason, or, of too many, how many there are."""
    tasks: dict[tuple[str, str], list[str]] = {}
    for run in left_out:
        tasks.setdefault((run.method, run.reason), []).append(run.task)
    if len(tasks) > MOST_NOTED:
        methods, names = {run.method for run in left_out}, [run.task for run in left_out]
        return _runs_text(f"{len(methods)} methods" if len(methods) > 1 else methods.pop(), names)
    return ", ".join(f"{_runs_text(method, names)} ({reason})" for (method, reason), names in tasks.items())


def _runs_text(methods: str, tasks: list[str]) -> str:
    where = tasks[0] if len(set(tasks)) == 1 else f"{len(set(tasks))} tasks"
    return f"{len(tasks)} run{'s' * (len(tasks) > 1)} of {methods} on {where}"


def taken_in_part(rows: pd.DataFrame) -> str:
    """`kitti (test 300 instead of 711), dtd (own split, ...)`: tasks whose data are not the suite's, as records say."""
    by_task = rows.groupby("task", sort=False)["not_official"]
    tasks = {str(task): list(texts.dropna().unique()) for task, texts in by_task}
    return ", ".join(f"{task} ({'; '.join(texts)})" for task, texts in tasks.items() if texts)


def notes(rows: pd.DataFrame) -> list[str]:
    """`2 code states: 1a2b3c4d (12 runs), 5e6f7a8b with changes (3 runs)` for each of `NOTED` that is not the same."""
    remarks = []
    for column, name in NOTED.items():
        if column not in rows:  # records in memory are from nowhere
            continue
        counts = rows[column].value_counts()
        if len(counts) > 1:
            states = ", ".join(f"{state} ({count} run{'s' * (count > 1)})" for state, count in counts.items())
            remarks.append(f"{len(counts)} {name}: {states}" if len(counts) <= MOST_NOTED else f"{len(counts)} {name}")
    return remarks + different_results(rows) + _sources(rows[rows["status"] == "complete"])


def different_results(rows: pd.DataFrame) -> list[str]:
    """`1 run has other results elsewhere, and the first are taken: SCT on digits, seed 0 (accuracy 71.5 in A, 71.2 in
    B.zip)`; of many how many there are."""
    several = rows[rows["elsewhere"].notna()] if "elsewhere" in rows else rows[:0]
    if several.empty:
        return []
    columns = zip(*(several[name] for name in ("title", "task", "seed", "elsewhere")), strict=True)
    each = [f"{title} on {task}, seed {seed} ({words})" for title, task, seed, words in columns]
    what = f"{len(each)} runs have" if len(each) > 1 else "1 run has"
    shown = f": {'; '.join(each)}" if len(each) <= MOST_NOTED else ", see `elsewhere` in runs.csv"
    return [f"{what} other results elsewhere, and the first are taken{shown}"]


def _sources(runs: pd.DataFrame) -> list[str]:
    """`sources of methods, which have a row each: SCT 1a2b3c4d (3 runs) and not known (2 runs)`."""
    several = []
    for title, same in runs.groupby("title"):
        counts = same["source"].value_counts()
        if len(counts) > 1:
            each = [f"{source} ({count} run{'s' * (count > 1)})" for source, count in counts.items()]
            several.append(f"{title} {' and '.join(each)}")
    if len(several) > MOST_NOTED:
        return [f"sources of {len(several)} methods, which have a row each"]
    return [f"sources of methods, which have a row each: {', '.join(several)}"] if several else []
