"""SCT as a method: select channels, plug a module behind the attention of every block."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import nn

from methods.base import Attachment, Context, Method, check
from methods.blocks import blocks, new_linear, plug, width
from methods.sct.module import SalientChannels
from methods.sct.selection import class_aware_scores, top_channels

SELECTION_BATCH = 50
"""Images per batch while scoring, as in the released code."""


class SCT(Method):
    """Trains one K x K map per block on the K most salient channels after the attention residual: K*K + K a block."""

    name = "sct"
    title = "SCT"
    paper = "Zhao et al., SCT: Salient Channel Tuning, IJCV 2024, arXiv 2309.08513"
    family = "selective"
    recipe = {"lr": 8e-3}
    identity_at_start = False

    @dataclass(frozen=True, kw_only=True)
    class Config:
        channels: int | None = None
        """Number K of channels per block; None is one in eight of the width: 96 of ViT-B's 768, as published."""

        def __post_init__(self) -> None:
            check(self.channels is None or self.channels >= 1, "channels", self.channels, "at least 1")

    def channels_per_block(self, backbone: nn.Module) -> list[int]:
        """K of each block. Raises `MethodError` if a block is narrower."""
        widths = [width(b) for b in blocks(backbone)]
        counts = [w // 8 if self.config.channels is None else self.config.channels for w in widths]
        for count, available in zip(counts, widths, strict=True):
            check(count <= available, "channels", count, f"at most the width of the backbone's blocks, {available}")
        return counts

    def expected_parameters(self, backbone: nn.Module) -> int:
        return sum(k * k + k for k in self.channels_per_block(backbone))

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        found = blocks(backbone)
        counts = self.channels_per_block(backbone)
        start = time.perf_counter()
        # The input of norm2 is the residual stream after attention.
        taps = [b.norm2 for b in found]
        batches = context.calibration(SELECTION_BATCH)
        widths = [width(b) for b in found]
        scores = class_aware_scores(backbone, taps, widths, batches, context.num_classes)
        chosen = [top_channels(s, k) for s, k in zip(scores, counts, strict=True)]
        seconds = time.perf_counter() - start
        for block, indices in zip(found, chosen, strict=True):
            plug(
                block,
                "after_attention",
                SalientChannels(indices, new_linear(len(indices), len(indices), context.generator)),
            )
        return Attachment(info={"channels": [c.tolist() for c in chosen], "selection_seconds": seconds})
