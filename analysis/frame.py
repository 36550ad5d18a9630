"""Records as data frames: one row per run, grouped into sets whose numbers may stand in one table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import pandas as pd

from analysis.comparability import CELL_KEYS, LeftOut, notes, set_aside_unlike
from harness.schema.record import RunRecord
from harness.schema.spec import canonical_json
from suites import SUITES

K = TypeVar("K")

NAN = float("nan")

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
"""Mark behind a row whose runs looked at the test split more than once, or chose by it."""

BY_DEVICE = '"recipe.precision":"auto"'
"""In a JSON text of settings: a precision that was left to the device."""
NO_SOURCE = "not known"
"""Source of a method in records of versions that did not keep it."""

OTHER = "other"
"""Group of tasks that the suite, as this version knows it, does not have."""


OPTIONAL_TEXTS = (
    "split",
    "data",
    "data_sizes",
    "pixels",
    "not_official",
    "code",
    "torch",
    "timm",
    "peft",
    "choice",
    "device",
    "device_type",
    "precision",
    "cached_features",
)

COSTS = (
    "parameters",
    "parameters_with_head",
    "parameters_method",
    "parameters_backbone",
    "parameters_head",
    "parameters_total",
    "seconds",
    "train_seconds",
    "evaluate_seconds",
    "selection_seconds",
    "flops",
    "training_flops",
    "images_per_second",
    "step_seconds",
    "memory",
    "resident_memory",
    "latency_1",
    "latency_64",
    "merged_latency_1",
    "merged_latency_64",
    "stored_bytes",
    "tuning_trials",
    "tuning_failed",
    "tuning_accuracy",
    "tuning_seconds",
)
FLOATS = ("accuracy", "last_accuracy", *COSTS)
WHOLE = ("shots", "split_seed", "seed", "image_size", "test_looks", "trials", "epochs")


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


def selection_seconds(info: Any) -> float:
    """Seconds a method spent choosing what to train, as it says itself, parts of a composition summed; NaN if none."""
    if not isinstance(info, dict):
        return NAN
    found = [info["selection_seconds"]] if "selection_seconds" in info else map(selection_seconds, info.values())
    known = [float(value) for value in found if pd.notna(value)]
    return sum(known) if known else NAN


def _cost_row(record: RunRecord) -> dict[str, Any]:
    """Values of `COSTS` as far as the record has them; `typed` makes the others NaN."""
    row: dict[str, Any] = dict.fromkeys(COSTS, NAN) | {"selection_seconds": selection_seconds(record.method_info)}
    if record.parameters:
        parameters = record.parameters
        row |= {
            "parameters": parameters.trained_without_head,
            "parameters_with_head": parameters.trained_with_head,
            "parameters_method": parameters.method,
            "parameters_backbone": parameters.backbone_trained,
            "parameters_head": parameters.head,
            "parameters_total": parameters.total,
        }
    if record.cost:
        cost = record.cost
        row |= {
            "seconds": cost.seconds,
            "train_seconds": cost.train_seconds,
            "evaluate_seconds": cost.evaluate_seconds,
            "flops": cost.forward_flops,
            "training_flops": cost.training_flops,
            "images_per_second": cost.train_images_per_second,
            "step_seconds": cost.step_seconds,
            "memory": cost.peak_memory_bytes,
            "resident_memory": cost.peak_resident_bytes,
            "stored_bytes": cost.trained_bytes,
        }
        row |= {f"latency_{size}": seconds for size, seconds in cost.latency_seconds.items()}
        row |= {f"merged_latency_{size}": seconds for size, seconds in cost.merged_latency_seconds.items()}
    return row | _tuning_row(record)


def _tuning_row(record: RunRecord) -> dict[str, Any]:
    """Trials behind a tuned run: how many, how many failed, the winner's accuracy on val, seconds of all."""
    tuning = record.tuning
    if tuning is None:
        return {}
    accuracies = [trial.accuracy for trial in tuning.trials if trial.accuracy is not None]
    return {
        "tuning_trials": len(tuning.trials),
        "tuning_failed": len(tuning.trials) - len(accuracies),
        "tuning_accuracy": max(accuracies, default=NAN),
        "tuning_seconds": tuning.seconds,
    }


def _code(environment: dict[str, Any]) -> str | None:
    """`1a2b3c4d`, or `1a2b3c4d with changes`; None where the record does not know."""
    state = environment.get("code") or {}
    changed = " with changes" if state.get("dirty") else ""
    return f"{state['commit'][:8]}{changed}" if state.get("commit") else None


def row(record: RunRecord) -> dict[str, Any]:
    """One record, flattened to numbers and texts. Canonical JSON are `settings`, `variant` (settings that were not
    searched), `chosen` (those that were), `choice` (accuracies of the trials), `targets` and `data_sizes`."""
    spec, environment = record.spec, record.environment
    by_device = spec.recipe.precision == "auto"
    accuracies = [(split, metrics.accuracy) for split, metrics in record.metrics.items()]
    recipe = {f"recipe.{key}": value for key, value in spec.as_dict()["recipe"].items()}
    settings = {**recipe, **spec.as_dict()["config"]}
    searched = {key for name in spec.searched for key in (name, f"recipe.{name}")}
    identity = {
        "run_id": spec.run_id,
        "suite": spec.suite,
        "task": spec.task,
        "shots": spec.shots if spec.shots is not None else -1,
        "split_seed": spec.split_seed if spec.split_seed is not None else -1,
        "protocol": spec.protocol,
        "trials": spec.trials,
        "backbone": spec.backbone.name,
        "weights": spec.backbone.weights,
        "weights_digest": spec.backbone.digest,
        "image_size": spec.backbone.image_size,
        "preprocessing": spec.preprocessing,
        "method": spec.method,
        "title": record.method_title,
        "family": record.method_family,
        "paper": record.method_paper,
        "source": record.method_source[:8] or NO_SOURCE,
        "settings": canonical_json(settings),
        "variant": canonical_json({key: value for key, value in settings.items() if key not in searched}),
        "chosen": canonical_json({key: value for key, value in settings.items() if key in searched}),
        "seed": spec.seed,
    }
    outcome = {
        "status": record.status,
        "reason": record.reason,
        "split": accuracies[0][0] if accuracies else None,
        "accuracy": accuracies[0][1] if accuracies else NAN,
        "last_accuracy": next((metrics.accuracy for metrics in record.last_epoch.values()), NAN),
        "targets": canonical_json(dict(accuracies[1:])),
        "test_looks": record.test_looks,
        "epochs": len(record.curve),
        "chose_channels": bool(record.method_info.get("channels")),
        "data": f"{record.data.lists}/{record.data.files}" if record.data else None,
        "data_sizes": canonical_json(record.data.sizes) if record.data else None,
        "pixels": (record.data.pixels or None) if record.data else None,
        "not_official": (record.data and ", ".join(record.data.not_official)) or None,
        "code": _code(environment),
        **{name: environment.get("packages", {}).get(name) for name in ("torch", "timm", "peft")},
        "choice": canonical_json({t.run_id: t.accuracy for t in record.tuning.trials}) if record.tuning else None,
        "device": environment.get("device"),
        "device_type": environment.get("device_type"),
        "precision": environment.get("precision") or (None if by_device else spec.recipe.precision),
        "by_device": by_device,
        "cached_features": record.cost.cached_features if record.cost else None,
    }
    return identity | outcome | _cost_row(record)


@lru_cache(maxsize=65536)
def parsed(text: str) -> dict[str, Any]:
    """The dictionary behind a JSON text of the frame (`settings`, `targets`); not to be changed by the caller."""
    return json.loads(text)


def frame_of(records: Iterable[RunRecord]) -> pd.DataFrame:
    """One row per record, see `row`."""
    return typed(pd.DataFrame([row(record) for record in records]))


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The same types whatever is missing: whole numbers, floats with NaN, optional texts as objects with None."""
    if frame.empty:
        return frame
    whole = dict.fromkeys(WHOLE, int)
    texts = {name: frame[name].astype(object).where(frame[name].notna(), None) for name in OPTIONAL_TEXTS}
    return frame.astype(whole | dict.fromkeys(FLOATS, float)).assign(**texts)


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
    found = {key for texts in cells if len(texts) > 1 for key in differing_keys(texts)}
    return [key for key in differing_keys(runs["variant"].unique()) if key in found]


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
    most = frame.dropna(subset="precision").groupby(keys)["precision"].agg(lambda values: values.mode().iloc[0])
    usual = frame[keys].merge(most.reset_index(), how="left", on=keys)["precision"].set_axis(frame.index)
    precision = frame["precision"].where(frame["precision"].notna() | (frame["status"] == "complete"), usual)
    frame = frame.assign(precision=precision.astype(object).where(precision.notna(), "not recorded"))
    for column in ("settings", "variant") if frame["by_device"].any() else ():
        pairs = zip(frame[column], frame["precision"], strict=True)
        frame[column] = [text.replace(BY_DEVICE, BY_DEVICE.replace("auto", precision)) for text, precision in pairs]
    return frame


def _apart(frame: pd.DataFrame) -> dict[tuple[Any, ...], str]:
    """By the values of `SET_KEYS`: those in which sets of one suite, protocol, backbone and weights differ, as text."""
    found = {}
    for _, alike in frame[SET_KEYS].drop_duplicates().groupby(IN_TITLE):
        differ = [name for name in SET_KEYS if alike[name].nunique() > 1]
        for values in alike.itertuples(index=False, name=None):
            key = dict(zip(SET_KEYS, values, strict=True))
            found[values] = ", ".join(DISTINCT[name].format(key[name]) for name in differ)
    return found


def suite_tasks(suite: str, rows: pd.DataFrame) -> dict[str, str]:
    """Task to group, of the tasks that occur in the rows: in the suite's order, those unknown here last, as `OTHER`."""
    there = set(rows["task"])
    known = {task.name: task.group for task in SUITES[suite].tasks} if suite in SUITES else {}
    groups = {task: group for task, group in known.items() if task in there}
    return groups | dict.fromkeys(sorted(there - set(known)), OTHER)


def averaged(groups: dict[K, str]) -> dict[K, str]:
    """What means, ranks and tests are over: tasks that a known suite does not have are shown beside it, but not in."""
    return {key: group for key, group in groups.items() if group != OTHER} or groups


def tasks_text(suite: str, count: int) -> str:
    """`tasks`, or `8 of 19 tasks` where the suite has more of them than the means are over."""
    whole = len(SUITES[suite].tasks) if suite in SUITES else count
    return "tasks" if count >= whole else f"{count} of {whole} tasks"


def cell_name(task: str, shots: int) -> str:
    """Header of one cell's column: the task, and the number of shots where there is one."""
    return task if shots < 0 else f"{task} {shots}-shot"


def suite_cells(suite: str, rows: pd.DataFrame) -> dict[tuple[str, int], str]:
    """(task, shots) to group. Shots are those that occur in the rows; -1 where the suite has one training list."""
    shots = sorted(rows["shots"].unique())
    return {(task, int(s)): group for task, group in suite_tasks(suite, rows).items() for s in shots}
