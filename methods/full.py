"""Full fine-tuning: every parameter of the backbone is trained."""

from __future__ import annotations

from torch import nn

from methods.base import Attachment, Context, Method


class Full(Method):
    """Full fine-tuning, the upper end of the parameter axis."""

    name = "full"
    title = "Full"
    paper = "baseline"
    family = "full"
    recipe = {"lr": 1e-4}

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        backbone.requires_grad_(True)
        return Attachment()
