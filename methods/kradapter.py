"""KRAdapter: updates that are the row-wise Kronecker product of two small matrices, of full rank."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.layers import uniform
from methods.settings import Positive
from methods.updates import BranchMethod, UpdateConfig


def shapes(layer: nn.Linear) -> tuple[int, int, int]:
    """Rows m of both factors, the layer's smaller side, and their columns p = floor(m^1/2) and q = ceil(n / p), n
    being the larger side."""
    m, n = sorted((layer.in_features, layer.out_features))
    p = math.isqrt(m)
    return m, p, -(-n // p)


class KhatriRao(nn.Module):
    """s * dW x; row i of T is the Kronecker product of the rows i of Q [m, q] and of P [m, p], cut to n columns, and dW
    is T, or its transpose where there are more outputs than inputs. P is zero at the start, Q Kaiming-uniform."""

    stateless = True

    def __init__(self, layer: nn.Linear, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        m, p, q = shapes(layer)
        self.p = nn.Parameter(torch.zeros(m, p))
        self.q = uniform(generator, (6 / (26 * q)) ** 0.5, m, q)  # slope 5
        self.columns, self.wide = max(layer.in_features, layer.out_features), layer.out_features > layer.in_features
        self.scale = scale

    def update(self) -> Tensor:
        """dW: [out, in]."""
        product = (self.q[:, :, None] * self.p[:, None]).flatten(1)[:, : self.columns]
        return product.T if self.wide else product

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.scale * self.update())


class KRAdapter(BranchMethod):
    """W + s dW for each linear layer of the blocks: with m the smaller and n the larger side of W, p = floor(m^1/2) and
    q = ceil(n / p), m * (p + q) parameters per layer, 4,156,416 on ViT-B/16.

    This is the layer of the release's README, whose own merge adds the update transposed; the release's toy script
    has other shapes. Which layers the paper tunes in CLIP, and how it trains them, is not in the release.
    """

    name = "kradapter"
    title = "KRAdapter"
    paper = "Albert et al., Towards Higher Effective Rank in PEFT using Khatri-Rao Product, ICCV 2025, arXiv 2508.00230"
    recipe = {"lr": 1e-3}
    search_space = {**BranchMethod.search_space, "scale": (0.5, 1.0, 2.0)}

    @dataclass(frozen=True, kw_only=True)
    class Config(UpdateConfig):
        scale: Positive = 2.0
        """Factor s on the update."""

    config: Config

    def per_layer(self, layer: nn.Linear) -> int:
        m, p, q = shapes(layer)
        return m * (p + q)

    def branch(self, layer: nn.Linear, generator: torch.Generator) -> KhatriRao:
        return KhatriRao(layer, self.config.scale, generator)
