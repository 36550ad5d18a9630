"""LayerNorm tuning: train the affine part of the norms."""

from torch import nn

from methods.base import HIGH_RATES, MethodError
from methods.layers import NORMS, PretrainedMethod, body_layers


class NormTuning(PretrainedMethod):
    """Trains weight and bias of every norm: 4 * d per ViT block and 2 * d for the final norm, half of that where norms
    (RmsNorm) have no bias."""

    name = "norm_tuning"
    title = "Norm tuning"
    paper = "Basu et al., Strong Baselines for Parameter-Efficient Few-Shot Fine-Tuning, AAAI 2024, arXiv 2304.01917"
    composition_order = 1
    recipe = {"lr": 2e-2}
    search_space = HIGH_RATES

    def parameters(self, backbone: nn.Module) -> list[nn.Parameter]:
        affine = [p for norm in body_layers(backbone, NORMS) for p in norm.parameters()]
        if not affine:
            raise MethodError("this backbone has no norms with weights")
        return affine
