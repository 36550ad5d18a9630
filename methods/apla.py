"""APLA: random rows of every attention's output projection are trained."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Attachment, Context, Method, check
from methods.blocks import require_served
from methods.layers import linears
from methods.settings import Count, Settings
from methods.ssf import has_bias
from methods.updates import fold_reweighted, reweight


class TrainedRows(nn.Module):
    """W and b with trained copies in place of some rows; weight: [R, in], bias: [R] where there is a b."""

    stateless = True

    rows: Tensor
    bias: Tensor | None

    def __init__(self, layer: Any, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows.to(layer.weight.device))
        self.weight = nn.Parameter(layer.weight.detach()[self.rows])
        bias = nn.Parameter(layer.bias.detach()[self.rows]) if has_bias(layer) else None
        self.register_parameter("bias", bias)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """weight: [out, in]; bias: [out]."""
        shifted = bias if bias is None or self.bias is None else bias.index_copy(0, self.rows, self.bias)
        return weight.index_copy(0, self.rows, self.weight), shifted


class APLA(Method):
    """R output rows of the attention's output projection in each block, drawn at random, and the same entries of its
    bias: L * R * (d + 1) parameters for L blocks of width d, 73,824 on ViT-B/16 with R = 8. All else stays frozen.

    As in the release the rows themselves are trained, so weight decay pulls them towards zero, not towards their
    pretrained values. It has no recipe for VTAB-1K, and no form for classification with Swin.
    """

    name = "apla"
    title = "APLA"
    paper = "Sorkhei et al., APLA: A Simple Adaptation Method for Vision Transformers, 2025, arXiv 2503.11335"
    family = "selective"
    recipe = {"lr": 5e-3}
    mergeable = True
    needs = frozenset({"attention"})
    search_space = {**Method.search_space, "rows": (8, 32, 96)}

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        rows: Count = 8
        """Number R of trained rows per block, at most the width of every block."""

    config: Config

    def layers(self, backbone: nn.Module) -> list[nn.Linear]:
        """The output projections. Raises `MethodError` if one has fewer rows than are to be trained."""
        found = linears(require_served(self, backbone), "proj")
        narrowest = min(layer.out_features for layer in found)
        rows = self.config.rows
        check(rows <= narrowest, "rows", rows, f"at most the outputs of every attention, {narrowest}")
        return found

    def expected_parameters(self, backbone: nn.Module) -> int:
        return sum(self.config.rows * (layer.in_features + has_bias(layer)) for layer in self.layers(backbone))

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        layers = self.layers(backbone)
        for layer in layers:
            rows = torch.randperm(layer.out_features, generator=context.generator)[: self.config.rows]
            reweight(layer, TrainedRows(layer, rows))
        return Attachment(merge=partial(fold_reweighted, layers))
