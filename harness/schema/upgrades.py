"""Records of earlier schemas as documents of today's: one function per change of the schema, applied in turn.

A change of the record's layout raises `harness.schema.record.SCHEMA` and adds a function here. A document is the plain
JSON of a record without its digest, which has been checked by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Document = dict[str, Any]


def upgrade_2_to_3(document: Document) -> Document:
    """The method's family, paper and source, the decoded pixels and the origin of the lists were not recorded."""
    data = document["data"] and {"pixels": "", "official_sizes": {}, "split_origin": "", **document["data"]}
    return {"method_family": "", "method_paper": "", "method_source": "", **document, "data": data}


def upgrade_3_to_4(document: Document) -> Document:
    """Metrics by name; the point up to where features were cached has another name."""

    def by_name(metrics: Document) -> Document:
        values = {name: metrics[name] for name in ("accuracy", "loss")}
        counts = {name: metrics[name] for name in ("correct_per_class", "images_per_class")}
        return {"values": values, **counts}

    scores = {
        field: {split: by_name(metrics) for split, metrics in document[field].items()}
        for field in ("metrics", "last_epoch")
    }
    cost = document["cost"] and dict(document["cost"])
    if cost:
        cost["cached_features"] = cost.pop("computed_once", "")
    return document | scores | {"cost": cost}


def upgrade_4_to_5(document: Document) -> Document:
    """A run left its record and nothing else; everything was chosen by top-1 accuracy, and energy was not measured."""
    tuning = document["tuning"] and dict(document["tuning"])
    if tuning:
        tuning["metric"], tuning["trials"] = "accuracy", [_by_score(trial) for trial in tuning["trials"]]
    cost = document["cost"] and {"energy_joules": None, "energy_source": "", **document["cost"]}
    return document | {"files": {}, "primary_metric": "accuracy", "tuning": tuning, "cost": cost}


def upgrade_5_to_6(document: Document) -> Document:
    """Names of classes were not recorded."""
    return document | {"class_names": []}


def _by_score(trial: Document) -> Document:
    return {"score" if key == "accuracy" else key: value for key, value in trial.items()}


UPGRADES: dict[int, Callable[[Document], Document]] = {
    2: upgrade_2_to_3,
    3: upgrade_3_to_4,
    4: upgrade_4_to_5,
    5: upgrade_5_to_6,
}
"""The next schema's document out of that of the schema that is the key."""


def upgraded(document: Document, schema: int) -> Document:
    """`document` as the newest schema has it. `KeyError`, `TypeError` or `AttributeError` if it is not of `schema`."""
    while schema in UPGRADES:
        document, schema = UPGRADES[schema](document), schema + 1
    return document
