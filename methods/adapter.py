"""Sequential adapters: a bottleneck after the MLP (Pfeiffer), or after both attention and MLP (Houlsby)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import nn

from methods.base import Method
from methods.bottleneck import AdapterMethod, Place, QuickGELU, SequentialBottleneck, bottleneck_parameters, projections
from methods.settings import Count, Probability, Settings, one_of

FORMS: dict[str, tuple[int, float | None, float, float, Callable[[], nn.Module]]] = {
    "zero_up": (8, None, 0.0, 2.0, nn.GELU),
    "near_identity": (8, 0.01, 0.01, 0.02, nn.GELU),
    "noah_release": (8, 0.02, 0.02, 2.0, QuickGELU),
    "sct_release": (96, 0.02, 0.02, 2.0, nn.GELU),
    "vpt_release": (96, 0.0, 0.0, 2.0, nn.GELU),
}
"""Form to bottleneck width, std of the down-projection (None is d ** -0.5) and of the up-projection, the largest weight
that is drawn, activation."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(Settings):
    """Knobs of both placements."""

    bottleneck: Count | None = None
    """Width h of the bottleneck; None is the form's own: 8, and 96 for `sct_release` and `vpt_release`."""

    dropout: Probability = 0.0
    """Dropout inside the bottleneck."""

    variant: Annotated[str, one_of(*FORMS)] = "zero_up"
    """`zero_up`: exact identity at the start. `near_identity`: both projections of std 0.01 cut at two standard
    deviations, as Houlsby et al. start.
    What repositories run as "adapter": `sct_release` and `noah_release`, whose constructors draw everything again with
    std 0.02, far from the identity, and `vpt_release`, all zeros, where the up-projection's bias alone ever learns."""


class AdapterPfeiffer(AdapterMethod):
    """h = mlp(norm2 x); x + h + W_up GELU(W_down h): 2*d*h + h + d parameters per block (156,768 on ViT-B, h = 8)."""

    name = "adapter_pfeiffer"
    title = "Adapter-P"
    paper = "Pfeiffer et al., AdapterFusion, EACL 2021, arXiv 2005.00247"
    composition_order = 30
    Config = AdapterConfig
    config: AdapterConfig
    recipe = {"lr": 5e-3}
    search_space = {**Method.search_space, "dropout": (0.0, 0.1)}
    slots: tuple[str, ...] = ("mlp_output",)

    def bottleneck_width(self) -> int:
        """Width h, asked for or the form's own."""
        c = self.config
        return int(FORMS[c.variant][0] if c.bottleneck is None else c.bottleneck)

    def starts_at_identity(self) -> bool:
        return FORMS[self.config.variant][2] == 0

    def resolve(self, backbone: nn.Module) -> AdapterConfig:
        return replace(self.config, bottleneck=self.bottleneck_width())

    def adapter_parameters(self, d: int) -> int:
        return bottleneck_parameters(d, self.bottleneck_width())

    def adapter(self, place: Place, generator: torch.Generator) -> nn.Module:
        _, down, up, cut, activation = FORMS[self.config.variant]
        down = place.d**-0.5 if down is None else down
        pair = projections(place.d, self.bottleneck_width(), generator, down, up, cut)
        return SequentialBottleneck(*pair, activation(), dropout=self.config.dropout)


class AdapterHoulsby(AdapterPfeiffer):
    """One bottleneck after attention and one after the MLP, each before the residual sum:
    2 * (2*d*h + h + d) parameters per block (313,536 on ViT-B, h = 8). The start is near the identity only."""

    name = "adapter_houlsby"
    title = "Adapter-H"
    paper = "Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019, arXiv 1902.00751"
    composition_order = 31
    slots = ("attention_output", "mlp_output")
    needs = frozenset({"attention"})
    recipe = {"lr": 2e-3}
    identity_at_start = False

    @dataclass(frozen=True, kw_only=True)
    class Config(AdapterConfig):
        variant: Annotated[str, one_of(*FORMS)] = "near_identity"
        """See `AdapterConfig`."""

    config: Config
