"""LoRA on queries and values, with factors of their own."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

from torch import nn

from methods.base import Attachment, Context, Method
from methods.blocks import plug_layer
from methods.layers import LowRank, fold_linears, linears, low_rank
from methods.settings import Count, Positive, Probability, Settings, one_of


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
    class Config(Settings):
        rank: Count = 8
        """Rank r of each update."""

        alpha: Positive = 8.0
        """The update is scaled by alpha / rank (paper, section 4.1); not used by the variant `released`."""

        dropout: Probability = 0.0
        """Dropout between A and B."""

        variant: Annotated[str, one_of("paper", "released")] = "paper"
        """`paper`: A random, B zero. `released`: as the code of SCT and V-PETL Bench ends up, A and B both
        trunc_normal(0.02) and no scaling, so that training does not start at the pretrained function."""

    config: Config

    def starts_at_identity(self) -> bool:
        return self.config.variant == "paper"

    def resolve(self, backbone: nn.Module) -> Config:
        unused = self.config.variant == "released"
        return replace(self.config, alpha=self.Config.alpha) if unused else self.config

    def expected_parameters(self, backbone: nn.Module) -> int:
        r = self.config.rank
        return sum(2 * r * (qkv.in_features + qkv.out_features // 3) for qkv in linears(backbone, "qkv"))

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
        layers = linears(backbone, "qkv")
        for qkv in layers:
            d = qkv.out_features // 3
            plug_layer(qkv, "parallel", self.branch(qkv, (0, d), context))
            plug_layer(qkv, "parallel", self.branch(qkv, (2 * d, 3 * d), context))
        return Attachment(merge=partial(fold_linears, layers))
