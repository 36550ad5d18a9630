"""Metrics of a trained model. A metric is one object: put it into `METRICS`, and every record has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import HarnessError, did_you_mean

if TYPE_CHECKING:  # so that a command that trains nothing starts without waiting for torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number that sums up how a model did on a split."""

    name: str
    """Key in `Metrics.values` of the record."""

    title: str
    """Name in tables and messages."""

    unit: str
    """Unit in tables; empty for a plain number."""

    higher_is_better: bool

    compute: Callable[[Tensor, Tensor], float]
    """Of the logits float32 [N, C] and the labels int64 [N] of a whole split, on one device. A masked target's logits
    are -inf for classes that it does not have. The result must be finite for finite logits."""


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return 100 * float((logits.argmax(dim=1) == labels).sum()) / len(labels)


def _cross_entropy(logits: Tensor, labels: Tensor) -> float:
    from torch.nn.functional import cross_entropy

    return float(cross_entropy(logits, labels))


ACCURACY = Metric(name="accuracy", title="top-1 accuracy", unit="%", higher_is_better=True, compute=_accuracy)
LOSS = Metric(name="loss", title="cross-entropy", unit="", higher_is_better=False, compute=_cross_entropy)

METRICS = {metric.name: metric for metric in (ACCURACY, LOSS)}
"""All metrics by name: every evaluation computes each of them."""


def get(name: str) -> Metric:
    """The metric of that name; `HarnessError` if there is none."""
    if name not in METRICS:
        raise HarnessError(f"unknown metric {name!r}. {did_you_mean(name, list(METRICS))}")
    return METRICS[name]
