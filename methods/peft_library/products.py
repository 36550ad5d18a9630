"""Tuners whose update of a weight is a product of trained factors of another form than LoRA's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import HIGH_RATES, Context, check
from methods.layers import change_layer
from methods.peft_library.common import (
    ADAPTER,
    LayersConfig,
    PeftMethod,
    RankConfig,
    ScaledRankConfig,
    Several,
    check_divides,
)
from methods.settings import Count, Positive


class LoHa(PeftMethod):
    """(B1 A1) * (B2 A2), elementwise: 2 r (in + out)."""

    name = "loha"
    title = "LoHa"
    paper = "Hyeon-Woo et al., FedPara, ICLR 2022, arXiv 2108.06098"
    peft_class = "LoHaConfig"
    arguments = {"r": "rank", "alpha": "alpha"}
    Config = ScaledRankConfig
    recipe = {"lr": 1e-2}

    def per_layer(self, layer: nn.Linear) -> int:
        return 2 * super().per_layer(layer)


def balanced_factors(size: int) -> tuple[int, int]:
    """The two factors m <= n of `size` that lie closest to each other."""
    small = max(m for m in range(1, math.isqrt(size) + 1) if size % m == 0)
    return small, size // small


class LoKr(PeftMethod):
    """Kronecker product of W1 [a, c] and W2 [b, d] with out = a b, in = c d as balanced as they can be; W2 is of rank r
    where that is smaller: a c + min(r (b + d), b d)."""

    name = "lokr"
    title = "LoKr"
    paper = "Yeh et al., LyCORIS, ICLR 2024, arXiv 2309.14859"
    peft_class = "LoKrConfig"
    arguments = {"r": "rank", "alpha": "alpha"}
    Config = ScaledRankConfig
    recipe = {"lr": 1e-2}

    def per_layer(self, layer: nn.Linear) -> int:
        (a, b), (c, d) = balanced_factors(layer.out_features), balanced_factors(layer.in_features)
        low_rank = self.config.rank < max(b, d) / 2
        return int(a * c + (self.config.rank * (b + d) if low_rank else b * d))


class HiRA(PeftMethod):
    """W * (B A), elementwise, so the update has the rank of W: r (in + out)."""

    name = "hira"
    title = "HiRA"
    paper = "Huang et al., HiRA, ICLR 2025, openreview TwJrTz9cRS"
    peft_class = "HiraConfig"
    recipe = {"lr": 2e-2}
    search_space = HIGH_RATES


class DeLoRA(PeftMethod):
    """LoRA whose directions are normalised, with one trained strength lambda: r (in + out) + 1."""

    name = "delora"
    title = "DeLoRA"
    paper = "Bini et al., DeLoRA, ICLR 2025, arXiv 2503.18225"
    peft_class = "DeloraConfig"
    arguments = {"r": "rank", "delora_lambda": "strength"}
    recipe = {"lr": 5e-3}

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        strength: Positive = 15.0
        """Start of the bound lambda on the update's norm."""

    def per_layer(self, layer: nn.Linear) -> int:
        return super().per_layer(layer) + 1


class GraLoRA(PeftMethod):
    """LoRA cut into k x k blocks with factors of their own: r (in + out)."""

    name = "gralora"
    title = "GraLoRA"
    paper = "Jung et al., GraLoRA, NeurIPS 2025, arXiv 2505.20355"
    peft_class = "GraloraConfig"
    arguments = {"r": "rank", "alpha": "alpha", "gralora_k": "cuts"}
    takes_maps = False
    recipe = {"lr": 5e-3}

    @dataclass(frozen=True, kw_only=True)
    class Config(ScaledRankConfig):
        cuts: int = 2
        """Number k of parts along each side; it divides the rank and the layers' widths."""

        def __post_init__(self) -> None:
            super().__post_init__()
            fits = self.cuts >= 1 and self.rank % self.cuts == 0
            check(fits, "cuts", self.cuts, f"a divisor of rank={self.rank}")

    def per_layer(self, layer: nn.Linear) -> int:
        check_divides("cuts", self.config.cuts, layer)
        return super().per_layer(layer)


class GLoRA(PeftMethod):
    """W + W*A + B and b + b*D + E + W C with low-rank A, B, C and scalars D, E: 2 r (in + out) + r (in + 1) + 2."""

    name = "glora"
    title = "GLoRA"
    paper = "Chavan et al., One-for-All (GLoRA), 2023, arXiv 2306.07967"
    peft_class = "GloraConfig"
    recipe = {"lr": 2e-3}

    def per_layer(self, layer: nn.Linear) -> int:
        for_bias = self.config.rank * (layer.in_features + 1) + 2 if layer.bias is not None else 0
        return 2 * super().per_layer(layer) + int(for_bias)


class Peanut(PeftMethod):
    """A small network of the frozen weight is the update: B relu(A W') with A and B between out and r: 2 r out."""

    name = "peanut"
    title = "PEANuT"
    paper = "Zhong et al., PEANuT, 2024, arXiv 2410.01870"
    peft_class = "PeanutConfig"
    recipe = {"lr": 5e-3}

    def per_layer(self, layer: nn.Linear) -> int:
        return int(2 * self.config.rank * layer.out_features)


class DEFT(PeftMethod):
    """(I - P relu(P)') W + P R: a projection is taken away and an injection added, which cancel at the start:
    r (in + out)."""

    name = "deft"
    title = "DEFT"
    paper = "DEFT (Decompositional Efficient Fine-Tuning), as implemented by peft, which cites no paper"
    peft_class = "DeftConfig"
    recipe = {"lr": 5e-3}

    def per_layer(self, layer: nn.Linear) -> int:
        r, out = self.config.rank, layer.out_features
        check(r <= out, "rank", r, f"at most the output width of the tuned layers, {out}")
        return super().per_layer(layer)


class MiSS(PeftMethod):
    """One block D [r, out] is shared by all input groups, whose channels are summed: r out."""

    name = "miss"
    title = "MiSS"
    paper = "Kang et al., MiSS, 2024, arXiv 2409.15371"
    peft_class = "MissConfig"
    recipe = {"lr": 2e-3}

    def per_layer(self, layer: nn.Linear) -> int:
        r, width = self.config.rank, layer.in_features
        check(r <= width, "rank", r, f"at most the input width of the tuned layers, {width}")
        return int(r * layer.out_features)


class Bone(PeftMethod):
    """Block affine transformation: r x r blocks of W are multiplied by one trained block per row of blocks: r out."""

    name = "bone"
    title = "Bone (BAT)"
    paper = "Kang et al., Bone: Block-Affine Adaptation, 2024, arXiv 2409.15371v1"
    peft_class = "MissConfig"
    fixed = {"init_weights": "bat"}
    recipe = {"lr": 2e-3}

    def per_layer(self, layer: nn.Linear) -> int:
        check_divides("rank", self.config.rank, layer)
        return int(self.config.rank * layer.out_features)


class ImageRouter:
    """Mixed into peft's Lily layer, which routes a whole batch as one: here every image has a mixture of its own, so
    that its logits are its own, too. On Swin, where qkv and proj see windows, every window."""

    base_layer: nn.Module
    lily_A: nn.ModuleDict
    lily_B: nn.ModuleDict
    lily_router: nn.ModuleDict
    scaling: dict[str, float]

    def forward(self, x: Tensor) -> Tensor:
        """x: [images, ..., in] to [images, ..., out]."""
        up: Any = self.lily_B[ADAPTER].weight
        h = self.lily_A[ADAPTER](x)
        shares = self.lily_router[ADAPTER](h).softmax(-1).flatten(1, -2).mean(1)
        mixed = torch.einsum("ne,ero->nro", shares, up.unflatten(0, (-1, h.shape[-1])))
        y = self.base_layer(x)
        out: Tensor = y + self.scaling[ADAPTER] * torch.einsum("n...r,nro->n...o", h, mixed).to(y.dtype)
        return out


class Lily(PeftMethod):
    """LoRA with a down-projection per layer, and a few up-projections shared by all layers of one shape, mixed by a
    router per layer for each image: r (in + e) per layer and e r out per shape, for e up-projections. Mixing depends on
    the input, so it cannot be merged."""

    name = "lily"
    title = "Lily"
    paper = "Zhong et al., Low-Rank Interconnected Adaptation across Layers, ACL 2025, arXiv 2407.09946"
    peft_class = "LilyConfig"
    arguments = {"r": "rank", "num_B": "experts"}
    mergeable = False
    not_loadable = "peft routes a whole batch as one, where every image has a mixture of its own here"
    recipe = {"lr": 5e-3}

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        experts: Several = 2
        """Number e of shared up-projections."""

    config: Config

    def per_layer(self, layer: nn.Linear) -> int:
        return int(self.config.rank * (layer.in_features + self.config.experts))

    def expected_parameters(self, backbone: nn.Module) -> int:
        c = self.config
        shapes = {(x.in_features, x.out_features) for x in self.layers(backbone)}
        return super().expected_parameters(backbone) + sum(c.experts * c.rank * out for _, out in shapes)

    def inject(self, backbone: nn.Module, config: Any, context: Context) -> Any:
        from peft.tuners.lily import LilyLayer

        tuner = super().inject(backbone, config, context)
        for layer in backbone.modules():
            if isinstance(layer, LilyLayer):
                change_layer(layer, ImageRouter)
        return tuner


class C3A(PeftMethod):
    """Circular convolution: the update is made of circulant blocks of side b = gcd(in, out) / parts, so in out / b."""

    name = "c3a"
    title = "C3A"
    paper = "Chen et al., C3A: Circular Convolution Adaptation, ACL 2025, arXiv 2407.19342"
    peft_class = "C3AConfig"
    arguments = {}
    identity_at_start = False
    recipe = {"lr": 1e-2}
    search_space = HIGH_RATES

    @dataclass(frozen=True, kw_only=True)
    class Config(LayersConfig):
        parts: Count = 1
        """How many blocks the shorter side of a square layer holds; it divides the layers' widths."""

    def block_size(self, layer: nn.Linear) -> int:
        """Side of the circulant blocks of a layer. Raises `MethodError` where the widths cannot be cut so."""
        common = math.gcd(layer.in_features, layer.out_features)
        check(common % self.config.parts == 0, "parts", self.config.parts, f"a divisor of {common}")
        return int(common // self.config.parts)

    def per_layer(self, layer: nn.Linear) -> int:
        return layer.in_features * layer.out_features // self.block_size(layer)

    def options(self, backbone: nn.Module) -> dict[str, Any]:
        sizes = {name: self.block_size(layer) for name, layer in self.named_layers(backbone).items()}
        first = next(iter(sizes.values()))
        return {**super().options(backbone), "block_size": first, "block_size_pattern": sizes}
