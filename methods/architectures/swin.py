"""Swin transformers (v1): stages of growing width, whose blocks attend within windows of a map."""

from __future__ import annotations

from typing import Any

from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import Tensor

from methods.architectures.base import Architecture, TwoBranchBlock, register


class SlottedSwinBlock(TwoBranchBlock, SwinTransformerBlock):
    """timm's Swin block with slots. x: [batch, rows, columns, channels]."""

    plain = SwinTransformerBlock

    def attend(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        h: Tensor = self._attn(x)  # type: ignore[no-untyped-call]
        return h

    def feed_forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.mlp(x)
        return h


SMALL_SWIN: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 24,
    "depths": (2, 2),
    "num_heads": (2, 4),
}
"""Arguments of a small model."""


class Windows(Architecture):
    """What Swin transformers of both versions share."""

    sequence = False

    def stages(self, model: Any) -> list[list[Any]]:
        return [list(stage.blocks) for stage in model.layers]

    def steps(self, model: Any) -> list[Any]:
        return [step for stage in model.layers for step in (stage.downsample, *stage.blocks)] + [model.norm]

    def pads(self, block: Any) -> bool:
        return any(side % window for side, window in zip(block.input_resolution, block.window_size, strict=True))


@register
class Swin(Windows):
    """timm's `SwinTransformer`. Its checkpoint filter knows the official release, index buffers included."""

    name = "swin"
    title = "Swin"
    model = SwinTransformer
    blocks = (SlottedSwinBlock,)
    timm_modules = ("swin_transformer",)
    small = {"swin": ("swin_tiny_patch4_window7_224", SMALL_SWIN)}
