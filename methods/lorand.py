"""LoRand: adapters whose weights are sums of low-rank products with a common kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from methods.base import Attachment, Context, Method, check
from methods.blocks import blocks, plug, width
from methods.layers import Bottleneck


class Kernel(nn.Module):
    """The kernels K of an adapter's branches, common to its two projections: [a, k, k]."""

    def __init__(self, branches: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(branches, rank, rank, generator=generator) * rank**-0.5)


class MultiBranchLinear(nn.Module):
    """x W + b with W = sum_i P_i K_i Q_i; P: [a, in, k], K: [a, k, k], Q: [a, k, out].

    Q is zero at the start where `zero` is set.
    """

    stateless = True

    def __init__(self, kernel: Kernel, inputs: int, outputs: int, generator: torch.Generator, zero: bool) -> None:
        super().__init__()
        branches, k, _ = kernel.weight.shape
        self.kernel = kernel
        self.p = nn.Parameter(torch.randn(branches, inputs, k, generator=generator) * inputs**-0.5)
        q = torch.zeros(branches, k, outputs) if zero else torch.randn(branches, k, outputs, generator=generator)
        self.q = nn.Parameter(q * (branches * k) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def weight(self) -> Tensor:
        """W: [in, out]."""
        return torch.einsum("aik,akl,alo->io", self.p, self.kernel.weight, self.q)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight() + self.bias


class LoRand(Method):
    """Adapters after attention and MLP of every block, whose projections down and up share the kernels of their
    branches: a * (2 k (d + h) + k^2) + d + h parameters each (d channels, bottleneck h = d/2, a branches of rank k).
    """

    name = "lorand"
    title = "LoRand"
    paper = "Yin et al., 1% VS 100%: Parameter-Efficient Low Rank Adapter, CVPR 2023"
    family = "adapter"
    composition_order = 37
    recipe = {"lr": 2e-3}
    search_space = {"lr": (1e-3, 2e-3, 5e-3), "weight_decay": (1e-4, 1e-2), "branches": (2, 4, 8)}

    @dataclass(frozen=True, kw_only=True)
    class Config:
        branches: int = 2
        """Number a of branches; 2, 4 and 8 in the paper's three sizes."""

        rank: int = 8
        """Rank k of each branch."""

        reduction: int = 2
        """The bottleneck is this many times narrower than the block."""

        def __post_init__(self) -> None:
            check(self.branches >= 1, "branches", self.branches, "at least 1")
            check(self.rank >= 1, "rank", self.rank, "at least 1")
            check(self.reduction >= 1, "reduction", self.reduction, "at least 1")

    config: Config

    def widths(self, backbone: nn.Module) -> list[tuple[int, int]]:
        """Width and bottleneck of each block. Raises `MethodError` if a bottleneck would be empty."""
        c, found = self.config, [width(b) for b in blocks(backbone)]
        check(c.reduction <= min(found), "reduction", c.reduction, f"at most the backbone's width {min(found)}")
        return [(d, d // c.reduction) for d in found]

    def resolve(self, backbone: nn.Module) -> Config:
        """The smallest `reduction` with bottlenecks of the same widths."""
        found = self.widths(backbone)
        smaller = range(1, self.config.reduction + 1)
        return replace(self.config, reduction=next(r for r in smaller if all(d // r == h for d, h in found)))

    def expected_parameters(self, backbone: nn.Module) -> int:
        a, k = self.config.branches, self.config.rank
        return sum(2 * (a * (2 * k * (d + h) + k * k) + d + h) for d, h in self.widths(backbone))

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        c, g = self.config, context.generator
        for block, (d, h) in zip(blocks(backbone), self.widths(backbone), strict=True):
            for slot in ("attention_output", "mlp_output"):
                kernel = Kernel(c.branches, c.rank, g)
                down = MultiBranchLinear(kernel, d, h, g, zero=False)
                plug(block, slot, Bottleneck(down, MultiBranchLinear(kernel, h, d, g, zero=True)))
        return Attachment()
