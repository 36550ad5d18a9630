"""Records as data frames: one row per run, grouped into sets whose numbers may stand in one table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.record import RunRecord
from suites import SUITES

SET_KEYS = ["suite", "protocol", "backbone", "weights", "weights_digest", "image_size", "preprocessing"]
"""Records that differ in one of these are never put in one table."""


@dataclass(frozen=True, slots=True)
class ComparableSet:
    """Runs whose numbers may stand side by side."""

    key: dict[str, Any]
    """The values of `SET_KEYS` that all rows share."""

    rows: pd.DataFrame
    """One row per run, complete or failed; `label` names the method, with its settings where a method has several."""

    left_out: list[str]
    """Run ids of records whose data differ from those of the others on the same task, with the task."""


def _row(record: RunRecord) -> dict[str, Any]:
    spec, backbone, cost = record.spec, record.spec.backbone, record.cost
    metrics = next(iter(record.metrics.items()), None)
    return {
        "run_id": spec.run_id,
        "suite": spec.suite,
        "task": spec.task,
        "protocol": spec.protocol,
        "backbone": backbone.name,
        "weights": backbone.weights,
        "weights_digest": backbone.digest,
        "image_size": backbone.image_size,
        "preprocessing": spec.preprocessing,
        "method": spec.method,
        "title": record.method_title,
        "settings": {**{f"recipe.{k}": v for k, v in spec.as_dict()["recipe"].items()}, **spec.as_dict()["config"]},
        "seed": spec.seed,
        "status": record.status,
        "reason": record.reason,
        "split": metrics[0] if metrics else None,
        "accuracy": metrics[1].accuracy if metrics else float("nan"),
        "parameters": record.parameters.trained_without_head if record.parameters else None,
        "parameters_with_head": record.parameters.trained_with_head if record.parameters else None,
        "seconds": cost.attach_seconds + cost.train_seconds + cost.evaluate_seconds if cost else float("nan"),
        "data": f"{record.data.lists}/{record.data.files}" if record.data else None,
        "device": record.environment.get("device"),
        "precision": record.environment.get("precision"),
    }


def _labels(rows: pd.DataFrame) -> pd.Series:
    """Table labels: the method's title, plus the settings in which runs of the same title differ."""
    labels = {}
    for title, runs in rows.groupby("title"):
        frame = pd.DataFrame(list(runs["settings"]), index=runs.index)
        differing = [c for c in frame if frame[c].map(repr).nunique() > 1]
        for index, settings in frame[differing].iterrows():
            text = ", ".join(f"{str(key).removeprefix('recipe.')}={value}" for key, value in settings.items())
            labels[index] = f"{title} ({text})" if text else str(title)
    return pd.Series(labels).reindex(rows.index)


def _set_aside_other_data(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Keep, per task, the records of the data that most of them have."""
    usual = rows.dropna(subset="data").groupby("task")["data"].agg(lambda d: d.mode().iloc[0])
    other = rows["data"].notna() & (rows["data"] != rows["task"].map(usual))
    return rows[~other], [f"{r.run_id} ({r.task})" for r in rows[other].itertuples()]


def comparable_sets(records: Iterable[RunRecord]) -> list[ComparableSet]:
    """Group records; sets come in the order of suite, protocol and backbone."""
    frame = pd.DataFrame([_row(record) for record in records])
    sets = []
    for values, group in frame.groupby(SET_KEYS) if len(frame) else []:
        rows, left_out = _set_aside_other_data(group)
        rows = rows.assign(label=_labels(rows))
        sets.append(ComparableSet(dict(zip(SET_KEYS, values, strict=True)), rows, left_out))
    return sets


def suite_tasks(suite: str, rows: pd.DataFrame) -> dict[str, str]:
    """Task to group, in the suite's order; tasks of a suite that is unknown here go to the group `other`."""
    if suite in SUITES:
        return {task.name: task.group for task in SUITES[suite].tasks}
    return dict.fromkeys(sorted(rows["task"].unique()), "other")
