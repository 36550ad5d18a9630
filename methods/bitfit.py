"""BitFit: train the biases."""

from __future__ import annotations

from torch import nn

from methods.base import Attachment, Context, Method
from methods.layers import body_layers


def biases(backbone: nn.Module) -> list[nn.Parameter]:
    """Biases of all linear, norm and convolution layers outside the head."""
    layers = body_layers(backbone, (nn.Linear, nn.LayerNorm, nn.Conv2d))
    return [layer.bias for layer in layers if layer.bias is not None]


class BitFit(Method):
    """Trains every bias of the backbone: 11 * d per ViT block, and d each for patch embedding and final norm.

    Swin's relative position bias tables are tables, not biases, and stay frozen.
    """

    name = "bitfit"
    title = "BitFit"
    paper = "Ben Zaken et al., BitFit, ACL 2022, arXiv 2106.10199"
    family = "selective"
    composition_order = 0
    recipe = {"lr": 5e-3}

    def expected_parameters(self, backbone: nn.Module) -> int:
        return sum(b.numel() for b in biases(backbone))

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        for bias in biases(backbone):
            bias.requires_grad_(True)
        return Attachment()
