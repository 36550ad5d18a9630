"""Swin transformers v2: post-norm blocks, cosine attention within windows, positions by a small network."""

from __future__ import annotations

import math
from typing import Any

from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block
from torch import Tensor, nn
from torch.nn import functional

from methods.architectures.base import PostNormBlock, register
from methods.architectures.swin import SMALL_SWIN, Windows


class SlottedSwinV2Block(PostNormBlock, SwinTransformerV2Block):
    """timm's Swin v2 block with slots. x: [batch, rows, columns, channels]."""

    plain = SwinTransformerV2Block

    def attend(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        h: Tensor = self.norm1(self._attn(x))
        return h


@register
class SwinV2(Windows):
    """timm's `SwinTransformerV2`."""

    name = "swin_v2"
    title = "Swin v2"
    model = SwinTransformerV2
    blocks = (SlottedSwinV2Block,)
    timm_modules = ("swin_transformer_v2",)
    small = {"swin_v2": ("swinv2_tiny_window8_256", SMALL_SWIN)}

    def compared(self, attention: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        scale = attention.logit_scale.clamp(max=math.log(100)).exp()  # of cosines
        return functional.normalize(q, dim=-1) * scale, functional.normalize(k, dim=-1)

    def liven(self, model: Any) -> None:
        for stage in self.stages(model):
            for norm in (norm for block in stage for norm in self.norms(block)):
                nn.init.ones_(norm.weight)  # zero at first: each block would be the identity
