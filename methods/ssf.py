"""SSF: scale and shift the output of every layer."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from methods.base import Attachment, Context, Method
from methods.blocks import plug_layer, unplug_layer
from methods.layers import MAP_NORMS, NORMS, body_layers
from methods.settings import Settings, at_least


class ScaleShift(nn.Module):
    """gamma * y + beta per channel; gamma, beta: [C]; y: [..., C], or [B, C, H, W] of a convolution."""

    stateless = True

    shift: Tensor | None

    def __init__(self, scale: Tensor, shift: Tensor | None, trailing: int = 0) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)
        self.register_parameter("shift", None if shift is None else nn.Parameter(shift))
        self.shape = (-1,) + (1,) * trailing

    def forward(self, y: Tensor) -> Tensor:
        y = y * self.scale.view(self.shape)
        return y if self.shift is None else y + self.shift.view(self.shape)


def has_bias(layer: nn.Module) -> bool:
    """Whether the layer has a bias, which a norm may lack even by name."""
    return getattr(layer, "bias", None) is not None


def scale_shift_parameters(layer: Any) -> int:
    """Number of parameters of the `ScaleShift` of a layer with a weight."""
    return int(layer.weight.shape[0]) * (2 if has_bias(layer) else 1)


def plug_scale_shift(layer: Any, std: float, generator: torch.Generator) -> None:
    """Scale and shift the output of a linear layer, norm or convolution: gamma from N(1, std), beta from N(0, std). A
    layer without a bias gets no shift."""
    noise = std * torch.randn(2, layer.weight.shape[0], generator=generator)
    trailing = 2 if isinstance(layer, (nn.Conv2d, *MAP_NORMS)) else 0
    shift = noise[1].clone() if has_bias(layer) else None
    plug_layer(layer, "output", ScaleShift(1 + noise[0], shift, trailing))


@torch.no_grad()
def fold_scale_shift(layers: Iterable[Any]) -> None:
    """Fold the one `ScaleShift` at the output of each layer into the layer's weight and bias."""
    for layer in layers:
        (module,) = layer.slots["output"]
        layer.weight.mul_(module.scale.view(-1, *(1,) * (layer.weight.dim() - 1)))
        if has_bias(layer):
            layer.bias.copy_(layer.bias * module.scale + (0 if module.shift is None else module.shift))
        unplug_layer(layer)


class SSF(Method):
    """gamma * y + beta after every linear, norm and patch-embedding layer: twice their summed output widths,
    22 * d per ViT block (d, 3d, d, d, 4d, d outputs) and 4 * d outside the blocks.

    A layer without bias (Swin's patch merging, RmsNorm) gets a scale only: it could not take a shift in when merged.
    """

    name = "ssf"
    title = "SSF"
    paper = "Lian et al., Scaling & Shifting Your Features, NeurIPS 2022, arXiv 2210.08823"
    family = "reparameterisation"
    recipe = {"lr": 5e-3}
    mergeable = True
    identity_at_start = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        init_std: Annotated[float, at_least(0)] = 0.02
        """gamma is drawn from N(1, init_std), beta from N(0, init_std), as in the released code; 0 starts at the
        pretrained function."""

    def layers(self, backbone: nn.Module) -> list[Any]:
        """The layers whose outputs are scaled and shifted."""
        return body_layers(backbone, (nn.Linear, *NORMS, nn.Conv2d))

    def expected_parameters(self, backbone: nn.Module) -> int:
        return sum(map(scale_shift_parameters, self.layers(backbone)))

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        layers = self.layers(backbone)
        for layer in layers:
            plug_scale_shift(layer, self.config.init_std, context.generator)
        return Attachment(merge=partial(fold_scale_shift, layers))
