"""AdaptFormer: a bottleneck beside the MLP of every block."""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import nn

from methods.base import Method
from methods.bottleneck import (
    AdapterMethod,
    Bottleneck,
    Place,
    bottleneck_parameters,
    projections,
    zero_up_projections,
)
from methods.settings import Count, Positive, Probability, Settings, one_of

FORMS = {"paper": (8, 0.1), "sct_release": (96, 1.0)}
"""Variant to its own bottleneck width and scale."""


class AdaptFormer(AdapterMethod):
    """x + mlp(norm2 x) + s * W_up dropout(ReLU(W_down x)), eq. 1-2: 2*d*h + h + d parameters per block (d channels,
    bottleneck h; 156,768 on ViT-B); the variant `sct_release` adds a LayerNorm, 2*d, in front (1,798,272 at h = 96).

    W_down starts as in the authors' code, uniform between -d^-1/2 and d^-1/2 (std 0.021 on ViT-B), all else at zero.
    """

    name = "adaptformer"
    title = "AdaptFormer"
    paper = "Chen et al., AdaptFormer, NeurIPS 2022, arXiv 2205.13535"
    composition_order = 33
    recipe = {"lr": 1e-2}
    search_space = {**Method.search_space, "scale": (None, 1.0)}
    slots = ("mlp_parallel",)

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        bottleneck: Count | None = None
        """Width h of the bottleneck; None is the variant's own: 8 (as in VTAB-1K comparisons; the paper has 64), and 96
        for `sct_release`."""

        scale: Positive | None = None
        """Factor s on the adapter's output (section 3.2); None is the variant's own: 0.1, and 1.0 for `sct_release`."""

        dropout: Probability = 0.1
        """Dropout inside the bottleneck."""

        variant: Annotated[str, one_of(*FORMS)] = "paper"
        """`paper`, or `sct_release`: what the SCT repository runs under this name, with a LayerNorm of its own in front
        and both projections of std 0.02, so not the identity at the start."""

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

    def adapter_parameters(self, d: int) -> int:
        h, _ = self.resolved()
        return bottleneck_parameters(d, h) + (2 * d if self.config.variant == "sct_release" else 0)

    def adapter(self, place: Place, generator: torch.Generator) -> Bottleneck:
        (h, scale), d = self.resolved(), place.d
        if self.config.variant == "sct_release":
            pair, norm = projections(d, h, generator, down=0.02, up=0.02), nn.LayerNorm(d)
        else:
            pair, norm = zero_up_projections(d, h, generator), None
        return Bottleneck(*pair, nn.ReLU(), scale, self.config.dropout, norm)
