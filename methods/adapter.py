"""Sequential adapters: a bottleneck after the MLP (Pfeiffer), or after both attention and MLP (Houlsby)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from methods.base import Attachment, Context, Method, check
from methods.blocks import blocks, plug, width
from methods.bottleneck import QuickGELU, SequentialBottleneck, bottleneck_parameters, projections

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
class AdapterConfig:
    """Knobs of both placements."""

    bottleneck: int | None = None
    """Width h of the bottleneck; None is the form's own: 8, and 96 for `sct_release` and `vpt_release`."""

    dropout: float = 0.0
    """Dropout inside the bottleneck."""

    variant: str = "zero_up"
    """`zero_up`: exact identity at the start. `near_identity`: both projections of std 0.01 cut at two standard
    deviations, as Houlsby et al. start.
    What repositories run as "adapter": `sct_release` and `noah_release`, whose constructors draw everything anew with
    std 0.02, far from the identity, and `vpt_release`, all zeros, where the up-projection's bias alone ever learns."""

    def __post_init__(self) -> None:
        check(self.bottleneck is None or self.bottleneck >= 1, "bottleneck", self.bottleneck, "at least 1")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        check(self.variant in FORMS, "variant", self.variant, f"one of {tuple(FORMS)}")


class AdapterPfeiffer(Method):
    """h = mlp(norm2 x); x + h + W_up GELU(W_down h): 2*d*h + h + d parameters per block (156,768 on ViT-B, h = 8)."""

    name = "adapter_pfeiffer"
    title = "Adapter-P"
    paper = "Pfeiffer et al., AdapterFusion, EACL 2021, arXiv 2005.00247"
    family = "adapter"
    composition_order = 30
    Config = AdapterConfig
    config: AdapterConfig
    recipe = {"lr": 5e-3}
    search_space = {**Method.search_space, "dropout": (0.0, 0.1)}
    slots: ClassVar[tuple[str, ...]] = ("mlp_output",)

    def bottleneck_width(self) -> int:
        """Width h, asked for or the form's own."""
        c = self.config
        return int(FORMS[c.variant][0] if c.bottleneck is None else c.bottleneck)

    def starts_at_identity(self) -> bool:
        return FORMS[self.config.variant][2] == 0

    def resolve(self, backbone: nn.Module) -> AdapterConfig:
        return replace(self.config, bottleneck=self.bottleneck_width())

    def expected_parameters(self, backbone: nn.Module) -> int:
        h = self.bottleneck_width()
        return len(self.slots) * sum(bottleneck_parameters(width(b), h) for b in blocks(backbone))

    def adapter(self, block: Any, context: Context) -> nn.Module:
        """A new bottleneck as wide as `block`."""
        _, down, up, cut, activation = FORMS[self.config.variant]
        d = width(block)
        pair = projections(d, self.bottleneck_width(), context.generator, d**-0.5 if down is None else down, up, cut)
        return SequentialBottleneck(*pair, activation(), dropout=self.config.dropout)

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        for block in blocks(backbone):
            for slot in self.slots:
                plug(block, slot, self.adapter(block, context))
        return Attachment()


class AdapterHoulsby(AdapterPfeiffer):
    """One bottleneck after attention and one after the MLP, each before the residual sum:
    2 * (2*d*h + h + d) parameters per block (313,536 on ViT-B, h = 8). It starts near the identity, not at it."""

    name = "adapter_houlsby"
    title = "Adapter-H"
    paper = "Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019, arXiv 1902.00751"
    composition_order = 31
    slots = ("attention_output", "mlp_output")
    recipe = {"lr": 2e-3}
    identity_at_start = False

    @dataclass(frozen=True, kw_only=True)
    class Config(AdapterConfig):
        variant: str = "near_identity"
        """See `AdapterConfig`."""

    config: Config
