"""Mona: an adapter with depth-wise convolutions of three sizes after attention and after the MLP."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.base import Attachment, Context, Method, check
from methods.blocks import blocks, plug, width
from methods.bottleneck import bottleneck_parameters, projections
from methods.grid import new_convolution, on_grid, token_grid

KERNELS = (3, 5, 7)
"""Sizes of the depth-wise filters."""


class MultiCognitive(nn.Module):
    """z = x + mean_k dwconv_k(x); z + conv_1x1(z), on images [batch, h, rows, columns].

    Weights and biases start as torch draws them, as in the authors' code: uniform within fan_in^-1/2.
    """

    stateless = True

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.filters = nn.ModuleList(new_convolution(channels, k, channels, generator) for k in KERNELS)
        self.mix = new_convolution(channels, 1, 1, generator)
        for convolution in (*self.filters, self.mix):
            bound = convolution.weight[0].numel() ** -0.5
            nn.init.uniform_(convolution.bias, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        z = x + torch.stack([f(x) for f in self.filters]).mean(dim=0)
        out: Tensor = z + self.mix(z)
        return out


class MonaLayer(nn.Module):
    """x + W_up dropout(GELU(conv(W_down(s1 * LN(x) + s2 * x)))); x: [batch, tokens, d] or Swin map."""

    stateless = True

    def __init__(self, pair: tuple[nn.Linear, nn.Linear], convolution: nn.Module, dropout: float) -> None:
        super().__init__()
        self.down, self.up = pair
        d = self.down.in_features
        self.norm = nn.LayerNorm(d)
        self.scale_normed = nn.Parameter(torch.full((d,), 1e-6))
        self.scale_raw = nn.Parameter(torch.ones(d))
        self.convolution = convolution
        self.dropout = nn.Dropout(dropout)
        self.grid = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(self.norm(x) * self.scale_normed + x * self.scale_raw)
        h = functional.gelu(on_grid(self.convolution, h, self.grid))
        out: Tensor = x + self.up(self.dropout(h))
        return out


class Mona(Method):
    """Two layers per block on the residual stream, each 2*d*h + h + d (projections) + 4*d (norm and scales) +
    (9 + 25 + 49 + 3)*h + h*h + h (convolutions): 2,684,928 parameters on ViT-B with h = 64."""

    name = "mona"
    title = "Mona"
    paper = "Yin et al., 5%>100%: Breaking Performance Shackles of Full Fine-Tuning, CVPR 2025, arXiv 2408.08345"
    family = "adapter"
    composition_order = 38
    recipe = {"lr": 2e-3}
    search_space = {**Method.search_space, "dropout": (0.0, 0.1)}
    identity_at_start = False

    @dataclass(frozen=True, kw_only=True)
    class Config:
        bottleneck: int = 64
        """Width h of the bottleneck."""

        dropout: float = 0.1
        """Dropout before the up-projection."""

        def __post_init__(self) -> None:
            check(self.bottleneck >= 1, "bottleneck", self.bottleneck, "at least 1")
            check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")

    def expected_parameters(self, backbone: nn.Module) -> int:
        h = self.config.bottleneck
        convolutions = sum(k * k * h + h for k in KERNELS) + h * h + h
        return sum(2 * (bottleneck_parameters(width(b), h) + 4 * width(b) + convolutions) for b in blocks(backbone))

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        h = self.config.bottleneck
        for block in blocks(backbone):
            for slot in ("after_attention", "output"):
                pair = projections(width(block), h, context.generator, down=0.02, up=0.02)
                layer = MonaLayer(pair, MultiCognitive(h, context.generator), self.config.dropout)
                layer.grid = token_grid(backbone)
                plug(block, slot, layer)
        return Attachment()
