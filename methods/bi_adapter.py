"""Bi-AdaptFormer: AdaptFormer with weights of one bit."""

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.base import Attachment, Context, Method
from methods.blocks import blocks
from methods.bottleneck import AdapterMethod, Bottleneck, Place
from methods.settings import Count, Positive, Probability, Settings

LEVEL = statistics.NormalDist().inv_cdf(0.75)
"""0.6745, the median of either half of a standard normal weight: the two-valued code with the least mean absolute
error, as in the released code. (The least squared error has the mean of either half, 0.7979.)"""


class BinaryLinear(nn.Module):
    """y = W^ x with W^ = mean + std * LEVEL * sign((W - mean) / std); x: [..., inputs], W: [outputs, inputs].

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


class BiAdaptFormer(AdapterMethod):
    """x + mlp(norm2 x) + s * W^_up dropout(ReLU(W^_down x)) with binary W^: 2*d*h parameters per block, trained in full
    precision and kept in one bit (589,824 on ViT-B with h = 32, or 72 KiB)."""

    name = "bi_adaptformer"
    title = "Bi-AdaptFormer"
    paper = "Jie et al., Revisiting the Parameter Efficiency of Adapters, ICCV 2023, arXiv 2307.16867"
    composition_order = 34
    recipe = {"lr": 5e-3}
    search_space = {**Method.search_space, "scale": (0.1, 1.0, 10.0)}
    identity_at_start = False
    slots = ("mlp_parallel",)

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        bottleneck: Count = 32
        """Width h of the bottleneck; the paper's tables have 32 and 1."""

        scale: Positive = 1.0
        """Factor s on the adapter's output, picked per task in the paper."""

        dropout: Probability = 0.1
        """Dropout inside the bottleneck."""

    config: Config

    def adapter_parameters(self, d: int) -> int:
        return 2 * d * self.config.bottleneck

    def adapter(self, place: Place, generator: torch.Generator) -> Bottleneck:
        c, d = self.config, place.d
        down, up = torch.empty(c.bottleneck, d), torch.empty(d, c.bottleneck)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        # Small, not zero: a zero matrix has no signs to store.
        nn.init.trunc_normal_(up, std=0.001, a=-0.002, b=0.002, generator=generator)
        return Bottleneck(BinaryLinear(down), BinaryLinear(up), nn.ReLU(), c.scale, c.dropout)

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        super().attach(backbone, context)
        weights, matrices = self.expected_parameters(backbone), 2 * len(blocks(backbone))
        return Attachment(info={"stored_bytes": math.ceil(weights / 8) + 8 * matrices})
