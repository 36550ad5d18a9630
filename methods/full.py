"""Full fine-tuning: every parameter of the backbone is trained."""

from __future__ import annotations

from typing import Any

from torch import nn

from methods.base import Attachment, Context, Method


class Full(Method):
    """Full fine-tuning, the upper end of the parameter axis."""

    name = "full"
    title = "Full"
    paper = "baseline"
    family = "full"
    recipe = {"lr": 5e-5}
    search_space = {"lr": (2e-5, 5e-5, 1e-4, 3e-4), "weight_decay": (1e-4, 1e-2)}

    def expected_parameters(self, backbone: Any) -> int:
        head = {id(p) for p in backbone.get_classifier().parameters()}
        return sum(p.numel() for p in backbone.parameters() if id(p) not in head)

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        backbone.requires_grad_(True)  # the head is the harness's, which trains it too
        return Attachment()
