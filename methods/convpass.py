"""Convpass: convolutional bypasses beside attention and MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Attachment, Context, Method, check
from methods.blocks import blocks, new_linear, plug, width
from methods.bottleneck import QuickGELU, bottleneck_parameters
from methods.grid import new_convolution, on_grid, token_grid

POSITIONS = {"both": ("attention", "mlp"), "attention": ("attention",)}
"""Value of `positions` to the layers that get a bypass."""

STARTS = ("identity", "xavier")


class ConvolutionalBypass(nn.Module):
    """s * drop_path(W_up dropout(a(conv(a(W_down norm(x)))))); x: [batch, tokens, d] or Swin map.

    `norm` and `drop_path` are the block's own, looked up at each call and not registered here a second time.
    """

    stateless = True

    def __init__(self, block: Any, kind: str, parts: tuple[nn.Linear, nn.Conv2d, nn.Linear], config: Any) -> None:
        super().__init__()
        self.down, self.convolution, self.up = parts
        self.activation, self.dropout = QuickGELU(), nn.Dropout(config.dropout)
        self.scale = config.scale
        self.grid = (0, 0)
        self.names = ("norm1", "drop_path1") if kind == "attention" else ("norm2", "drop_path2")
        self.site = (block,)

    def forward(self, x: Tensor) -> Tensor:
        norm, drop_path = (getattr(self.site[0], name) for name in self.names)
        h = self.activation(self.down(norm(x)))
        h = self.dropout(self.activation(on_grid(self.convolution, h, self.grid)))
        out: Tensor = self.scale * drop_path(self.up(h))
        return out


class Convpass(Method):
    """A 3 x 3 convolution between two projections, beside attention and beside the MLP, on their normed input:
    2 * (2*d*h + h + d + 9*h*h + h) parameters per block (327,552 on ViT-B, h = 8)."""

    name = "convpass"
    title = "Convpass"
    paper = "Jie and Deng, Convolutional Bypasses Are Better Vision Transformer Adapters, arXiv 2207.07039"
    family = "adapter"
    composition_order = 36
    recipe = {"lr": 1e-3}
    search_space = {**Method.search_space, "scale": (0.1, 1.0, 10.0), "start": STARTS}

    @dataclass(frozen=True, kw_only=True)
    class Config:
        bottleneck: int = 8
        """Width h of the bottleneck."""

        scale: float = 1.0
        """Factor s on the bypass; the paper picks it per task from 0.01, 0.1, 1, 10, 100."""

        dropout: float = 0.1
        """Dropout before the up-projection."""

        positions: str = "both"
        """`both`, or `attention` for the paper's Convpass-attn."""

        start: str = "identity"
        """Start of the convolution: `identity`, or `xavier`, uniform. The released code picks it per task, like s:
        `xavier` for 10 of VTAB-1K's 19."""

        def __post_init__(self) -> None:
            check(self.bottleneck >= 1, "bottleneck", self.bottleneck, "at least 1")
            check(self.scale > 0, "scale", self.scale, "positive")
            check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
            check(self.positions in POSITIONS, "positions", self.positions, f"one of {tuple(POSITIONS)}")
            check(self.start in STARTS, "start", self.start, f"one of {STARTS}")

    config: Config

    def expected_parameters(self, backbone: nn.Module) -> int:
        h = self.config.bottleneck
        each = (bottleneck_parameters(width(b), h) + 9 * h * h + h for b in blocks(backbone))
        return len(POSITIONS[self.config.positions]) * sum(each)

    def bypass(self, block: Any, kind: str, context: Context) -> ConvolutionalBypass:
        """A new bypass: Xavier down-projection, the convolution the identity or Xavier, the up-projection zero."""
        d, h = width(block), self.config.bottleneck
        down, up = new_linear(d, h, context.generator, std=0), new_linear(h, d, context.generator, std=0)
        convolution = new_convolution(h, 3, 1, context.generator)
        with torch.no_grad():
            nn.init.xavier_uniform_(down.weight, generator=context.generator)
            if self.config.start == "xavier":
                nn.init.xavier_uniform_(convolution.weight, generator=context.generator)
            else:
                nn.init.dirac_(convolution.weight)
        return ConvolutionalBypass(block, kind, (down, convolution, up), self.config)

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        for block in blocks(backbone):
            for kind in POSITIONS[self.config.positions]:
                bypass = self.bypass(block, kind, context)
                bypass.grid = token_grid(backbone)
                plug(block, f"{kind}_parallel", bypass)
        return Attachment()
