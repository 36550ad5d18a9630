"""DiffFit: biases, norms, and a new scale factor after attention and MLP."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from methods.base import Attachment, Context, Method
from methods.bitfit import biases
from methods.blocks import blocks, plug_layer
from methods.layers import NORMS, block_linears, body_layers
from methods.ssf import ScaleShift, fold_scale_shift


class DiffFit(Method):
    """Trains all biases and norms, and x + gamma_1 * attn(x), x + gamma_2 * mlp(x) with vectors gamma that start at
    one: 15 * d per ViT block, d for the patch embedding's bias and 2 * d for the final norm.
    """

    name = "difffit"
    title = "DiffFit"
    paper = "Xie et al., DiffFit, ICCV 2023, arXiv 2304.06648"
    family = "selective"
    recipe = {"lr": 1e-2}
    mergeable = True

    def pretrained(self, backbone: nn.Module) -> list[nn.Parameter]:
        """The pretrained parameters that are trained: all biases, and the weights of the norms."""
        return biases(backbone) + [norm.weight for norm in body_layers(backbone, NORMS)]

    def scaled(self, backbone: nn.Module) -> list[Any]:
        """The last layer of each branch, where its factor acts: LayerScale after it is a product per channel too."""
        return [block_linears(b)[name] for b in blocks(backbone) for name in ("proj", "fc2")]

    def expected_parameters(self, backbone: nn.Module) -> int:
        scales = sum(int(layer.out_features) for layer in self.scaled(backbone))
        return sum(p.numel() for p in self.pretrained(backbone)) + scales

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        for parameter in self.pretrained(backbone):
            parameter.requires_grad_(True)
        last = self.scaled(backbone)
        for layer in last:
            plug_layer(layer, "output", ScaleShift(torch.ones(layer.out_features), None))
        return Attachment(merge=partial(fold_scale_shift, last))
