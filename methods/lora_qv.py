"""LoRA on queries and values, with factors of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from methods.base import Attachment, Context, Method, check
from methods.blocks import blocks, plug_layer
from methods.layers import LowRank, block_linears, fold_linears, low_rank

VARIANTS = ("paper", "released")


class LoRAQV(Method):
    """q += (alpha/r) B_q A_q x and v += (alpha/r) B_v A_v x, without bias: 4 * r * d per block (paper, eq. 3).

    `identity_at_start` holds for the default variant.
    """

    name = "lora_qv"
    title = "LoRA (q, v)"
    paper = "Hu et al., LoRA, ICLR 2022, arXiv 2106.09685"
    family = "reparameterisation"
    composition_order = 20
    recipe = {"lr": 5e-3}
    mergeable = True
    search_space = {"lr": (1e-3, 2e-3, 5e-3, 1e-2), "weight_decay": (1e-4, 1e-2), "rank": (4, 8, 16)}

    @dataclass(frozen=True, kw_only=True)
    class Config:
        rank: int = 8
        """Rank r of each update."""

        alpha: float = 8.0
        """The update is scaled by alpha / rank (paper, section 4.1); not used by the variant `released`."""

        dropout: float = 0.0
        """Dropout between A and B."""

        variant: str = "paper"
        """`paper`: A random, B zero. `released`: as the code of SCT and V-PETL Bench ends up, A and B both
        trunc_normal(0.02) and no scaling, so that training does not start at the pretrained function."""

        def __post_init__(self) -> None:
            check(self.rank >= 1, "rank", self.rank, "at least 1")
            check(self.alpha > 0, "alpha", self.alpha, "positive")
            check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
            check(self.variant in VARIANTS, "variant", self.variant, f"one of {VARIANTS}")

    config: Config

    def starts_at_identity(self) -> bool:
        return self.config.variant == "paper"

    def resolve(self, backbone: nn.Module) -> Config:
        unused = self.config.variant == "released"
        return replace(self.config, alpha=self.Config.alpha) if unused else self.config

    def expected_parameters(self, backbone: nn.Module) -> int:
        r = self.config.rank
        layers = [block_linears(b)["qkv"] for b in blocks(backbone)]
        return sum(2 * r * (layer.in_features + layer.out_features // 3) for layer in layers)

    def branch(self, qkv: nn.Linear, rows: tuple[int, int], context: Context) -> LowRank:
        """The update of the outputs `rows` of the fused layer."""
        c = self.config
        scale = c.alpha / c.rank if c.variant == "paper" else 1.0
        result = low_rank(qkv, c.rank, context.generator, scale, rows, c.dropout)
        if c.variant == "released":
            for layer in (result.down, result.up):
                nn.init.trunc_normal_(layer.weight, std=0.02, generator=context.generator)
        return result

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        layers: list[Any] = [block_linears(b)["qkv"] for b in blocks(backbone)]
        for qkv in layers:
            d = qkv.out_features // 3
            plug_layer(qkv, "parallel", self.branch(qkv, (0, d), context))
            plug_layer(qkv, "parallel", self.branch(qkv, (2 * d, 3 * d), context))
        return Attachment(merge=partial(fold_linears, layers))
