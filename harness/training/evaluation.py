"""Evaluation of a model on held-out splits: after the training, or after every epoch of it."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness import device as devices
from harness.data.splits import Split
from harness.errors import HarnessError
from harness.records import predictions as predictions_file
from harness.records.predictions import Predictions
from harness.schema.metrics import METRICS, Metric, Outputs
from harness.schema.preprocessing import Preprocessing
from harness.schema.record import Metrics
from harness.training import fast_path
from harness.training.callbacks import Callback
from harness.training.trainer import Trainer
from suites.base import Task

BATCH_SIZE = 256


@torch.inference_mode()
def predict(model: nn.Module, data: Split, preprocessing: Preprocessing, precision: str) -> Tensor:
    """Logits float32 [N, classes] of all images in order, on the model's device."""
    model.eval()
    device = next(model.parameters()).device
    few, outputs = preprocessing.normalise(data.images[: fast_path.PROBE_IMAGES].to(device)), []
    with fast_path.class_token_alone(model, few):
        for images, _ in data.batches(BATCH_SIZE, device):
            with devices.autocast(precision, device):
                outputs.append(model(preprocessing.normalise(images)).float())
    return torch.cat(outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a model did on held-out splits, by their names; of a masked target also among its own classes alone, as
    `<name>/masked`."""

    metrics: dict[str, Metrics] = field(default_factory=dict)
    predictions: dict[str, Predictions] = field(default_factory=dict)


def evaluate(
    model: nn.Module,
    splits: dict[str, Split],
    task: Task,
    preprocessing: Preprocessing,
    precision: str,
    keep_logits: bool = False,
) -> Evaluation:
    """Metrics and predictions of each split; with `keep_logits` the predictions hold all logits."""
    masked = {target.name for target in task.targets if target.masked}
    outcome = Evaluation()
    for name, split in splits.items():
        logits = predict(model, split, preprocessing, precision).cpu()
        views = {name: logits} | ({f"{name}/masked": _masked(logits, split.labels)} if name in masked else {})
        for view, seen in views.items():
            outcome.metrics[view] = score(seen, split.labels)
            outcome.predictions[view] = predictions_of(seen, split.labels, keep_logits)
    return outcome


def _masked(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits [N, C] that are -inf for classes without an image."""
    absent = torch.ones(logits.shape[1], dtype=torch.bool)
    absent[labels.unique()] = False
    return logits.masked_fill(absent, float("-inf"))


def predictions_of(logits: Tensor, labels: Tensor, keep_logits: bool = False) -> Predictions:
    """What logits float32 [N, C] on the CPU say of images with labels [N]."""
    predicted, probabilities = logits.argmax(dim=1), logits.softmax(dim=1)
    return Predictions(
        labels=labels.numpy().astype(np.uint16),
        predicted=predicted.numpy().astype(np.uint16),
        probability=probabilities.gather(1, predicted[:, None])[:, 0].numpy(),
        label_probability=probabilities.gather(1, labels[:, None])[:, 0].numpy(),
        logits=logits.half().numpy() if keep_logits else None,
    )


def score(logits: Tensor, labels: Tensor) -> Metrics:
    """All `METRICS` that are defined, of logits [N, classes] against labels [N]."""
    outputs = Outputs(logits, labels)
    values = {name: metric.of(outputs) for name, metric in METRICS.items()}
    return Metrics(
        values={name: value for name, value in values.items() if value is not None},
        correct_per_class=outputs.correct.tolist(),
        images_per_class=outputs.images.tolist(),
    )


class EpochEvaluator(Callback):
    """Scores on held-out splits after every epoch, for the learning curve, or because the protocol chooses by them: the
    best and the last so far.

    The training goes on as if nobody had looked: an evaluation draws no random number.
    """

    name = "evaluator"

    def __init__(
        self, splits: Callable[[], dict[str, Split]], task: Task, metric: Metric, keep_logits: bool = False
    ) -> None:
        self.splits, self.task, self.keep_logits = splits, task, keep_logits
        """What is scored; the split that the protocol reports comes first."""

        self.metric = metric
        """What chooses the best epoch."""

        self.epochs = 0
        self.best = Evaluation()
        """Of the epoch that is the best by the metric on the first split, the earliest of equals."""

        self.last: dict[str, Metrics] = {}
        self.seconds = 0.0

    def on_epoch_end(self, trainer: Trainer) -> None:
        start = time.perf_counter()
        with trainer.evaluating():
            now = evaluate(
                trainer.model, self.splits(), self.task, trainer.preprocessing, trainer.precision, self.keep_logits
            )
        self.last = now.metrics
        scores = {split: metrics.accuracy for split, metrics in now.metrics.items()}
        trainer.curve[-1] = replace(trainer.curve[-1], scores=scores)
        self.epochs += 1
        if not self.best.metrics or self._score(now.metrics) > self._score(self.best.metrics):
            self.best = now
        self.seconds += time.perf_counter() - start

    def state_dict(self) -> dict[str, Any]:
        content = bytearray(predictions_file.encode(self.best.predictions))
        return {
            "epochs": self.epochs,
            "seconds": self.seconds,
            "best": {split: asdict(metrics) for split, metrics in self.best.metrics.items()},
            "predictions": torch.frombuffer(content, dtype=torch.uint8),
            "last": {split: asdict(metrics) for split, metrics in self.last.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs, self.seconds = state["epochs"], state["seconds"]
        self.best = Evaluation(
            metrics={split: Metrics(**metrics) for split, metrics in state["best"].items()},
            predictions=predictions_file.decode(state["predictions"].numpy().tobytes()),
        )
        self.last = {split: Metrics(**metrics) for split, metrics in state["last"].items()}

    def _score(self, scores: dict[str, Metrics]) -> float:
        """What chooses, higher is better. `HarnessError` where it is not defined."""
        split, metrics = next(iter(scores.items()))
        if self.metric.name not in metrics.values:
            raise HarnessError(f"{self.metric.title} cannot choose an epoch: it is not defined on {split}")
        return self.metric.sign * metrics.values[self.metric.name]
