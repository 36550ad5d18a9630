"""Consolidator: sparse grouped connections beside every linear layer, which fold into it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from methods.base import Attachment, Context, Method, MethodError, check
from methods.blocks import blocks, plug_layer, the_one, unplug_layer
from methods.layers import block_linears


class GroupedConnection(nn.Module):
    """drop_path(R(W x) + b): W block-diagonal with g blocks, R interleaves the groups' outputs.

    x: [..., inputs]; W is held as its blocks [g, outputs / g, inputs / g].
    """

    def __init__(self, inputs: int, outputs: int, groups: int, drop_path: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(groups, outputs // groups, inputs // groups))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("...gi,goi->...og", x.unflatten(-1, (self.weight.shape[0], -1)), self.weight)
        return self.drop_path(y.flatten(-2) + self.bias)

    def dense(self) -> Tensor:
        """R W as one matrix [outputs, inputs]."""
        groups, rows, columns = self.weight.shape
        return torch.block_diag(*self.weight).unflatten(0, (groups, rows)).transpose(0, 1).reshape(-1, groups * columns)


@torch.no_grad()
def fold_all(plugged: list[tuple[Any, GroupedConnection]]) -> None:
    """(W_0 + R W) x + (b_0 + b): give each layer its connection's weights, and drop the connection."""
    if any(sum(map(len, layer.slots.values())) != 1 for layer, _ in plugged):
        raise MethodError("'consolidator' merges only where no other method is plugged into the same layer")
    for layer, connection in plugged:
        layer.weight.add_(connection.dense())
        layer.bias.add_(connection.bias)
        unplug_layer(layer)


class Consolidator(Method):
    """d_in*d_out/g + d_out parameters for each linear layer of a block: 304,128 on ViT-B with g = 384."""

    name = "consolidator"
    title = "Consolidator"
    paper = "Hao et al., Consolidator: Mergeable Adapter with Grouped Connections, ICLR 2023, arXiv 2305.00603"
    family = "reparameterisation"
    recipe = {"lr": 2e-3}
    mergeable = True
    search_space = {**Method.search_space, "drop_path": (0.0, 0.5)}

    @dataclass(frozen=True, kw_only=True)
    class Config:
        groups: int | None = None
        """Number g of groups, a divisor of every layer's inputs and outputs; None is half the block's width, the 384 of
        ViT-B. It stays None where the blocks differ in width."""

        drop_path: float = 0.0
        """Probability of leaving out a connection for a sample, the paper's way to enlarge its capacity; beside Swin's
        attention layers, which see windows, for a window."""

        def __post_init__(self) -> None:
            check(self.groups is None or self.groups >= 1, "groups", self.groups, "at least 1")
            check(0 <= self.drop_path < 1, "drop_path", self.drop_path, "in [0, 1)")

    def resolve(self, backbone: nn.Module) -> Config:
        return replace(self.config, groups=the_one(groups for _, groups in self.layers(backbone)))

    def layers(self, backbone: nn.Module) -> list[tuple[Any, int]]:
        """Every linear layer of every block with its number of groups. Raises `MethodError` if that does not divide."""
        result = []
        for block in blocks(backbone):
            for layer in block_linears(block).values():
                groups = block.attn.proj.out_features // 2 if self.config.groups is None else self.config.groups
                fits = layer.in_features % groups == 0 and layer.out_features % groups == 0
                check(fits, "groups", groups, f"a divisor of {layer.in_features} and {layer.out_features}")
                result.append((layer, groups))
        return result

    def expected_parameters(self, backbone: nn.Module) -> int:
        return sum(m.in_features * m.out_features // g + m.out_features for m, g in self.layers(backbone))

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        plugged = []
        for layer, groups in self.layers(backbone):
            connection = GroupedConnection(layer.in_features, layer.out_features, groups, self.config.drop_path)
            plug_layer(layer, "parallel", connection)
            plugged.append((layer, connection))
        foldable = all(layer.bias is not None for layer, _ in plugged)
        return Attachment(merge=(lambda: fold_all(plugged)) if foldable else None)
