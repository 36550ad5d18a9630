"""Predictions: what a run's model said of every image that it was scored on, kept beside the record.

`predictions.safetensors` holds for each scored split, under `<split>/`, in the order of the split's list:

    labels               uint16 [N]     class by the list
    predicted            uint16 [N]     class with the largest logit
    probability          float32 [N]    of the predicted class
    label_probability    float32 [N]    of the class by the list
    logits               float16 [N, C] where they were asked for

and in its metadata the digest of each split's list. Twelve bytes an image: 4.7 MB for the 388,000 test images of
VTAB-1K. Reading it needs numpy alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from harness.records.store import PREDICTIONS_NAME, read_stored
from harness.schema.record import RunRecord
from harness.tensor_header import metadata

TYPES = {
    "labels": np.uint16,
    "predicted": np.uint16,
    "probability": np.float32,
    "label_probability": np.float32,
    "logits": np.float16,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictions:
    """What a model said of every image of a split, in the order of its list. Types and shapes are the file's."""

    labels: NDArray[np.uint16]
    predicted: NDArray[np.uint16]
    probability: NDArray[np.float32]
    """Of the predicted class, in [0, 1]."""

    label_probability: NDArray[np.float32]
    """Of the class by the list."""

    logits: NDArray[np.float16] | None = None
    """Of all classes, where they were kept."""

    list_digest: str = ""
    """sha256 over names and labels of the list: predictions with the same are of the same images in the same order."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which images were classified right."""
        return np.asarray(self.predicted == self.labels)

    def __len__(self) -> int:
        return len(self.labels)


def encode(splits: dict[str, Predictions]) -> bytes:
    """The file's content."""
    tensors = {
        f"{split}/{name}": np.ascontiguousarray(values, dtype=kind)
        for split, predictions in splits.items()
        for name, kind in TYPES.items()
        if (values := getattr(predictions, name)) is not None
    }
    digests = {split: predictions.list_digest for split, predictions in splits.items()}
    return save(tensors, {"lists": json.dumps(digests)})


def decode(content: bytes) -> dict[str, Predictions]:
    """The predictions in a file, by split."""
    tensors: dict[str, Any] = load(content)
    return {
        split: Predictions(
            list_digest=digest, **{name: tensors[key] for name in TYPES if (key := f"{split}/{name}") in tensors}
        )
        for split, digest in json.loads(metadata(content)["lists"]).items()
    }


def read(folder: Path, record: RunRecord) -> dict[str, Predictions]:
    """The predictions of the run in `folder`, by split: those that the record's metrics are of.

    `HarnessError` if the run kept none, as those of before schema 5, or if the file is gone or was changed.
    """
    return decode(read_stored(folder, record, PREDICTIONS_NAME, "Runs keep them since schema 5 of the record"))
