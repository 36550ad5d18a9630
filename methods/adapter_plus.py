"""Adapter+: a bottleneck after the whole block, scaled per channel."""

from dataclasses import dataclass

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from methods.base import Method
from methods.bottleneck import AdapterMethod, Bottleneck, Place, bottleneck_parameters, projections
from methods.settings import Count, Probability, Settings


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


class AdapterPlus(AdapterMethod):
    """The paper's choice among positions, scalings and initialisations: 2*d*h + h + d + d parameters per block
    (165,984 on ViT-B, h = 8). Both projections start as in Houlsby et al., with std 0.01 cut at two
    standard deviations: near the identity only."""

    name = "adapter_plus"
    title = "Adapter+"
    paper = "Steitz and Roth, Adapters Strike Back, CVPR 2024, arXiv 2406.06820"
    composition_order = 32
    recipe = {"lr": 5e-3}
    search_space = {**Method.search_space, "drop_path": (0.0, 0.1)}
    identity_at_start = False
    slots = ("output",)

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        bottleneck: Count = 8
        """Width h of the bottleneck; the paper's tables have 1 to 32."""

        dropout: Probability = 0.0
        """Dropout inside the bottleneck."""

        drop_path: Probability = 0.1
        """Probability of leaving out an adapter for a sample."""

    def adapter_parameters(self, d: int) -> int:
        return bottleneck_parameters(d, self.config.bottleneck) + d

    def adapter(self, place: Place, generator: torch.Generator) -> ChannelScaledAdapter:
        c, d = self.config, place.d
        pair = projections(d, c.bottleneck, generator, down=0.01, up=0.01, cut=0.02)
        return ChannelScaledAdapter(Bottleneck(*pair, nn.GELU(), dropout=c.dropout), d, c.drop_path)
