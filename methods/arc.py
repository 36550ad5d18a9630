"""ARC: adapters that share one symmetric projection and differ in a few coefficients per block."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from methods.base import Attachment, Context, Method
from methods.blocks import blocks, pads, plug, require_served, unplug, width
from methods.layers import block_linears
from methods.settings import Count, Probability, Settings, one_of


class Recomposition(nn.Module):
    """x + dropout(x U diag(c)) U^T + b; x: [..., d], c: [r], b: [d], and U: [d, r] the `weight` of `projection`, which
    modules share."""

    stateless = True

    def __init__(self, projection: nn.ParameterDict, coefficients: Tensor, dropout: float) -> None:
        super().__init__()
        self.projection = projection
        self.coefficients = nn.Parameter(coefficients)
        self.bias = nn.Parameter(torch.zeros(len(projection["weight"])))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        u = self.projection["weight"]
        out: Tensor = x + self.dropout(x @ (u * self.coefficients)) @ u.T + self.bias
        return out


PLACES = ((False, "attention_input", "qkv"), (True, "mlp_input", "fc1"))
"""Slots with an adapter: whether it is an MLP's, and the linear layer that follows."""

Place = tuple[Any, str, Recomposition, list[nn.Linear]]
"""Block, slot, what is plugged in there, and the linear layers that follow."""


@torch.no_grad()
def fold_recompositions(places: Iterable[Place]) -> None:
    """Fold each module into the linear layers that follow: W (x A + b) = (W A^T) x + W b."""
    for block, slot, module, layers in places:
        u, c = module.projection["weight"], module.coefficients
        for linear in layers:
            linear.bias.add_(linear.weight @ module.bias)
            linear.weight.add_((linear.weight @ (u * c)) @ u.T)
        unplug(block, slot, module)


class ARC(Method):
    """One adapter in front of attention and one in front of the MLP of every block, after the norm; all in front of
    attention share a U, all in front of MLPs another: 2 * d * r + 2 * L * (r + d) parameters for L blocks of width d.
    On Swin each width shares its own.
    """

    name = "arc"
    title = "ARC"
    paper = "Dong et al., Efficient Adaptation of Large ViT via Adapter Re-Composing, NeurIPS 2023, arXiv 2310.06234"
    family = "reparameterisation"
    composition_order = 24
    recipe = {"lr": 1e-2}
    mergeable = True
    needs = frozenset({"attention"})
    search_space = {"lr": (1e-3, 5e-3, 1e-2), "weight_decay": (1e-4, 1e-2), "rank": (10, 50, 100)}

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        rank: Count = 50
        """Width r of the shared bottleneck."""

        dropout: Probability = 0.1
        """Dropout on the re-scaled code."""

        variant: Annotated[str, one_of("identity", "released")] = "identity"
        """`identity`: all coefficients start at zero. `released`: as in the released code, those of the MLP adapters
        start Xavier-uniform, so that training does not start at the pretrained function."""

    config: Config

    def starts_at_identity(self) -> bool:
        return self.config.variant == "identity"

    def expected_parameters(self, backbone: nn.Module) -> int:
        r = self.config.rank
        widths = [width(block) for block in blocks(require_served(self, backbone))]
        return sum(2 * d * r for d in set(widths)) + sum(2 * (r + d) for d in widths)

    def coefficients(self, mlp: bool, context: Context) -> Tensor:
        """Starting coefficients [r]."""
        start = torch.zeros(1, self.config.rank)
        if mlp and self.config.variant == "released":
            nn.init.xavier_uniform_(start, generator=context.generator)
        return start[0]

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        self.expected_parameters(backbone)  # refuses what is not served
        c, all_blocks = self.config, blocks(backbone)
        shared = {}
        for d in sorted({width(block) for block in all_blocks}):
            for mlp in (False, True):
                u = nn.init.xavier_uniform_(torch.empty(d, c.rank), generator=context.generator)
                shared[d, mlp] = nn.ParameterDict({"weight": u})
        places: list[Place] = []
        for block in all_blocks:
            for mlp, slot, name in PLACES:
                module = Recomposition(shared[width(block), mlp], self.coefficients(mlp, context), c.dropout)
                plug(block, slot, module)
                places.append((block, slot, module, [layer for _, layer in block_linears(block, [name])]))
        biased = all(linear.bias is not None for *_, layers in places for linear in layers)
        foldable = biased and not any(map(pads, all_blocks))
        return Attachment(merge=partial(fold_recompositions, places) if foldable else None)
