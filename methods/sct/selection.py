"""Class-aware importance score: which channels of each block matter for this task.

For block l and class c let F be the features [images of c, tokens, d] without prefix tokens. The score of channel j is

    s[l, c, j] = || F[:, :, j] ||_2          one norm over all images and tokens of the class
    S[l, j]    = mean of s[l, c, j] over the classes that occur

and the K channels of largest S are chosen. Sums of squares are streamed, so memory is blocks * classes * d numbers,
whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import MethodError


def per_image_squares(features: Tensor, prefix: int) -> Tensor:
    """Sum of squares over positions, per image and channel.

    features: [B, tokens, d], of which the first `prefix` tokens are left out, or [B, H, W, d]. Returns [B, d] float64.
    """
    flat = features.flatten(1, -2)[:, prefix:]
    return flat.double().square().sum(dim=1)


class ClassSums:
    """Running sums of squares per class and channel, for several blocks."""

    def __init__(self, num_classes: int, widths: Sequence[int], prefix: int, device: torch.device) -> None:
        self.sums = [torch.zeros(num_classes, d, dtype=torch.float64, device=device) for d in widths]
        self.counts = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self.prefix = prefix

    def start_batch(self, labels: Tensor) -> None:
        """The features that follow belong to images of these classes; labels: [B]."""
        self.one_hot = nn.functional.one_hot(labels, len(self.counts)).double()
        self.counts += self.one_hot.sum(dim=0)

    def add(self, block: int, features: Tensor) -> None:
        """Add one block's features of the batch. A product with one-hot labels keeps the order of summation fixed."""
        self.sums[block] += self.one_hot.T @ per_image_squares(features, self.prefix)

    def scores(self) -> list[Tensor]:
        """Class-aware importance S [d] of each block: the mean of the class norms over the classes that occur."""
        present = self.counts > 0
        if not bool(present.any()):
            raise MethodError("channel selection needs at least one training image")
        return [s[present].sqrt().mean(dim=0) for s in self.sums]


def class_aware_scores(
    backbone: Any,
    taps: Sequence[nn.Module],
    widths: Sequence[int],
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
) -> list[Tensor]:
    """Scores [d] (float64) for the *input* of each tap module, from one pass of the frozen backbone over `batches`."""
    device = next(backbone.parameters()).device
    sums = ClassSums(num_classes, widths, int(getattr(backbone, "num_prefix_tokens", 0)), device)
    hooks = [
        tap.register_forward_pre_hook(lambda _, inputs, block=block: sums.add(block, inputs[0]))
        for block, tap in enumerate(taps)
    ]
    try:
        with torch.no_grad():
            for images, labels in batches:
                sums.start_batch(labels)
                backbone.forward_features(images)
    finally:
        for hook in hooks:
            hook.remove()
    return sums.scores()


def top_channels(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest scores in ascending order of index; equal scores go to the lower index.

    scores: [d]. Returns int64 [count] on the CPU. Raises `MethodError` if there are fewer than `count` channels.
    """
    if count > len(scores):
        raise MethodError(f"channels={count} must be at most the backbone's width, here {len(scores)}")
    order = torch.sort(scores.cpu(), descending=True, stable=True).indices
    return order[:count].sort().values
