"""Looking at a held-out split after every epoch, for the learning curve, or because the protocol chooses by it.

Looking changes nothing of the training: it draws no random number, and the training continues as if nobody had looked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from harness.schema.record import Metrics

Score = Callable[[], dict[str, Metrics]]
"""Scores the model as it is now, the split that the protocol reports first."""


class EpochEvaluator:
    """The scores of all epochs so far: the best and the last of them."""

    def __init__(self, score: Score) -> None:
        self.score = score
        self.epochs = 0
        self.best: dict[str, Metrics] = {}
        """Of the epoch with the best accuracy on the first split, the earliest of equals."""

        self.last: dict[str, Metrics] = {}
        self.seconds = 0.0

    def look(self) -> dict[str, float]:
        """Score the epoch that has just ended; returns its accuracies by split, in per cent."""
        start = time.perf_counter()
        self.last = self.score()
        self.epochs += 1
        if not self.best or _first(self.last) > _first(self.best):
            self.best = self.last
        self.seconds += time.perf_counter() - start
        return {split: metrics.accuracy for split, metrics in self.last.items()}

    def state(self) -> dict[str, Any]:
        """All that was seen, as plain values."""
        return {
            "epochs": self.epochs,
            "seconds": self.seconds,
            "best": {split: asdict(metrics) for split, metrics in self.best.items()},
            "last": {split: asdict(metrics) for split, metrics in self.last.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.epochs, self.seconds = state["epochs"], state["seconds"]
        self.best = {split: Metrics(**metrics) for split, metrics in state["best"].items()}
        self.last = {split: Metrics(**metrics) for split, metrics in state["last"].items()}


def _first(scores: dict[str, Metrics]) -> float:
    return next(iter(scores.values())).accuracy
