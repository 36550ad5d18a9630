"""Hydra: a parallel and a sequential low-rank branch on one linear layer."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Attachment, Context, Method
from methods.blocks import new_linear
from methods.layers import LowRank, absorb, change_layer, linears, restore_layer
from methods.settings import Count, Positive, Probability, Settings


class HydraLayer:
    """Mixed into a linear layer: y = W x + b, plus s * par(x) + s * seq(y)."""

    stateless = True

    parallel_branch: nn.Module
    sequential_branch: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """The layer's own output y and both branches."""
        y = super().forward(x)  # type: ignore[misc]
        out: Tensor = y + self.parallel_branch(x) + self.sequential_branch(y)
        return out


def branch(inputs: int, outputs: int, rank: int, scale: float, dropout: float, generator: torch.Generator) -> LowRank:
    """Linear maps [inputs] to [r] to [outputs] with biases; the first Xavier-uniform, the second zero."""
    down, up = new_linear(inputs, rank, generator, std=0), new_linear(rank, outputs, generator, std=0)
    nn.init.xavier_uniform_(down.weight, generator=generator)
    return LowRank(down, up, scale, 0, outputs, dropout)


def fold_hydra(layers: Iterable[Any]) -> None:
    """Fold both branches into the layers and remove them."""
    for layer in layers:
        absorb(layer)
        restore_layer(layer)
        del layer.parallel_branch, layer.sequential_branch


class Hydra(Method):
    """Branches on the output projections of attention and MLP, r * (in + 3 out) + 2 r + 2 out parameters each:
    r * (4 d + 7 d) + 4 r + 4 d per ViT block.
    """

    name = "hydra"
    title = "Hydra"
    paper = "Kim et al., Hydra: Multi-head Low-rank Adaptation, Neural Networks 2024, arXiv 2309.06922"
    family = "reparameterisation"
    composition_order = 23
    recipe = {"lr": 5e-3}
    mergeable = True
    search_space = {"lr": (1e-3, 5e-3), "weight_decay": (1e-4, 1e-2), "scale": (0.1, 1.0, 5.0), "dropout": (0.0, 0.2)}

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        rank: Count = 2
        """Rank r of each branch."""

        scale: Positive = 1.0
        """Factor s on both branches; the released code chooses it per task."""

        dropout: Probability = 0.2
        """Dropout on the r-dimensional codes; the released code has 0.2 for 14 of VTAB-1K's 19 tasks, 0.1 for one
        and none for four."""

    def expected_parameters(self, backbone: nn.Module) -> int:
        r, sizes = self.config.rank, [(m.in_features, m.out_features) for m in linears(backbone, "proj", "fc2")]
        return sum(r * (inputs + 3 * outputs) + 2 * r + 2 * outputs for inputs, outputs in sizes)

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        c, g = self.config, context.generator
        layers: list[Any] = linears(backbone, "proj", "fc2")
        for layer in layers:
            inputs, outputs = layer.in_features, layer.out_features
            change_layer(layer, HydraLayer)
            parallel, sequential = (
                branch(size, outputs, c.rank, c.scale, c.dropout, g).to(layer.weight).train(layer.training)
                for size in (inputs, outputs)
            )
            layer.parallel_branch, layer.sequential_branch = parallel, sequential
        foldable = all(layer.bias is not None for layer in layers)
        return Attachment(merge=partial(fold_hydra, layers) if foldable else None)
