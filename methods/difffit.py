"""DiffFit: biases, norms, and a new scale factor after attention and MLP."""

from functools import partial

import torch
from torch import nn

from methods.base import Attachment, Context
from methods.blocks import plug_layer
from methods.layers import NORMS, PretrainedMethod, body_biases, body_layers, linears
from methods.ssf import ScaleShift, fold_scale_shift

SCALED = ("proj", "fc2")
"""The last layer of each branch, where its factor acts: LayerScale after it is a product per channel too."""


class DiffFit(PretrainedMethod):
    """Trains all biases and norms, and x + gamma_1 * attn(x), x + gamma_2 * mlp(x) with vectors gamma that start at
    one: 15 * d per ViT block, d for the patch embedding's bias and 2 * d for the final norm.
    """

    name = "difffit"
    title = "DiffFit"
    paper = "Xie et al., DiffFit, ICCV 2023, arXiv 2304.06648"
    recipe = {"lr": 1e-2}
    mergeable = True

    def parameters(self, backbone: nn.Module) -> list[nn.Parameter]:
        return body_biases(backbone) + [norm.weight for norm in body_layers(backbone, NORMS)]

    def expected_parameters(self, backbone: nn.Module) -> int:
        return super().expected_parameters(backbone) + sum(layer.out_features for layer in linears(backbone, *SCALED))

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        super().attach(backbone, context)
        layers = linears(backbone, *SCALED)
        for layer in layers:
            plug_layer(layer, "output", ScaleShift(torch.ones(layer.out_features), None))
        return Attachment(merge=partial(fold_scale_shift, layers))
