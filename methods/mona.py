"""Mona: an adapter with depth-wise convolutions of three sizes after attention and after the MLP."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.base import Method
from methods.bottleneck import AdapterMethod, Place, bottleneck_parameters, projections
from methods.grid import new_convolution, on_grid
from methods.settings import Count, Probability, Settings

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

    def __init__(
        self, pair: tuple[nn.Linear, nn.Linear], convolution: nn.Module, dropout: float, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.down, self.up = pair
        d = self.down.in_features
        self.norm = nn.LayerNorm(d)
        self.scale_normed = nn.Parameter(torch.full((d,), 1e-6))
        self.scale_raw = nn.Parameter(torch.ones(d))
        self.convolution = convolution
        self.dropout = nn.Dropout(dropout)
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(self.norm(x) * self.scale_normed + x * self.scale_raw)
        h = functional.gelu(on_grid(self.convolution, h, self.grid))
        out: Tensor = x + self.up(self.dropout(h))
        return out


class Mona(AdapterMethod):
    """Two layers per block on the residual stream, each 2*d*h + h + d (projections) + 4*d (norm and scales) +
    (9 + 25 + 49 + 3)*h + h*h + h (convolutions): 2,684,928 parameters on ViT-B with h = 64."""

    name = "mona"
    title = "Mona"
    paper = "Yin et al., 5%>100%: Breaking Performance Shackles of Full Fine-Tuning, CVPR 2025, arXiv 2408.08345"
    composition_order = 38
    recipe = {"lr": 2e-3}
    search_space = {**Method.search_space, "dropout": (0.0, 0.1)}
    identity_at_start = False
    needs = frozenset({"attention"})
    slots = ("after_attention", "output")

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        bottleneck: Count = 64
        """Width h of the bottleneck."""

        dropout: Probability = 0.1
        """Dropout before the up-projection."""

    config: Config

    def adapter_parameters(self, d: int) -> int:
        h = self.config.bottleneck
        convolutions = sum(k * k * h + h for k in KERNELS) + h * h + h
        return bottleneck_parameters(d, h) + 4 * d + convolutions

    def adapter(self, place: Place, generator: torch.Generator) -> MonaLayer:
        h = self.config.bottleneck
        pair = projections(place.d, h, generator, down=0.02, up=0.02)
        return MonaLayer(pair, MultiCognitive(h, generator), self.config.dropout, place.grid)
