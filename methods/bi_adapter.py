"""Bi-AdaptFormer: AdaptFormer with weights of one bit."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.base import Attachment, Context, Method, check
from methods.blocks import blocks, plug, width
from methods.bottleneck import Bottleneck

LEVEL = statistics.NormalDist().inv_cdf(0.75)
"""0.6745, the median of either half of a standard normal weight: the two-valued code with the least mean absolute
error, as in the released code. (The least squared error has the mean of either half, 0.7979.)"""


class BinaryLinear(nn.Module):
    """y = W^ x with W^ = mean + std * LEVEL * sign((W - mean) / std); x: [..., inputs], W: [outputs,
    inputs].

    The full-precision W is what the optimiser sees: the gradient passes the sign as if it were the identity. A stored
    layer needs one bit per weight and two numbers.
    """

    stateless = True

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def quantised(self) -> Tensor:
        """W^, differentiable with respect to W."""
        mean, std = self.weight.mean(), self.weight.std()
        normal = (self.weight - mean) / (std + 1e-5)
        code = torch.full_like(normal, LEVEL).copysign(normal)  # of the weight's own type, be it bf16 or float64
        return mean + std * (normal + (code - normal).detach())

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.quantised())


class BiAdaptFormer(Method):
    """x + mlp(norm2 x) + s * W^_up dropout(ReLU(W^_down x)) with binary W^: 2*d*h parameters per block, trained in full
    precision and kept in one bit (589,824 on ViT-B with h = 32, or 72 KiB)."""

    name = "bi_adaptformer"
    title = "Bi-AdaptFormer"
    paper = "Jie et al., Revisiting the Parameter Efficiency of Adapters, ICCV 2023, arXiv 2307.16867"
    family = "adapter"
    composition_order = 34
    recipe = {"lr": 5e-3}
    search_space = {**Method.search_space, "scale": (0.1, 1.0, 10.0)}
    identity_at_start = False

    @dataclass(frozen=True, kw_only=True)
    class Config:
        bottleneck: int = 32
        """Width h of the bottleneck; the paper's tables have 32 and 1."""

        scale: float = 1.0
        """Factor s on the adapter's output, picked per task in the paper."""

        dropout: float = 0.1
        """Dropout inside the bottleneck."""

        def __post_init__(self) -> None:
            check(self.bottleneck >= 1, "bottleneck", self.bottleneck, "at least 1")
            check(self.scale > 0, "scale", self.scale, "positive")
            check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")

    def expected_parameters(self, backbone: nn.Module) -> int:
        return sum(2 * width(b) * self.config.bottleneck for b in blocks(backbone))

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        c = self.config
        for block in blocks(backbone):
            d = width(block)
            down, up = torch.empty(c.bottleneck, d), torch.empty(d, c.bottleneck)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=context.generator)
            # Small, not zero: a zero matrix has no signs to store.
            nn.init.trunc_normal_(up, std=0.001, a=-0.002, b=0.002, generator=context.generator)
            adapter = Bottleneck(BinaryLinear(down), BinaryLinear(up), nn.ReLU(), c.scale, c.dropout)
            plug(block, "mlp_parallel", adapter)
        weights = self.expected_parameters(backbone)
        matrices = 2 * len(blocks(backbone))
        return Attachment(info={"stored_bytes": math.ceil(weights / 8) + 8 * matrices})
