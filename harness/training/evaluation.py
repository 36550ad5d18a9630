"""Evaluation of a trained model on one split."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness import device as devices
from harness.data.splits import Split
from harness.schema.metrics import METRICS
from harness.schema.preprocessing import Preprocessing
from harness.schema.record import Metrics
from harness.training import fast_path
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


def evaluate(
    model: nn.Module, splits: dict[str, Split], task: Task, preprocessing: Preprocessing, precision: str
) -> dict[str, Metrics]:
    """Metrics of each split; of a masked target also those among its own classes alone, as `<name>/masked`."""
    masked = {target.name for target in task.targets if target.masked}
    metrics = {}
    for name, split in splits.items():
        logits = predict(model, split, preprocessing, precision).cpu()
        metrics[name] = score(logits, split.labels)
        if name in masked:
            absent = torch.ones(logits.shape[1], dtype=torch.bool)
            absent[split.labels.unique()] = False
            metrics[f"{name}/masked"] = score(logits.masked_fill(absent, float("-inf")), split.labels)
    return metrics


def score(logits: Tensor, labels: Tensor) -> Metrics:
    """All `METRICS` of logits [N, classes] against labels [N]."""
    classes = logits.shape[1]
    right = logits.argmax(dim=1) == labels
    return Metrics(
        values={name: metric.compute(logits, labels) for name, metric in METRICS.items()},
        correct_per_class=torch.bincount(labels[right], minlength=classes).tolist(),
        images_per_class=torch.bincount(labels, minlength=classes).tolist(),
    )
