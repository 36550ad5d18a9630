"""The classes that a run's model sees in pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from harness import device as devices
from harness.data import decoding
from harness.data.splits import Split
from harness.errors import DataError
from harness.records.place import Place
from harness.schema.preprocessing import Preprocessing
from harness.training import evaluation, weights

AT_ONCE = 1024
"""Pictures that are in memory at the same time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One class for one picture."""

    image: Path
    rank: int
    """1 for the most probable class."""

    label: int
    probability: float


def pictures(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths`, and the pictures in and below the folders among them. `DataError` for what is not
    there, or a folder without pictures."""
    endings = Image.registered_extensions()
    found: list[Path] = []
    for path in paths:
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in endings) if path.is_dir() else [path]
        if not inside or not path.exists():
            raise DataError(f"{path}: {'no pictures in this folder' if path.exists() else 'no such file or folder'}")
        found += inside
    return found


def classify(
    place: Place,
    paths: Sequence[Path],
    top: int = 1,
    *,
    weights_file: Path | None = None,
    method: str | None = None,
    device: str = "auto",
) -> Iterator[Answer]:
    """The `top` most probable classes of each picture, in order, by the run's model and with its preprocessing.

    `paths`: files and folders. `weights_file`, `method`, `device`: see `harness.training.weights.load`. `DataError`
    names a picture that cannot be decoded; those before it have been answered then.
    """
    files, record = pictures(paths), place.record
    model = weights.load(place, weights_file, method, device).model
    preprocessing = Preprocessing.from_id(record.spec.preprocessing)
    where = next(model.parameters()).device
    precision = record.environment.get("precision", "float32")
    precision = precision if devices.can(precision, where) else "float32"
    for some in (files[start : start + AT_ONCE] for start in range(0, len(files), AT_ONCE)):
        pixels = torch.from_numpy(np.stack([decoding.decode(path, preprocessing) for path in some]))
        data = Split(pixels, torch.zeros(len(some), dtype=torch.int64))
        scores = evaluation.predict(model, data, preprocessing, precision).softmax(dim=1).cpu()
        best = scores.topk(min(top, scores.shape[1]))
        for path, labels, chances in zip(some, best.indices.tolist(), best.values.tolist(), strict=True):
            ranked = enumerate(zip(labels, chances, strict=True), 1)
            yield from (Answer(path, rank, label, chance) for rank, (label, chance) in ranked)
