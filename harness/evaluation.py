"""Evaluation of a trained model on one split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness import device as devices
from harness.data import Preprocessing, Split

BATCH_SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Result on one split."""

    accuracy: float
    """Top-1, per cent of images."""

    loss: float
    """Mean cross-entropy."""

    correct_per_class: list[int]
    images_per_class: list[int]


@torch.inference_mode()
def predict(model: nn.Module, data: Split, preprocessing: Preprocessing, precision: str) -> Tensor:
    """Logits float32 [N, classes] of all images in order; `data` lies on the model's device."""
    model.eval()
    outputs = []
    for images, _ in data.batches(BATCH_SIZE):
        with devices.autocast(precision, images.device):
            outputs.append(model(preprocessing.normalise(images)).float())
    return torch.cat(outputs)


def score(logits: Tensor, labels: Tensor) -> Metrics:
    """Metrics of logits [N, classes] against labels [N]."""
    classes = logits.shape[1]
    right = logits.argmax(dim=1) == labels
    return Metrics(
        accuracy=100 * float(right.sum()) / len(labels),
        loss=float(cross_entropy(logits, labels)),
        correct_per_class=torch.bincount(labels[right], minlength=classes).tolist(),
        images_per_class=torch.bincount(labels, minlength=classes).tolist(),
    )
