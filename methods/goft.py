"""GOFT and qGOFT: the inputs of linear layers are turned by plane rotations in log d levels."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from methods.base import Attachment, Context
from methods.updates import UpdateConfig, UpdateMethod, fold_reweighted, reweight


def level_sizes(width: int) -> list[int]:
    """Number of pairs in each level of a tree over `width` channels, width - 1 in all: neighbours, then the first of
    each pair with the next pair's first, and so on. An odd one out waits for the next level."""
    sizes = []
    while width > 1:
        sizes.append(width // 2)
        width = width // 2 + width % 2
    return sizes


def turned(x: Tensor, levels: Sequence[Tensor]) -> Tensor:
    """x with its last axis turned level by level, neighbours first: pair p becomes (G_p00 x_0 + G_p01 x_1,
    G_p10 x_0 + G_p11 x_1); its first goes on to the next level. levels: [pairs, 2, 2] each."""
    if not levels:
        return x
    g, pairs = levels[0], len(levels[0])
    first, second, left = x[..., : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2], x[..., 2 * pairs :]
    rising = torch.cat([g[:, 0, 0] * first + g[:, 0, 1] * second, left], -1)
    staying = g[:, 1, 0] * first + g[:, 1, 1] * second
    risen = turned(rising, levels[1:])
    together = torch.stack([risen[..., :pairs], staying], -1).flatten(-2)
    return torch.cat([together, risen[..., pairs:]], -1)


class Turning(nn.Module, ABC):
    """W D^T, where x D is the input x turned level by level, the widest apart first."""

    stateless = True

    @abstractmethod
    def blocks(self) -> Tensor:
        """The matrix of each pair, by level, then by place: [in - 1, 2, 2]. A pair (x_0, x_1) of the input becomes
        (x_0, x_1) G."""

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """weight: [out, in]; bias: [out]."""
        return turned(weight, self.blocks().split(level_sizes(weight.shape[1]))), bias


class Rotations(Turning):
    """G = [[cos t, -sin t], [sin t, cos t]] with t = pi tanh(angle); then each input is multiplied with its factor, if
    there are any. Angles start at zero, factors at one."""

    stateless = True

    factors: Tensor | None

    def __init__(self, width: int, scaling: bool) -> None:
        super().__init__()
        self.angles = nn.Parameter(torch.zeros(width - 1))
        self.register_parameter("factors", nn.Parameter(torch.ones(width)) if scaling else None)

    def blocks(self) -> Tensor:
        """Rotations by t."""
        t: Tensor = math.pi * self.angles.tanh()
        cos, sin = t.cos(), t.sin()
        return torch.stack([cos, -sin, sin, cos], -1).view(-1, 2, 2)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """weight: [out, in]; bias: [out]."""
        return super().forward(weight if self.factors is None else weight * self.factors, bias)


class FreePairs(Turning):
    """Any G, the identity at the start."""

    stateless = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pairs = nn.Parameter(torch.eye(2).repeat(width - 1, 1, 1))

    def blocks(self) -> Tensor:
        """The trained matrices."""
        return self.pairs


class QGOFT(UpdateMethod):
    """W D^T x in place of W x, D being a product of 2 x 2 maps of pairs of channels: of neighbours, of every second
    channel, of every fourth, and so on, so that d - 1 pairs join all d inputs. 4 * (in - 1) parameters for each linear
    layer of the blocks, 257,856 on ViT-B/16.

    The paper adds a penalty that keeps the maps near rotations; no release has it, and it is not here. The map is that
    of the first release: the later one pairs other channels than its parameters are meant for, and merges to another
    function than it trains. Which layers the paper tunes on VTAB-1K is not in the code.
    """

    name = "qgoft"
    title = "qGOFT"
    paper = (
        "Ma et al., Parameter Efficient Quasi-Orthogonal Fine-Tuning via Givens Rotation, ICML 2024, arXiv 2404.04316"
    )
    recipe = {"lr": 5e-3}

    def per_layer(self, layer: nn.Linear) -> int:
        return 4 * (layer.in_features - 1)

    def turning(self, layer: nn.Linear) -> Turning:
        """A new map of the layer's inputs."""
        return FreePairs(layer.in_features)

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        layers = self.layers(backbone)
        for layer in layers:
            reweight(layer, self.turning(layer))
        return Attachment(merge=partial(fold_reweighted, layers))


class GOFT(QGOFT):
    """qGOFT's map with a rotation for each pair, and a factor for each input behind them: 2 * in - 1 parameters per
    linear layer, 128,976 on ViT-B/16; 64,464 without the factors.
    """

    name = "goft"
    title = "GOFT"

    @dataclass(frozen=True, kw_only=True)
    class Config(UpdateConfig):
        scaling: bool = True
        """Whether inputs have factors."""

    config: Config

    def per_layer(self, layer: nn.Linear) -> int:
        return layer.in_features - 1 + (layer.in_features if self.config.scaling else 0)

    def turning(self, layer: nn.Linear) -> Turning:
        return Rotations(layer.in_features, self.config.scaling)
