"""Which channels of each block matter for this task: scores from one pass over the training split, and exact top-K.

For block l and class c let F be the features [images of c, tokens, d] without prefix tokens. The class-aware
importance of channel j is

    s[l, c, j] = || F[:, :, j] ||_2          one norm over all images and tokens of the class
    S[l, j]    = mean of s[l, c, j] over the classes that occur

Sums of squares are streamed, so memory is taps * classes * d numbers, whatever the number of images. On CUDA they are
taken by kernels, all taps in one forward pass, and nothing waits for the host until the channels are read.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.architectures import architecture_of
from methods.base import MethodError
from methods.sct.sums import ClassSums

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

    channels_first: bool = False
    """Whether the features are [images, channels, rows, columns]."""

    def listen(self, hear: Callable[[Tensor], None]) -> torch.utils.hooks.RemovableHandle:
        """Call `hear` with the module's whole input or output of every forward pass, until the handle is removed."""
        if self.where == "input":
            return self.module.register_forward_pre_hook(lambda _, inputs: hear(inputs[0]))
        return self.module.register_forward_hook(lambda _, inputs, output: hear(output))

    def features(self, heard: Tensor) -> Tensor:
        """What was heard, channels last."""
        return heard.permute(0, 2, 3, 1) if self.channels_first else heard

    @property
    def width(self) -> int:
        """Number of channels read."""
        return int(self.columns.stop - self.columns.start)


def feature_sums(backbone: Any, taps: Sequence[Tap], batches: Batches, num_classes: int) -> ClassSums:
    """Sums of squares of the features at the taps, from one pass of the frozen backbone over `batches`."""
    prefix, device = architecture_of(backbone).prefix_tokens(backbone), next(backbone.parameters()).device
    sums = ClassSums(num_classes, [tap.width for tap in taps], prefix, device)
    with ExitStack() as stack, torch.no_grad():
        for i, tap in enumerate(taps):
            stack.callback(tap.listen(partial(_add, sums, i, tap)).remove)
        for images, labels in batches:
            sums.start_batch(labels)
            backbone.forward_features(images)
    return sums


def _add(sums: ClassSums, number: int, tap: Tap, heard: Tensor) -> None:
    sums.add(number, tap.columns, tap.features(heard))


def saliency_sums(backbone: Any, taps: Sequence[Tap], batches: Batches, num_classes: int) -> ClassSums:
    """Like `feature_sums` for feature times gradient of the cross-entropy, the first-order change of the loss when a
    channel is removed (Molchanov et al., ICLR 2017, eq. 7, here as a norm over positions). The head is the fresh one.
    All tokens count: where the head reads the class token, no other token of the last block has a gradient.
    """
    sums = ClassSums(num_classes, [tap.width for tap in taps], 0, next(backbone.parameters()).device)
    heard: list[Tensor] = []
    with ExitStack() as stack, torch.enable_grad():
        for tap in taps:
            stack.callback(tap.listen(heard.append).remove)
        for images, labels in batches:
            heard.clear()
            loss = cross_entropy(backbone(images.detach().requires_grad_(True)), labels, reduction="sum")
            gradients = torch.autograd.grad(loss, heard)
            sums.start_batch(labels)
            for i, (tap, features, gradient) in enumerate(zip(taps, heard, gradients, strict=True)):
                _add(sums, i, tap, (features * gradient).detach())
    return sums


def top_channels(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest scores in ascending order of index; equal scores go to the lower index.

    scores: [d]. Returns int64 [count] on their device. Raises `MethodError` if there are fewer than `count` channels.
    """
    if count > len(scores):
        raise MethodError(f"channels={count} must be at most the backbone's width, here {len(scores)}")
    return torch.sort(scores, descending=True, stable=True).indices[:count].sort().values


def score(
    rule: str, backbone: Any, taps: Sequence[Tap], batches: Batches, num_classes: int, generator: torch.Generator
) -> list[Tensor]:
    """Scores [d] of each tap by the rule of that name: `class_aware`, `l2`, `random`, `lowest` or `gradient`. Raises
    `MethodError` if a tap's are all equal."""
    if rule == "random":
        return [torch.rand(tap.width, generator=generator) for tap in taps]
    measure = saliency_sums if rule == "gradient" else feature_sums
    sums = measure(backbone, taps, batches, num_classes)
    scores = sums.l2() if rule in ("gradient", "l2") else sums.class_aware()
    if any(bool((s == s[0]).all()) for s in scores):
        raise MethodError(
            f"selection={rule!r} tells no channels of this backbone apart: all scores of a block are equal"
        )
    return [-s for s in scores] if rule == "lowest" else scores
