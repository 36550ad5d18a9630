"""Which channels of each block matter for this task: scores from one pass over the training split, and exact top-K.

For block l and class c let F be the features [images of c, tokens, d] without prefix tokens. The class-aware
importance of channel j is

    s[l, c, j] = || F[:, :, j] ||_2          one norm over all images and tokens of the class
    S[l, j]    = mean of s[l, c, j] over the classes that occur

Sums of squares are streamed, so memory is taps * classes * d numbers, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.base import MethodError

Batches = Iterable[tuple[Tensor, Tensor]]
"""Images [B, 3, H, W] and labels [B]."""


@dataclass(frozen=True, slots=True)
class Tap:
    """A place where features are read: the input or the output of a module, or some of its columns."""

    module: nn.Module
    where: str
    """`input` or `output`."""

    columns: slice
    """Channels to read, e.g. the query third of a fused qkv."""

    def listen(self, hear: Callable[[Tensor], None]) -> torch.utils.hooks.RemovableHandle:
        """Call `hear` with the module's whole input or output of every forward pass, until the handle is removed."""
        if self.where == "input":
            return self.module.register_forward_pre_hook(lambda _, inputs: hear(inputs[0]))
        return self.module.register_forward_hook(lambda _, inputs, output: hear(output))

    @property
    def width(self) -> int:
        """Number of channels read."""
        return int(self.columns.stop - self.columns.start)


def per_image_squares(features: Tensor, images: int, prefix: int) -> Tensor:
    """Sum of squares over positions, per image and channel, [images, d] float64.

    features: [images, tokens, d], of which the first `prefix` tokens are left out; [images, H, W, d]; or Swin's windows
    [images * windows, tokens, d], which lie image by image.
    """
    flat = features.reshape(images, -1, features.shape[-1])[:, prefix:]
    return flat.double().square().sum(dim=1)


class ClassSums:
    """Running sums of squares per class and channel, for several taps."""

    def __init__(self, num_classes: int, widths: Sequence[int], prefix: int, device: torch.device) -> None:
        self.sums = [torch.zeros(num_classes, d, dtype=torch.float64, device=device) for d in widths]
        self.counts = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self.prefix = prefix

    def start_batch(self, labels: Tensor) -> None:
        """The features that follow belong to images of these classes; labels: [B]."""
        self.one_hot = nn.functional.one_hot(labels, len(self.counts)).double()
        self.counts += self.one_hot.sum(dim=0)

    def add(self, tap: int, columns: slice, features: Tensor) -> None:
        """Add one tap's features of the batch. A product with one-hot labels keeps the order of summation fixed."""
        self.sums[tap] += self.one_hot.T @ per_image_squares(features[..., columns], len(self.one_hot), self.prefix)

    def class_aware(self) -> list[Tensor]:
        """Importance S [d] of each tap: the mean of the class norms over the classes that occur."""
        present = self.counts > 0
        if not bool(present.any()):
            raise MethodError("channel selection needs at least one training image")
        return [s[present].sqrt().mean(dim=0) for s in self.sums]

    def l2(self) -> list[Tensor]:
        """Norm [d] of each tap over all images at once, whatever their class."""
        return [s.sum(dim=0).sqrt() for s in self.sums]


def _sums_for(backbone: Any, taps: Sequence[Tap], num_classes: int) -> ClassSums:
    device = next(backbone.parameters()).device
    return ClassSums(num_classes, [tap.width for tap in taps], int(getattr(backbone, "num_prefix_tokens", 0)), device)


def feature_sums(backbone: Any, taps: Sequence[Tap], batches: Batches, num_classes: int) -> ClassSums:
    """Sums of squares of the features at the taps, from one pass of the frozen backbone over `batches`."""
    sums = _sums_for(backbone, taps, num_classes)
    with ExitStack() as stack, torch.no_grad():
        for i, tap in enumerate(taps):
            stack.callback(tap.listen(partial(sums.add, i, tap.columns)).remove)
        for images, labels in batches:
            sums.start_batch(labels)
            backbone.forward_features(images)
    return sums


def saliency_sums(backbone: Any, taps: Sequence[Tap], batches: Batches, num_classes: int) -> ClassSums:
    """Like `feature_sums` for feature times gradient of the cross-entropy, the first-order change of the loss when a
    channel is removed (Molchanov et al., ICLR 2017, eq. 7, here as a norm over positions). The head is the fresh one.
    """
    sums = _sums_for(backbone, taps, num_classes)
    heard: list[Tensor] = []
    with ExitStack() as stack, torch.enable_grad():
        for tap in taps:
            stack.callback(tap.listen(heard.append).remove)
        for images, labels in batches:
            heard.clear()
            loss = cross_entropy(backbone(images.requires_grad_(True)), labels, reduction="sum")
            gradients = torch.autograd.grad(loss, heard)
            sums.start_batch(labels)
            for i, (tap, features, gradient) in enumerate(zip(taps, heard, gradients, strict=True)):
                sums.add(i, tap.columns, (features * gradient).detach())
    return sums


def top_channels(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest scores in ascending order of index; equal scores go to the lower index.

    scores: [d]. Returns int64 [count] on the CPU. Raises `MethodError` if there are fewer than `count` channels.
    """
    if count > len(scores):
        raise MethodError(f"channels={count} must be at most the backbone's width, here {len(scores)}")
    order = torch.sort(scores.cpu(), descending=True, stable=True).indices
    return order[:count].sort().values


def score(
    rule: str, backbone: Any, taps: Sequence[Tap], batches: Batches, num_classes: int, generator: torch.Generator
) -> list[Tensor]:
    """Scores [d] of each tap by the rule of that name: `class_aware`, `l2`, `random`, `lowest` or `gradient`."""
    if rule == "random":
        return [torch.rand(tap.width, generator=generator) for tap in taps]
    if rule == "gradient":
        return saliency_sums(backbone, taps, batches, num_classes).l2()
    sums = feature_sums(backbone, taps, batches, num_classes)
    if rule == "l2":
        return sums.l2()
    return [-s if rule == "lowest" else s for s in sums.class_aware()]
