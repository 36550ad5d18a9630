"""Scores on a held-out split after every epoch, for the learning curve, or because the protocol chooses by them.

The training goes on as if nobody had looked: an evaluation draws no random number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from harness.data.splits import Split
from harness.schema.record import Metrics
from harness.training import evaluation
from harness.training.callbacks import Callback
from suites.base import Task

if TYPE_CHECKING:
    from harness.training.trainer import Trainer


class EpochEvaluator(Callback):
    """Scores of all epochs so far: the best and the last of them."""

    name = "evaluator"

    def __init__(self, splits: Callable[[], dict[str, Split]], task: Task) -> None:
        self.splits, self.task = splits, task
        """What is scored; the split that the protocol reports comes first."""

        self.epochs = 0
        self.best: dict[str, Metrics] = {}
        """Of the epoch with the best accuracy on the first split, the earliest of equals."""

        self.last: dict[str, Metrics] = {}
        self.seconds = 0.0

    def on_epoch_end(self, trainer: Trainer) -> None:
        start = time.perf_counter()
        with trainer.evaluating():
            self.last = evaluation.evaluate(
                trainer.model, self.splits(), self.task, trainer.preprocessing, trainer.precision
            )
        scores = {split: metrics.accuracy for split, metrics in self.last.items()}
        trainer.curve[-1] = replace(trainer.curve[-1], scores=scores)
        self.epochs += 1
        if not self.best or _first(self.last) > _first(self.best):
            self.best = self.last
        self.seconds += time.perf_counter() - start

    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": self.epochs,
            "seconds": self.seconds,
            "best": {split: asdict(metrics) for split, metrics in self.best.items()},
            "last": {split: asdict(metrics) for split, metrics in self.last.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs, self.seconds = state["epochs"], state["seconds"]
        self.best = {split: Metrics(**metrics) for split, metrics in state["best"].items()}
        self.last = {split: Metrics(**metrics) for split, metrics in state["last"].items()}


def _first(scores: dict[str, Metrics]) -> float:
    return next(iter(scores.values())).accuracy
