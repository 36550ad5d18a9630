"""LoRand: adapters whose weights are sums of low-rank products with a common kernel."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from methods.base import check
from methods.blocks import blocks, width
from methods.bottleneck import AdapterMethod, ComputedLinear, Place, SequentialBottleneck
from methods.settings import Count, Settings


class MultiBranchLinear(ComputedLinear):
    """W = sum_i P_i K_i Q_i; P: [a, in, k], Q: [a, k, out], and K: [a, k, k] as the `weight` of `kernel`, which both
    projections of an adapter share.

    Q is zero at the start where `zero` is set.
    """

    def __init__(
        self, kernel: nn.ParameterDict, inputs: int, outputs: int, generator: torch.Generator, zero: bool
    ) -> None:
        super().__init__()
        branches, k, _ = kernel["weight"].shape
        self.kernel = kernel
        self.p = nn.Parameter(torch.randn(branches, inputs, k, generator=generator) * inputs**-0.5)
        q = torch.zeros(branches, k, outputs) if zero else torch.randn(branches, k, outputs, generator=generator)
        self.q = nn.Parameter(q * (branches * k) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def weight(self) -> Tensor:
        return torch.einsum("aik,akl,alo->io", self.p, self.kernel["weight"], self.q)


class LoRand(AdapterMethod):
    """Adapters after attention and MLP of every block, whose projections down and up share the kernels of their
    branches: a * (2 k (d + h) + k^2) + d + h parameters each (d channels, bottleneck h = d/2, a branches of rank k).
    """

    name = "lorand"
    title = "LoRand"
    paper = "Yin et al., 1% VS 100%: Parameter-Efficient Low Rank Adapter, CVPR 2023"
    composition_order = 37
    recipe = {"lr": 2e-3}
    search_space = {"lr": (1e-3, 2e-3, 5e-3), "weight_decay": (1e-4, 1e-2), "branches": (2, 4, 8)}
    needs = frozenset({"attention"})
    slots = ("attention_output", "mlp_output")

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        branches: Count = 2
        """Number a of branches; 2, 4 and 8 in the paper's three sizes."""

        rank: Count = 8
        """Rank k of each branch."""

        reduction: Count = 2
        """The bottleneck is this many times narrower than the block."""

    config: Config

    def resolve(self, backbone: nn.Module) -> Config:
        """The smallest `reduction` with bottlenecks of the same widths."""
        largest, widths = self.config.reduction, {width(block) for block in blocks(backbone)}
        narrowest = min(widths)
        check(largest <= narrowest, "reduction", largest, f"at most the backbone's width {narrowest}")
        same = (r for r in range(1, largest + 1) if all(d // r == d // largest for d in widths))
        return replace(self.config, reduction=next(same))

    def expected_parameters(self, backbone: nn.Module) -> int:
        self.resolve(backbone)  # refuses an empty bottleneck
        return super().expected_parameters(backbone)

    def adapter_parameters(self, d: int) -> int:
        a, k, h = self.config.branches, self.config.rank, d // self.config.reduction
        return a * (2 * k * (d + h) + k * k) + d + h

    def adapter(self, place: Place, generator: torch.Generator) -> SequentialBottleneck:
        a, k, d, h = self.config.branches, self.config.rank, place.d, place.d // self.config.reduction
        kernel = nn.ParameterDict({"weight": torch.randn(a, k, k, generator=generator) * k**-0.5})
        down = MultiBranchLinear(kernel, d, h, generator, zero=False)
        up = MultiBranchLinear(kernel, h, d, generator, zero=True)
        return SequentialBottleneck(down, up, nn.GELU())
