"""Convpass: convolutional bypasses beside attention and MLP."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from methods.base import Method
from methods.blocks import new_linear
from methods.bottleneck import AdapterMethod, Place, QuickGELU, bottleneck_parameters
from methods.grid import new_convolution, on_grid
from methods.settings import Count, Positive, Probability, Settings, one_of

POSITIONS = {"both": ("attention_parallel", "mlp_parallel"), "attention": ("attention_parallel",)}
"""Value of `positions` to the slots that get a bypass."""

NAMES = {
    "attention_parallel": ("attention_reads", "drop_path1"),
    "mlp_parallel": ("mlp_reads", "drop_path2"),
}
"""What a bypass shares with the block's branch beside it."""

STARTS = ("identity", "xavier")


class ConvolutionalBypass(nn.Module):
    """s * drop_path(W_up dropout(a(conv(a(W_down norm(x)))))); x: [batch, tokens, d] or Swin map.

    `norm` (none in a post-norm block) and `drop_path` are the block's own, looked up at each call and not registered
    here a second time.
    """

    stateless = True

    def __init__(self, place: Place, parts: tuple[nn.Linear, nn.Conv2d, nn.Linear], config: Any) -> None:
        super().__init__()
        self.down, self.convolution, self.up = parts
        self.activation, self.dropout = QuickGELU(), nn.Dropout(config.dropout)
        self.scale, self.grid = config.scale, place.grid
        self.names = NAMES[place.slot]
        self.site = (place.block,)

    def forward(self, x: Tensor) -> Tensor:
        normed, drop_path = (getattr(self.site[0], name) for name in self.names)
        h = self.activation(self.down(normed(x)))
        h = self.dropout(self.activation(on_grid(self.convolution, h, self.grid)))
        out: Tensor = self.scale * drop_path(self.up(h))
        return out


class Convpass(AdapterMethod):
    """A 3 x 3 convolution between two projections, beside attention and beside the MLP, on their normed input:
    2 * (2*d*h + h + d + 9*h*h + h) parameters per block (327,552 on ViT-B, h = 8)."""

    name = "convpass"
    title = "Convpass"
    paper = "Jie and Deng, Convolutional Bypasses Are Better Vision Transformer Adapters, arXiv 2207.07039"
    composition_order = 36
    recipe = {"lr": 1e-3}
    search_space = {**Method.search_space, "scale": (0.1, 1.0, 10.0), "start": STARTS}
    needs = frozenset({"attention"})

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        bottleneck: Count = 8
        """Width h of the bottleneck."""

        scale: Positive = 1.0
        """Factor s on the bypass; the paper picks it per task from 0.01, 0.1, 1, 10, 100."""

        dropout: Probability = 0.1
        """Dropout before the up-projection."""

        positions: Annotated[str, one_of(*POSITIONS)] = "both"
        """`both`, or `attention` for the paper's Convpass-attn."""

        start: Annotated[str, one_of(*STARTS)] = "identity"
        """Start of the convolution: `identity`, or `xavier`, uniform. The released code picks it per task, like s:
        `xavier` for 10 of VTAB-1K's 19."""

    config: Config

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.slots = POSITIONS[self.config.positions]

    def adapter_parameters(self, d: int) -> int:
        h = self.config.bottleneck
        return bottleneck_parameters(d, h) + 9 * h * h + h

    def adapter(self, place: Place, generator: torch.Generator) -> ConvolutionalBypass:
        """A new bypass: Xavier down-projection, the convolution the identity or Xavier, the up-projection zero."""
        d, h = place.d, self.config.bottleneck
        down, up = new_linear(d, h, generator, std=0), new_linear(h, d, generator, std=0)
        convolution = new_convolution(h, 3, 1, generator)
        nn.init.xavier_uniform_(down.weight, generator=generator)
        if self.config.start == "xavier":
            nn.init.xavier_uniform_(convolution.weight, generator=generator)
        else:
            nn.init.dirac_(convolution.weight)
        return ConvolutionalBypass(place, (down, convolution, up), self.config)
