"""A run's predictions with the names of the images, which the lists tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from harness.data import arrays
from harness.data.lists import Roots
from harness.data.splits import TaskData
from harness.errors import HarnessError
from harness.plans.experiment import suite_of_run
from harness.records import predictions
from harness.records.place import Place
from harness.records.predictions import Predictions
from harness.schema.preprocessing import Preprocessing

NAMED = ("label", "predicted")
"""Columns of classes, which have one with their names beside them where the record knows these."""


def frame(place: Place, roots: Roots, suite: str | None = None) -> pd.DataFrame:
    """A row for each image of each scored split, see `sctbench.predictions`. `suite`: the file, where it is
    the user's own.

    `HarnessError` if there are no predictions, or if the lists are not those of the run.
    """
    spec, kept = place.record.spec, predictions.read(place.folder, place.record)
    whole = suite_of_run(spec, suite)
    preprocessing = Preprocessing.from_id(spec.preprocessing)
    data = TaskData(whole, whole.task(spec.task), preprocessing, roots, spec.shots, spec.split_seed)
    names = place.record.class_names
    frames = [pd.DataFrame(_columns(split, one, data, names)) for split, one in kept.items()]
    return pd.concat(frames, ignore_index=True)


def _columns(split: str, kept: Predictions, data: TaskData, class_names: Sequence[str]) -> dict[str, Any]:
    entries = data.entries(split.removesuffix("/masked"))
    if arrays.list_digest(entries) != kept.list_digest:
        raise HarnessError(
            f"the list of split {split!r} is not the one that the run was scored on: "
            "give the folders of its lists and images with --root and --lists"
        )
    columns = {
        "split": split,
        "image": [entry.name for entry in entries],
        "label": kept.labels,
        "predicted": kept.predicted,
        "probability": kept.probability,
        "label_probability": kept.label_probability,
    }
    named = {f"{name}_name": [class_names[label] for label in columns[name]] for name in NAMED if class_names}
    return columns | named | dict(_logits(kept))


def _logits(kept: Predictions) -> Iterator[tuple[str, Any]]:
    if kept.logits is not None:
        yield from ((f"logit_{number}", column) for number, column in enumerate(kept.logits.T))
