"""Compacter: adapters whose weights are sums of Kronecker products, with one factor shared by all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.base import Attachment, Context, Method, check
from methods.blocks import blocks, plug, width
from methods.layers import Bottleneck


class SharedRule(nn.Module):
    """The slow matrices A_1 .. A_n shared by all adapters: [n, n, n]."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        super().__init__()
        self.matrices = nn.Parameter(torch.randn(n, n, n, generator=generator) * n**-0.5)


class KroneckerLinear(nn.Module):
    """x W + b with W = sum_i A_i kron (s_i t_i^T); A_i: [n, n], s: [n, in/n], t: [n, out/n].

    in + out parameters for s and t, out for b. t is zero at the start where `zero` is set.
    """

    stateless = True

    def __init__(self, rule: SharedRule, inputs: int, outputs: int, generator: torch.Generator, zero: bool) -> None:
        super().__init__()
        n = len(rule.matrices)
        self.rule = rule
        # With A of variance 1/n and t of variance 1 the entries of W have variance 1/in.
        self.s = nn.Parameter(torch.randn(n, inputs // n, generator=generator) * inputs**-0.5)
        self.t = nn.Parameter(
            torch.zeros(n, outputs // n) if zero else torch.randn(n, outputs // n, generator=generator)
        )
        self.bias = nn.Parameter(torch.zeros(outputs))

    def weight(self) -> Tensor:
        """W: [in, out]."""
        w = torch.einsum("ipq,ia,ib->paqb", self.rule.matrices, self.s, self.t)
        return w.flatten(2).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight() + self.bias


class Compacter(Method):
    """Adapters behind attention and MLP of every block: n^3 parameters in all for the shared matrices, and
    3 * (d + h) per adapter (d channels, bottleneck h), two of them the factors and one the biases.

    The released code starts all factors near zero; here the up-projection starts at zero.
    """

    name = "compacter"
    title = "Compacter"
    paper = "Karimi Mahabadi et al., Compacter, NeurIPS 2021, arXiv 2106.04647"
    family = "adapter"
    recipe = {"lr": 2e-3}
    search_space = {"lr": (1e-3, 2e-3, 5e-3), "weight_decay": (1e-4, 1e-2), "bottleneck": (8, 24, 48)}

    @dataclass(frozen=True, kw_only=True)
    class Config:
        bottleneck: int = 24
        """Width h of the bottleneck; 24 for the paper's T5-base, which is as wide as ViT-B."""

        products: int = 4
        """Number n of Kronecker products per weight, and size of the shared matrices; divides h and all widths."""

        def __post_init__(self) -> None:
            check(self.products >= 1, "products", self.products, "at least 1")
            check(self.bottleneck >= 1, "bottleneck", self.bottleneck, "at least 1")
            check(self.bottleneck % self.products == 0, "bottleneck", self.bottleneck, "a multiple of products")

    def widths(self, backbone: nn.Module) -> list[int]:
        """The blocks' widths. Raises `MethodError` if n does not divide one."""
        n, found = self.config.products, [width(b) for b in blocks(backbone)]
        for d in found:
            check(d % n == 0, "products", n, f"a divisor of the backbone's width {d}")
        return found

    def expected_parameters(self, backbone: nn.Module) -> int:
        h = self.config.bottleneck
        return self.config.products**3 + sum(2 * 3 * (d + h) for d in self.widths(backbone))

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        h, g = self.config.bottleneck, context.generator
        rule = SharedRule(self.config.products, g)
        for block, d in zip(blocks(backbone), self.widths(backbone), strict=True):
            for slot in ("attention_output", "mlp_output"):
                down, up = KroneckerLinear(rule, d, h, g, zero=False), KroneckerLinear(rule, h, d, g, zero=True)
                plug(block, slot, Bottleneck(down, up))
        return Attachment()
