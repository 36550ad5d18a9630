"""The columns of the data frame of runs: name, type, and how each is read out of a record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, cast

import pandas as pd

from harness.records.store import PREDICTIONS_NAME
from harness.schema.metrics import METRICS, Metric
from harness.schema.protocol import PROTOCOLS
from harness.schema.record import Metrics, RunRecord, Tuning
from harness.schema.spec import canonical_json

NAN = float("nan")

NO_SOURCE = "not known"
"""Source of a method in records of versions that did not keep it."""

PACKAGES = ("torch", "timm", "peft")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the frame."""

    name: str
    dtype: type
    """`int`, `float` (NaN where missing), `str`, `bool`, or `object`: a text that may be None."""

    read: Callable[[RunRecord], Any]


def selection_seconds(info: Any) -> float:
    """Seconds a method spent choosing what to train, as it says itself, parts of a composition summed; NaN if none."""
    if not isinstance(info, dict):
        return NAN
    parts = [info["selection_seconds"]] if "selection_seconds" in info else map(selection_seconds, info.values())
    known = [float(value) for value in parts if pd.notna(value)]
    return sum(known) if known else NAN


def _code(record: RunRecord) -> str | None:
    """`1a2b3c4d`, or `1a2b3c4d with changes`; None where the record does not know."""
    state = record.environment.get("code") or {}
    changed = " with changes" if state.get("dirty") else ""
    return f"{state['commit'][:8]}{changed}" if state.get("commit") else None


def _settings(record: RunRecord, searched: bool | None = None) -> str:
    """Recipe and method's own settings: all, or only those that were searched, or only the others."""
    recipe, config = record.spec.recipe, record.spec.config
    settings = {f"recipe.{field.name}": getattr(recipe, field.name) for field in fields(recipe)} | dict(config)
    names = {name for key in record.spec.searched for name in (key, f"recipe.{key}")}
    return canonical_json({k: v for k, v in settings.items() if searched is None or (k in names) == searched})


def _precision(record: RunRecord) -> str | None:
    asked = record.spec.recipe.precision
    return record.environment.get("precision") or (None if asked == "auto" else asked)


def _chosen_by(record: RunRecord) -> str | None:
    """The metric that chose the settings, or the epoch; None where nothing was chosen."""
    chooses = record.spec.protocol in PROTOCOLS and PROTOCOLS[record.spec.protocol].every_epoch
    return record.tuning.metric if record.tuning else record.spec.chosen_by if chooses else None


def _choice(record: RunRecord) -> str | None:
    return canonical_json({t.run_id: t.score for t in record.tuning.trials}) if record.tuning else None


def _failed_trials(tuning: Tuning) -> int:
    return sum(trial.score is None for trial in tuning.trials)


def _winning_score(tuning: Tuning) -> float | None:
    return None if tuning.chosen is None else tuning.trials[tuning.chosen].score


def _of(attribute: str, *names: str) -> Iterator[Column]:
    """Float columns out of a part of the record that may be missing, each `column=field` or a name for both."""
    for name in names:
        column, _, field_name = name.partition("=")

        def read(record: RunRecord, field_name: str = field_name or column) -> Any:
            part = getattr(record, attribute)
            return None if part is None else getattr(part, field_name)

        yield Column(column, float, read)


def _latency(field_name: str, size: str) -> Callable[[RunRecord], Any]:
    return lambda record: getattr(record.cost, field_name).get(size) if record.cost else None


def _joules(source: str) -> Callable[[RunRecord], Any]:
    """What a kind of counter counted: sums of different ones do not stand for the same."""
    return lambda record: record.cost.energy_joules if record.cost and record.cost.energy_source == source else None


def _first(scores: Mapping[str, Metrics], metric: str) -> float | None:
    """The metric on the split that the protocol reports; records of earlier versions may lack it."""
    return next((metrics.values.get(metric) for metrics in scores.values()), None)


def _metric_columns(metric: str) -> tuple[Column, Column]:
    return (
        Column(metric, float, lambda record: _first(record.metrics, metric)),
        Column(f"last_{metric}", float, lambda record: _first(record.last_epoch, metric)),
    )


def _version(package: str) -> Callable[[RunRecord], Any]:
    return lambda record: record.environment.get("packages", {}).get(package)


SPEC_COLUMNS = (
    Column("run_id", str, lambda r: r.spec.run_id),
    Column("suite", str, lambda r: r.spec.suite),
    Column("task", str, lambda r: r.spec.task),
    Column("shots", int, lambda r: -1 if r.spec.shots is None else r.spec.shots),
    Column("split_seed", int, lambda r: -1 if r.spec.split_seed is None else r.spec.split_seed),
    Column("protocol", str, lambda r: r.spec.protocol),
    Column("trials", int, lambda r: r.spec.trials),
    Column("backbone", str, lambda r: r.spec.backbone.name),
    Column("weights", str, lambda r: r.spec.backbone.weights),
    Column("weights_digest", str, lambda r: r.spec.backbone.digest),
    Column("image_size", int, lambda r: r.spec.backbone.image_size),
    Column("preprocessing", str, lambda r: r.spec.preprocessing),
    Column("method", str, lambda r: r.spec.method),
    Column("title", str, lambda r: r.method_title),
    Column("family", str, lambda r: r.method_family),
    Column("paper", str, lambda r: r.method_paper),
    Column("source", str, lambda r: r.method_source[:8] or NO_SOURCE),
    Column("settings", str, _settings),
    Column("variant", str, lambda r: _settings(r, searched=False)),
    Column("chosen", str, lambda r: _settings(r, searched=True)),
    Column("seed", int, lambda r: r.spec.seed),
    Column("status", str, lambda r: r.status),
    Column("reason", str, lambda r: r.reason),
    Column("split", object, lambda r: next(iter(r.metrics), None)),
)
"""What was asked, and whether it was done. `settings`, `variant` (settings that were not searched) and `chosen` (those
that were) are canonical JSON, so that rows can be grouped by them."""

RESULT_COLUMNS = (
    Column("targets", str, lambda r: canonical_json({k: s.values for k, s in list(r.metrics.items())[1:]})),
    Column("test_looks", int, lambda r: r.test_looks),
    Column("epochs", int, lambda r: len(r.curve)),
    Column("chose_channels", bool, lambda r: bool(r.method_info.get("channels"))),
    Column("data", object, lambda r: f"{r.data.lists}/{r.data.files}" if r.data else None),
    Column("data_sizes", object, lambda r: canonical_json(r.data.sizes) if r.data else None),
    Column("pixels", object, lambda r: (r.data.pixels or None) if r.data else None),
    Column("not_official", object, lambda r: (r.data and ", ".join(r.data.not_official)) or None),
    Column("code", object, _code),
    *(Column(name, object, _version(name)) for name in PACKAGES),
    Column("primary_metric", str, lambda r: r.primary_metric),
    Column("chosen_by", object, _chosen_by),
    Column("choice", object, _choice),
    Column("class_names", object, lambda r: json.dumps(r.class_names) if r.class_names else None),
    Column("predictions", bool, lambda r: PREDICTIONS_NAME in r.files),
    Column("device", object, lambda r: r.environment.get("device")),
    Column("device_type", object, lambda r: r.environment.get("device_type")),
    Column("precision", object, _precision),
    Column("by_device", bool, lambda r: r.spec.recipe.precision == "auto"),
    Column("cached_features", object, lambda r: r.cost.cached_features if r.cost else None),
    *_of("parameters", "parameters=trained_without_head", "parameters_with_head=trained_with_head"),
    *_of("parameters", "parameters_method=method", "parameters_backbone=backbone_trained"),
    *_of("parameters", "parameters_head=head", "parameters_total=total"),
    *_of("cost", "seconds", "train_seconds", "evaluate_seconds", "flops=forward_flops", "training_flops"),
    *_of("cost", "images_per_second=train_images_per_second", "step_seconds", "stored_bytes=trained_bytes"),
    *_of("cost", "memory=peak_memory_bytes", "resident_memory=peak_resident_bytes"),
    Column("nvml_joules", float, _joules("nvml")),
    Column("rapl_joules", float, _joules("rapl")),
    Column("selection_seconds", float, lambda r: selection_seconds(r.method_info)),
    Column("latency_1", float, _latency("latency_seconds", "1")),
    Column("latency_64", float, _latency("latency_seconds", "64")),
    Column("merged_latency_1", float, _latency("merged_latency_seconds", "1")),
    Column("merged_latency_64", float, _latency("merged_latency_seconds", "64")),
    Column("tuning_trials", float, lambda r: len(r.tuning.trials) if r.tuning else None),
    Column("tuning_failed", float, lambda r: _failed_trials(r.tuning) if r.tuning else None),
    Column("tuning_score", float, lambda r: _winning_score(r.tuning) if r.tuning else None),
    Column("tuning_seconds", float, lambda r: r.tuning.seconds if r.tuning else None),
)
"""What came out and what it cost. Canonical JSON are `choice` (scores of the trials), `targets` (metrics by target)
and `data_sizes`."""


def columns() -> tuple[Column, ...]:
    """All columns; between what was asked and what it cost stand two of each metric: of the result and, where that is
    not the last epoch's, of the last epoch."""
    return (*SPEC_COLUMNS, *(column for name in METRICS for column in _metric_columns(name)), *RESULT_COLUMNS)


def row(record: RunRecord) -> dict[str, Any]:
    """One record, flattened to numbers and texts: a value of each of `columns`."""
    return {column.name: column.read(record) for column in columns()}


@lru_cache(maxsize=65536)
def parsed(text: str) -> dict[str, Any]:
    """The dictionary that a JSON text of the frame (`settings`, `targets`) stands for; not to be changed."""
    return cast(dict[str, Any], json.loads(text))


def target_values(text: str, metric: Metric) -> dict[str, float]:
    """The metric by target, out of a text of the column `targets`."""
    return {name: values[metric.name] for name, values in parsed(text).items() if metric.name in values}


def frame_of(records: Iterable[RunRecord]) -> pd.DataFrame:
    """One row per record, see `columns`."""
    return typed(pd.DataFrame([row(record) for record in records]))


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The types of `columns` whatever is missing: whole numbers, floats with NaN, optional texts with None."""
    if frame.empty:
        return frame
    numbers = {column.name: column.dtype for column in columns() if column.dtype in (int, float)}
    optional = [column.name for column in columns() if column.dtype is object]
    texts = {name: frame[name].astype(object).where(frame[name].notna(), None) for name in optional}
    return frame.astype(numbers).assign(**texts)
