"""LayerNorm tuning: train the affine part of the norms."""

from __future__ import annotations

from torch import nn

from methods.base import HIGH_RATES, Attachment, Context, Method, MethodError
from methods.layers import NORMS, body_layers


class NormTuning(Method):
    """Trains weight and bias of every norm: 4 * d per ViT block and 2 * d for the final norm, half of that where norms
    (RmsNorm) have no bias."""

    name = "norm_tuning"
    title = "Norm tuning"
    paper = "Basu et al., Strong Baselines for Parameter-Efficient Few-Shot Fine-Tuning, AAAI 2024, arXiv 2304.01917"
    family = "selective"
    composition_order = 1
    recipe = {"lr": 2e-2}
    search_space = HIGH_RATES

    def parameters(self, backbone: nn.Module) -> list[nn.Parameter]:
        """Weights and biases of the norms outside the head. Raises `MethodError` if there are none."""
        found = [p for norm in body_layers(backbone, NORMS) for p in norm.parameters()]
        if not found:
            raise MethodError("this backbone has no norms with weights")
        return found

    def expected_parameters(self, backbone: nn.Module) -> int:
        return sum(p.numel() for p in self.parameters(backbone))

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        for parameter in self.parameters(backbone):
            parameter.requires_grad_(True)
        return Attachment()
