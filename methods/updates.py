"""What methods share that change linear layers one by one: which layers, a branch beside each, other weights."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.architectures.base import LINEARS
from methods.base import Attachment, Context, Method, check
from methods.blocks import plug_layer
from methods.layers import change_layer, fold_linears, linears, restore_layer
from methods.settings import Settings


def in_order(targets: Sequence[str]) -> tuple[str, ...]:
    """Names of linear layers in one order, so that settings that differ in the order alone are one. Raises
    `MethodError` unless they are some of `LINEARS`, each once."""
    distinct = len(targets) > 0 and len(set(targets)) == len(targets)
    check(distinct and set(targets) <= set(LINEARS), "targets", tuple(targets), f"some of {LINEARS}, each once")
    return tuple(target for target in LINEARS if target in targets)


@dataclass(frozen=True, kw_only=True)
class UpdateConfig(Settings):
    """Which layers are changed."""

    targets: tuple[str, ...] = LINEARS
    """Which linear layers of each block are changed: any of qkv, proj, fc1, fc2; in blocks without attention those of
    the MLP among them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "targets", in_order(self.targets))


class UpdateMethod(Method):
    """A change of every linear layer of the `targets`, which folds into its weight."""

    family = "reparameterisation"
    mergeable = True
    Config = UpdateConfig
    config: UpdateConfig

    @abstractmethod
    def per_layer(self, layer: nn.Linear) -> int:
        """Closed formula for the parameters of one layer's change. Raises `MethodError` where a setting does not fit
        the layer."""

    def layers(self, backbone: nn.Module) -> list[nn.Linear]:
        """The layers that are changed, from input to output."""
        return linears(backbone, *self.config.targets)

    def expected_parameters(self, backbone: nn.Module) -> int:
        return sum(map(self.per_layer, self.layers(backbone)))


class BranchMethod(UpdateMethod):
    """A linear branch beside each layer: y = W x + b + branch(x)."""

    @abstractmethod
    def branch(self, layer: nn.Linear, generator: torch.Generator) -> nn.Module:
        """A new branch, whose random numbers come from `generator`."""

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        self.expected_parameters(backbone)  # refuses what does not fit
        layers = self.layers(backbone)
        for layer in layers:
            plug_layer(layer, "parallel", self.branch(layer, context.generator))
        return Attachment(merge=partial(fold_linears, layers))


class Reweighted:
    """Mixed into a linear layer: y = W' x + b', which `reweighting(W, b)` gives; b may be None."""

    stateless = True

    weight: Tensor
    bias: Tensor | None
    reweighting: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own."""
        return functional.linear(x, *self.reweighting(self.weight, self.bias))


def reweight(layer: Any, reweighting: nn.Module, mixin: type[Reweighted] = Reweighted) -> None:
    """Let a linear layer compute with the weight and the bias that `reweighting` makes of its own."""
    change_layer(layer, mixin)
    layer.reweighting = reweighting.to(layer.weight).train(layer.training)


@torch.no_grad()
def fold_reweighted(layers: Iterable[Any]) -> None:
    """Write what the layers compute with into their weights and biases."""
    for layer in layers:
        weight, bias = layer.reweighting(layer.weight, layer.bias)
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
        restore_layer(layer)
        del layer.reweighting
