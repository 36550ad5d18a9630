"""What adapters share: modules of one make in every block, and the bottleneck of two projections."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.architectures import architecture_of
from methods.base import Attachment, Context, Method
from methods.blocks import blocks, new_linear, plug, require_served, require_slots, width


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an adapter goes."""

    block: Any
    slot: str
    d: int
    """The block's width."""

    grid: tuple[int, int]
    """Rows and columns of the patches, for tokens that are one sequence: maps carry their shape."""


class AdapterMethod(Method):
    """A new module in each of the `slots` of every block, whose size follows from the block's width."""

    family = "adapter"
    slots: tuple[str, ...]

    @abstractmethod
    def adapter(self, place: Place, generator: torch.Generator) -> nn.Module:
        """A new module, whose random numbers come from `generator`."""

    @abstractmethod
    def adapter_parameters(self, d: int) -> int:
        """Closed formula for the parameters of one module in a block of width d."""

    def expected_parameters(self, backbone: nn.Module) -> int:
        for block in blocks(require_served(self, backbone)):
            require_slots(block, self.slots)
        return sum(len(self.slots) * self.adapter_parameters(width(block)) for block in blocks(backbone))

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        self.expected_parameters(backbone)  # refuses what does not fit
        grid = architecture_of(backbone).token_grid(backbone)
        for block in blocks(backbone):
            for slot in self.slots:
                place = Place(block=block, slot=slot, d=width(block), grid=grid)
                plug(block, slot, self.adapter(place, context.generator))
        return Attachment()


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


class ComputedLinear(nn.Module, ABC):
    """x W + b, where W follows from other parameters; x: [..., in], W: [in, out], b: [out]."""

    stateless = True

    bias: nn.Parameter

    @abstractmethod
    def weight(self) -> Tensor:
        """W."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight() + self.bias


def projections(
    width: int, bottleneck: int, generator: torch.Generator, down: float, up: float, cut: float = 2.0
) -> tuple[nn.Linear, nn.Linear]:
    """Down- and up-projection: weights trunc_normal with std `down` and `up` (zero for 0) between -cut and cut, biases
    zero."""
    first = new_linear(width, bottleneck, generator, std=down, cut=cut)
    return first, new_linear(bottleneck, width, generator, std=up, cut=cut)


def zero_up_projections(width: int, bottleneck: int, generator: torch.Generator) -> tuple[nn.Linear, nn.Linear]:
    """Down- and up-projection as AdaptFormer starts them: the first uniform between -width^-1/2 and width^-1/2, all
    else zero."""
    down, up = projections(width, bottleneck, generator, down=0, up=0)
    nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5), generator=generator)
    return down, up


def bottleneck_parameters(width: int, bottleneck: int) -> int:
    """Weights and biases of both projections: 2*d*h + h + d."""
    return 2 * width * bottleneck + bottleneck + width
