"""LoRA on queries and values, with factors of their own."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

from torch import nn

from methods.architectures.base import Rows
from methods.base import Attachment, Context, Method
from methods.blocks import blocks, plug_layer, require_served
from methods.layers import LowRank, fold_linears, low_rank, projections
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
    needs = frozenset({"attention"})
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
        return sum(r * (rows.layer.in_features + rows.stop - rows.start) for rows in self.tuned(backbone))

    def tuned(self, backbone: nn.Module) -> list[Rows]:
        """Where the queries and the values of every block come from."""
        return [rows for block in blocks(backbone) for rows in projections(block)[::2]]

    def branch(self, rows: Rows, context: Context) -> LowRank:
        """The update of these outputs of their layer."""
        c = self.config
        scale = c.alpha / c.rank if c.variant == "paper" else 1.0
        result = low_rank(rows.layer, c.rank, context.generator, scale, (rows.start, rows.stop), c.dropout)
        if c.variant == "released":
            for layer in (result.down, result.up):
                nn.init.trunc_normal_(layer.weight, std=0.02, generator=context.generator)
        return result

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        tuned = self.tuned(require_served(self, backbone))
        for rows in tuned:
            plug_layer(rows.layer, "parallel", self.branch(rows, context))
        return Attachment(merge=partial(fold_linears, [rows.layer for rows in tuned]))
