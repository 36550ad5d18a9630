"""Records as data frames: one row per run, grouped into sets whose numbers may stand in one table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pandas as pd

from analysis.columns import frame_of, parsed
from analysis.comparability import CELL_KEYS, LeftOut, notes, set_aside_unlike, usual_values
from harness.schema.metrics import ACCURACY, Metric
from harness.schema.metrics import get as get_metric
from harness.schema.record import RunRecord
from suites import known
from suites.base import Task

K = TypeVar("K")

SET_KEYS = [
    "suite",
    "protocol",
    "trials",
    "backbone",
    "weights",
    "weights_digest",
    "image_size",
    "preprocessing",
    "precision",
]
"""Records that differ in one of these are never put in one table."""

IN_TITLE = ["suite", "protocol", "backbone", "weights"]
DISTINCT = {
    "trials": "{} trials",
    "image_size": "{} px",
    "preprocessing": "{}",
    "weights_digest": "checkpoint {:.8}",
    "precision": "{}",
}
"""The rest of `SET_KEYS`, and how a title says them where sets that it would not tell apart differ."""

REPLICATE_KEYS = ["split_seed", "seed"]
"""What a cell is averaged over: draws of the training list, where a suite has several, and training seeds."""

CHOSEN_PER_TASK = ("tuned", "published", "oracle")
"""Protocols under which one method's settings differ from task to task by design."""

OPENED_OFTEN = "†"
"""Mark after a row whose runs looked at the test split more than once, or chose by it."""

BY_DEVICE = '"recipe.precision":"auto"'
"""In a JSON text of settings: a precision that was left to the device."""
OTHER = "other"
"""Group of tasks that a suite, as this version knows it, does not have."""


@dataclass(frozen=True, slots=True)
class ComparableSet:
    """Runs whose numbers may stand side by side."""

    key: dict[str, Any]
    """The values of `SET_KEYS` that all rows share."""

    rows: pd.DataFrame
    """One row per run, complete or failed; `label` names the method, with its settings where a method has several."""

    left_out: list[LeftOut]
    """Runs that differ from the others on the same task in data or in the trials behind them."""

    notes: list[str]
    """What is not the same in all records, and may matter: code, versions."""

    apart: str = ""
    """What tells the set from others of the same suite, protocol, backbone and weights; empty if there are none."""

    metric: Metric = ACCURACY
    """What its tables and figures show."""

    def by(self, metric: Metric) -> ComparableSet:
        """The same runs, judged by another metric."""
        return replace(self, metric=metric)

    def by_primary(self) -> list[ComparableSet]:
        """The same runs, each task by its primary metric: in parts, one for each metric, where tasks differ in it. No
        mean, rank or test is over several metrics."""
        primary = primary_metrics(self.key["suite"], self.rows)
        parts = [self.by(get_metric(name)) for name in dict.fromkeys(primary.values())]
        return [part._of_own_tasks(primary) for part in parts] if len(parts) > 1 else parts

    def _of_own_tasks(self, primary: dict[str, str]) -> ComparableSet:
        own = {task for task, name in primary.items() if name == self.metric.name}
        rows = self.rows[self.rows["task"].isin(own)]
        return replace(
            self,
            rows=rows,
            left_out=[run for run in self.left_out if run.task in own],
            notes=notes(rows),
            apart=", ".join(filter(None, [self.apart, f"by {self.metric.title}"])),
        )

    def rest_of_key(self, *names: str) -> dict[str, Any]:
        """The key without these names."""
        return {name: value for name, value in self.key.items() if name not in names}


def differing_keys(texts: Iterable[str]) -> list[str]:
    """Settings in which some of these (JSON texts) differ, in their own order. None is the same as absent: unset."""
    settings = [parsed(text) for text in texts]
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if len({repr(one.get(key)) for one in settings}) > 1]


def _distinguishing(runs: pd.DataFrame, per_task: bool) -> list[str]:
    """Settings that make several methods out of one. What was chosen per task does not: only what differs on one."""
    if not per_task:
        return differing_keys(runs["variant"].unique())
    cells = runs.groupby(CELL_KEYS + REPLICATE_KEYS)["variant"].unique()
    keys = {key for texts in cells if len(texts) > 1 for key in differing_keys(texts)}
    return [key for key in differing_keys(runs["variant"].unique()) if key in keys]


def settings_text(settings: dict[str, Any], keys: Iterable[str]) -> str:
    """`channels=24, lr=0.001`, of those of `keys` that are set."""
    known = {key.removeprefix("recipe."): settings[key] for key in keys if settings.get(key) is not None}
    return ", ".join(f"{key}={value}" for key, value in known.items())


def _labels(rows: pd.DataFrame, per_task: bool) -> pd.Series:
    """Table labels: title, own name where titles clash, settings and source where they differ, and the mark
    `OPENED_OFTEN`."""
    labels = pd.Series("", index=rows.index, dtype=object)
    clashes = rows.groupby("title")["method"].nunique().to_dict()
    for (title, method), runs in rows.groupby(["title", "method"]):
        keys = _distinguishing(runs, per_task)
        name = f"{title} [{method}]" if clashes[title] > 1 else str(title)
        several = runs.loc[runs["status"] == "complete", "source"].nunique() > 1
        for (text, source), same in runs.groupby(["variant", "source"] if several else ["variant", "method"]):
            shown = [settings_text(parsed(str(text)), keys), f"source {source}" if several else ""]
            about = ", ".join(filter(None, shown))
            labels.loc[same.index] = f"{name} ({about})" if about else name
    opened = (rows["protocol"] == "oracle") | (rows["test_looks"] > 1)
    marked = labels.isin(labels[opened])
    return labels.where(~marked, labels + f" {OPENED_OFTEN}")


def comparable_sets(records: Iterable[RunRecord] | pd.DataFrame) -> list[ComparableSet]:
    """Group records, or their frame; sets come in the order of suite, protocol and backbone."""
    frame = _with_precision(records if isinstance(records, pd.DataFrame) else frame_of(records))
    sets = []
    apart = _apart(frame) if len(frame) else {}
    for values, group in frame.groupby(SET_KEYS) if len(frame) else []:
        key = dict(zip(SET_KEYS, values, strict=True))
        rows, left_out = set_aside_unlike(group)
        rows = rows.assign(label=_labels(rows, key["protocol"] in CHOSEN_PER_TASK))
        sets.append(ComparableSet(key, rows, left_out, notes(rows), apart[values]))
    return sets


def _with_precision(frame: pd.DataFrame) -> pd.DataFrame:
    """The precision in use in every row, in its settings too. Runs that failed before it was known stand with most of
    the others."""
    if frame.empty:
        return frame
    keys = [key for key in SET_KEYS if key != "precision"]
    usual = usual_values(frame, keys, "precision")["precision"]
    precision = frame["precision"].where(frame["precision"].notna() | (frame["status"] == "complete"), usual)
    frame = frame.assign(precision=precision.astype(object).where(precision.notna(), "not recorded"))
    for column in ("settings", "variant") if frame["by_device"].any() else ():
        pairs = zip(frame[column], frame["precision"], strict=True)
        frame[column] = [text.replace(BY_DEVICE, BY_DEVICE.replace("auto", precision)) for text, precision in pairs]
    return frame


def _apart(frame: pd.DataFrame) -> dict[tuple[Any, ...], str]:
    """By the values of `SET_KEYS`: those in which sets of one suite, protocol, backbone and weights differ, as text."""
    texts = {}
    for _, alike in frame[SET_KEYS].drop_duplicates().groupby(IN_TITLE):
        differ = [name for name in SET_KEYS if alike[name].nunique() > 1]
        for values in alike.itertuples(index=False, name=None):
            key = dict(zip(SET_KEYS, values, strict=True))
            texts[values] = ", ".join(DISTINCT[name].format(key[name]) for name in differ)
    return texts


def known_tasks(suite: str) -> dict[str, Task]:
    """Tasks by name; none of a suite that this version does not know."""
    return {task.name: task for task in there.tasks} if (there := known(suite)) else {}


def suite_tasks(suite: str, rows: pd.DataFrame) -> dict[str, str]:
    """Task to group, of the tasks that occur in the rows: in the suite's order, those unknown here last, as `OTHER`.
    The tasks of a suite that is not known here have no group."""
    there, known = set(rows["task"]), known_tasks(suite)
    groups = {name: task.group for name, task in known.items() if name in there}
    return groups | dict.fromkeys(sorted(there - set(known)), OTHER if known else "")


def averaged(groups: dict[K, str]) -> dict[K, str]:
    """What means, ranks and tests are over: tasks that a known suite does not have are shown beside it, but not in."""
    return {key: group for key, group in groups.items() if group != OTHER} or groups


def primary_metrics(suite: str, rows: pd.DataFrame) -> dict[str, str]:
    """Task to its primary metric, as most of its complete runs say, in the suite's order."""
    complete = rows[rows["status"] == "complete"].groupby("task")["primary_metric"]
    said = complete.agg(lambda names: names.mode().iloc[0]).to_dict()
    return {task: said.get(task, ACCURACY.name) for task in suite_tasks(suite, rows)}


def judged(sets: Iterable[ComparableSet], metric: Metric | None) -> list[ComparableSet]:
    """The sets by a metric; by the primary metrics of their tasks if it is not given."""
    return [part for one in sets for part in ([one.by(metric)] if metric else one.by_primary())]


def tasks_text(suite: str, count: int) -> str:
    """`tasks`, or `8 of 19 tasks` where the suite has more of them than the means are over."""
    whole = len(known_tasks(suite))
    return "tasks" if count >= whole else f"{count} of {whole} tasks"


def cell_name(task: str, shots: int) -> str:
    """Header of one cell's column: the task, and the number of shots where there is one."""
    return task if shots < 0 else f"{task} {shots}-shot"


def suite_cells(suite: str, rows: pd.DataFrame) -> dict[tuple[str, int], str]:
    """(task, shots) to group. Shots are those that occur in the rows; -1 where the suite has one training list."""
    shots = sorted(rows["shots"].unique())
    return {(task, int(s)): group for task, group in suite_tasks(suite, rows).items() for s in shots}
