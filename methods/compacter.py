"""Compacter: adapters whose weights are sums of Kronecker products, with one factor shared by all of them."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from methods.base import Attachment, Context, check
from methods.blocks import blocks, plug, require_served, width
from methods.bottleneck import ComputedLinear, SequentialBottleneck
from methods.layers import PretrainedMethod, draw_uniform
from methods.norm_tuning import NormTuning
from methods.settings import Count, Settings, one_of


def glorot(n: int, size: int, generator: torch.Generator) -> Tensor:
    """n vectors of that size, [n, size], each uniform as Glorot draws a matrix of one column, with gain sqrt(2)."""
    return draw_uniform(generator, math.sqrt(2 * 6 / (size + 1)), n, size)


class KroneckerLinear(ComputedLinear):
    """W = sum_i A_i kron (s_i t_i^T); s: [n, in/n], t: [n, out/n], and A_i: [n, n] from `matrices` [n, n, n] of
    `rule`, which all adapters share.

    in + out parameters for s and t, out for b, which starts at zero.
    """

    def __init__(self, rule: nn.ParameterDict, s: Tensor, t: Tensor) -> None:
        super().__init__()
        self.rule = rule
        self.s, self.t = nn.Parameter(s), nn.Parameter(t)
        self.bias = nn.Parameter(torch.zeros(t.numel()))

    def weight(self) -> Tensor:
        w = torch.einsum("ipq,ia,ib->paqb", self.rule["matrices"], self.s, self.t)
        return w.flatten(2).flatten(0, 1)


class Compacter(PretrainedMethod):
    """Adapters after attention and MLP of every block: n^3 parameters in all for the shared matrices, and
    3 * (d + h) per adapter (d channels, bottleneck h), two of them the factors and one the biases: 57,088 on ViT-B.

    Here the up-projections start at zero and adapters alone are trained, as for the other adapters here. The released
    code, the variant `released`, starts near the identity, the shared matrices near zero but the factors at Glorot's
    scale, and trains the backbone's norms too, 4 * d per block and 2 * d after them (95,488 on ViT-B); the paper's
    counts on T5 include them. The GELU is the exact one in both, in the code its tanh form.
    """

    name = "compacter"
    title = "Compacter"
    paper = "Karimi Mahabadi et al., Compacter, NeurIPS 2021, arXiv 2106.04647"
    family = "adapter"
    composition_order = 35
    recipe = {"lr": 2e-3}
    search_space = {"lr": (1e-3, 2e-3, 5e-3), "weight_decay": (1e-4, 1e-2), "bottleneck": (8, 24, 48)}
    needs = frozenset({"attention"})

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        bottleneck: Count = 24
        """Width h of the bottleneck; 24 for the paper's T5-base, which is as wide as ViT-B."""

        products: Count = 4
        """Number n of Kronecker products per weight, and size of the shared matrices; divides h and all widths."""

        variant: Annotated[str, one_of("zero_up", "released")] = "zero_up"
        """`zero_up`: exact identity at the start, adapters alone trained. `released`: shared matrices of std 1e-4,
        factors Glorot-uniform with gain sqrt(2), and all norms trained too."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check(self.bottleneck % self.products == 0, "bottleneck", self.bottleneck, "a multiple of products")

    config: Config

    def starts_at_identity(self) -> bool:
        return self.config.variant == "zero_up"

    def expected_parameters(self, backbone: nn.Module) -> int:
        h, n = self.config.bottleneck, self.config.products
        widths = [width(block) for block in blocks(require_served(self, backbone))]
        for d in widths:
            check(d % n == 0, "products", n, f"a divisor of the backbone's width {d}")
        return n**3 + sum(2 * 3 * (d + h) for d in widths) + super().expected_parameters(backbone)

    def parameters(self, backbone: nn.Module) -> list[nn.Parameter]:
        return NormTuning().parameters(backbone) if self.config.variant == "released" else []

    def linear(
        self, rule: nn.ParameterDict, inputs: int, outputs: int, zero: bool, g: torch.Generator
    ) -> KroneckerLinear:
        """A new weight [in, out], zero if `zero`, in the variant `released` near zero whatever it says."""
        n = self.config.products
        if self.config.variant == "released":
            return KroneckerLinear(rule, glorot(n, inputs // n, g), glorot(n, outputs // n, g))
        # With A of variance 1/n and t of variance 1 the entries of W have variance 1/in.
        s = torch.randn(n, inputs // n, generator=g) * inputs**-0.5
        t = torch.zeros(n, outputs // n) if zero else torch.randn(n, outputs // n, generator=g)
        return KroneckerLinear(rule, s, t)

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        self.expected_parameters(backbone)  # refuses what does not fit
        super().attach(backbone, context)
        h, n, g = self.config.bottleneck, self.config.products, context.generator
        std = 1e-4 if self.config.variant == "released" else n**-0.5
        rule = nn.ParameterDict({"matrices": torch.randn(n, n, n, generator=g) * std})
        for block in blocks(backbone):
            for slot in ("attention_output", "mlp_output"):
                d = width(block)
                down, up = self.linear(rule, d, h, False, g), self.linear(rule, h, d, True, g)
                plug(block, slot, SequentialBottleneck(down, up, nn.GELU()))
        return Attachment()
