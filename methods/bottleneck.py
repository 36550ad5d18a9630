"""The bottleneck that adapters share: down-projection, activation, up-projection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.blocks import new_linear


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of NOAH's adapter and of Convpass's code."""

    stateless = True

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Bottleneck(nn.Module):
    """s * W_up(dropout(act(W_down norm(x)))); x: [..., channels]."""

    stateless = True

    def __init__(
        self,
        down: nn.Module,
        up: nn.Module,
        activation: nn.Module,
        scale: float = 1.0,
        dropout: float = 0.0,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.Identity() if norm is None else norm
        self.down, self.activation, self.up, self.scale = down, activation, up, scale
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """The bottleneck's output alone, for a place beside a layer."""
        out: Tensor = self.scale * self.up(self.dropout(self.activation(self.down(self.norm(x)))))
        return out


class SequentialBottleneck(Bottleneck):
    """x + bottleneck(x), for a place after a layer; x: [..., channels]."""

    stateless = True

    def forward(self, x: Tensor) -> Tensor:
        """The input with the bottleneck's output added."""
        return x + super().forward(x)


def projections(
    width: int, bottleneck: int, generator: torch.Generator, down: float, up: float, cut: float = 2.0
) -> tuple[nn.Linear, nn.Linear]:
    """Down- and up-projection: weights trunc_normal with std `down` and `up` (zero for 0) between -cut and cut, biases
    zero."""
    first = new_linear(width, bottleneck, generator, std=down, cut=cut)
    return first, new_linear(bottleneck, width, generator, std=up, cut=cut)


def bottleneck_parameters(width: int, bottleneck: int) -> int:
    """Weights and biases of both projections: 2*d*h + h + d."""
    return 2 * width * bottleneck + bottleneck + width
