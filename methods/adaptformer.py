"""AdaptFormer: a bottleneck beside the MLP of every block."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import nn

from methods.base import Attachment, Context, Method, check
from methods.blocks import blocks, plug, width
from methods.bottleneck import Bottleneck, bottleneck_parameters, projections

FORMS = {"paper": (8, 0.1), "sct_release": (96, 1.0)}
"""Variant to its own bottleneck width and scale."""


class AdaptFormer(Method):
    """x + mlp(norm2 x) + s * W_up dropout(ReLU(W_down x)), eq. 1-2: 2*d*h + h + d parameters per block (d channels,
    bottleneck h; 156,768 on ViT-B); the variant `sct_release` adds a LayerNorm, 2*d, in front (1,798,272 at h = 96).

    W_down starts as in the authors' code, uniform between -d^-1/2 and d^-1/2 (std 0.021 on ViT-B), all else at zero.
    """

    name = "adaptformer"
    title = "AdaptFormer"
    paper = "Chen et al., AdaptFormer, NeurIPS 2022, arXiv 2205.13535"
    family = "adapter"
    composition_order = 33
    recipe = {"lr": 1e-2}
    search_space = {**Method.search_space, "scale": (None, 1.0)}

    @dataclass(frozen=True, kw_only=True)
    class Config:
        bottleneck: int | None = None
        """Width h of the bottleneck; None is the variant's own: 8 (as in VTAB-1K comparisons; the paper has 64), and 96
        for `sct_release`."""

        scale: float | None = None
        """Factor s on the adapter's output (section 3.2); None is the variant's own: 0.1, and 1.0 for `sct_release`."""

        dropout: float = 0.1
        """Dropout inside the bottleneck."""

        variant: str = "paper"
        """`paper`, or `sct_release`: what the SCT repository runs under this name, with a LayerNorm of its own in front
        and both projections of std 0.02, so not the identity at the start."""

        def __post_init__(self) -> None:
            check(self.bottleneck is None or self.bottleneck >= 1, "bottleneck", self.bottleneck, "at least 1")
            check(self.scale is None or self.scale > 0, "scale", self.scale, "positive")
            check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
            check(self.variant in FORMS, "variant", self.variant, f"one of {tuple(FORMS)}")

    config: Config

    def starts_at_identity(self) -> bool:
        return self.config.variant == "paper"

    def resolve(self, backbone: nn.Module) -> Config:
        bottleneck, scale = self.resolved()
        return replace(self.config, bottleneck=bottleneck, scale=scale)

    def resolved(self) -> tuple[int, float]:
        """Bottleneck width and scale, asked for or the variant's own."""
        c = self.config
        own_width, own_scale = FORMS[c.variant]
        return own_width if c.bottleneck is None else c.bottleneck, own_scale if c.scale is None else c.scale

    def expected_parameters(self, backbone: nn.Module) -> int:
        h, _ = self.resolved()
        norms = 2 if self.config.variant == "sct_release" else 0
        return sum(bottleneck_parameters(width(b), h) + norms * width(b) for b in blocks(backbone))

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        h, scale = self.resolved()
        released = self.config.variant == "sct_release"
        for block in blocks(backbone):
            d = width(block)
            std = 0.02 if released else 0.0
            pair = projections(d, h, context.generator, std, std)
            if not released:
                nn.init.kaiming_uniform_(pair[0].weight, a=math.sqrt(5), generator=context.generator)
            norm = nn.LayerNorm(d) if released else None
            plug(block, "mlp_parallel", Bottleneck(*pair, nn.ReLU(), scale, self.config.dropout, norm))
        return Attachment()
