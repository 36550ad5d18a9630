"""Adapter+: a bottleneck after the whole block, scaled per channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from methods.base import Attachment, Context, Method, check
from methods.blocks import blocks, plug, width
from methods.bottleneck import Bottleneck, bottleneck_parameters, projections


class ChannelScaledAdapter(nn.Module):
    """x + s (*) drop_path(W_up GELU(W_down x)) with a learned s [d]; x: [..., d]."""

    stateless = True

    def __init__(self, bottleneck: Bottleneck, channels: int, drop_path: float) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.scale = nn.Parameter(torch.ones(channels))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.drop_path(self.bottleneck(x)) * self.scale
        return out


class AdapterPlus(Method):
    """The paper's choice among positions, scalings and initialisations: 2*d*h + h + d + d parameters per block
    (165,984 on ViT-B, h = 8). Both projections start as in Houlsby et al., with std 0.01 cut at two
    standard deviations: near the identity, not at it."""

    name = "adapter_plus"
    title = "Adapter+"
    paper = "Steitz and Roth, Adapters Strike Back, CVPR 2024, arXiv 2406.06820"
    family = "adapter"
    composition_order = 32
    recipe = {"lr": 5e-3}
    search_space = {**Method.search_space, "drop_path": (0.0, 0.1)}
    identity_at_start = False

    @dataclass(frozen=True, kw_only=True)
    class Config:
        bottleneck: int = 8
        """Width h of the bottleneck; the paper's tables have 1 to 32."""

        dropout: float = 0.0
        """Dropout inside the bottleneck."""

        drop_path: float = 0.1
        """Probability of leaving out an adapter for a sample."""

        def __post_init__(self) -> None:
            check(self.bottleneck >= 1, "bottleneck", self.bottleneck, "at least 1")
            check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
            check(0 <= self.drop_path < 1, "drop_path", self.drop_path, "in [0, 1)")

    def expected_parameters(self, backbone: nn.Module) -> int:
        h = self.config.bottleneck
        return sum(bottleneck_parameters(width(b), h) + width(b) for b in blocks(backbone))

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        c = self.config
        for block in blocks(backbone):
            pair = projections(width(block), c.bottleneck, context.generator, down=0.01, up=0.01, cut=0.02)
            bottleneck = Bottleneck(*pair, nn.GELU(), dropout=c.dropout)
            plug(block, "output", ChannelScaledAdapter(bottleneck, width(block), c.drop_path))
        return Attachment()
