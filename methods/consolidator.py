"""Consolidator: sparse grouped connections beside every linear layer, which fold into it."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from methods.base import Attachment, Context, Method, MethodError, check
from methods.blocks import blocks, plug_layer, the_one, unplug_layer, width
from methods.layers import NORMS, PretrainedMethod, block_linears, body_layers
from methods.settings import Count, Probability, Settings, one_of

RELEASED_START = 1e-3
"""Weights and biases of the released connections start at U(-1e-3, 1e-3)."""


class GroupedConnection(nn.Module):
    """drop_path(R(W x) + b): W block-diagonal with g blocks; R interleaves the groups' outputs, or is the identity.

    x: [..., inputs]; W is held as its blocks [g, outputs / g, inputs / g]. W and b are zero at the start.
    """

    stateless = True

    def __init__(self, inputs: int, outputs: int, groups: int, drop_path: float, interleaved: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(groups, outputs // groups, inputs // groups))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.drop_path, self.interleaved = DropPath(drop_path), interleaved

    def forward(self, x: Tensor) -> Tensor:
        order = "og" if self.interleaved else "go"
        y = torch.einsum(f"...gi,goi->...{order}", x.unflatten(-1, (self.weight.shape[0], -1)), self.weight)
        out: Tensor = self.drop_path(y.flatten(-2) + self.bias)
        return out

    def dense(self) -> Tensor:
        """R W as one matrix [outputs, inputs]."""
        matrix: Tensor = torch.block_diag(*self.weight)
        if self.interleaved:
            matrix = matrix.unflatten(0, self.weight.shape[:2]).transpose(0, 1).flatten(0, 1)
        return matrix


@torch.no_grad()
def fold_all(plugged: list[tuple[Any, GroupedConnection]]) -> None:
    """(W_0 + R W) x + (b_0 + b): give each layer its connection's weights, and drop the connection."""
    if any(sum(map(len, layer.slots.values())) != 1 for layer, _ in plugged):
        raise MethodError("'consolidator' merges only where no other method is plugged into the same layer")
    for layer, connection in plugged:
        layer.weight.add_(connection.dense())
        layer.bias.add_(connection.bias)
        unplug_layer(layer)


class Consolidator(PretrainedMethod):
    """d_in*d_out/g + d_out parameters for each linear layer of a block: 304,128 on ViT-B with g = 384.

    The paper's outputs are interleaved. The authors' runs interleave nothing (their code has a shuffle, of the inputs,
    that no script turns on), train all norms and the blocks' biases too, and start at U(-1e-3, 1e-3), so not at the
    pretrained function: the variant `released`, 425,472 parameters on ViT-B.
    """

    name = "consolidator"
    title = "Consolidator"
    paper = "Hao et al., Consolidator: Mergeable Adapter with Grouped Connections, ICLR 2023, arXiv 2305.00603"
    family = "reparameterisation"
    composition_order = 25
    recipe = {"lr": 2e-3}
    mergeable = True
    search_space = {**Method.search_space, "drop_path": (0.0, 0.2, 0.5, 0.8)}

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        groups: Count | None = None
        """Number g of groups, a divisor of every layer's inputs and outputs; None is half the block's width, the 384 of
        ViT-B. It stays None where the blocks differ in width."""

        drop_path: Probability = 0.0
        """Probability of leaving out a connection for a sample, the paper's way to enlarge its capacity; beside Swin's
        attention layers, which see windows, for a window. The released scripts choose it per task from 0 to 0.8."""

        variant: Annotated[str, one_of("paper", "released")] = "paper"
        """`paper`, or `released`: as the authors' scripts run it."""

    config: Config

    def starts_at_identity(self) -> bool:
        return self.config.variant == "paper"

    def resolve(self, backbone: nn.Module) -> Config:
        return replace(self.config, groups=the_one(groups for _, groups in self.layers(backbone)))

    def layers(self, backbone: nn.Module) -> list[tuple[Any, int]]:
        """Every linear layer of every block with its number of groups. Raises `MethodError` if that does not divide."""
        result = []
        for block in blocks(backbone):
            for _, layer in block_linears(block):
                groups = width(block) // 2 if self.config.groups is None else self.config.groups
                fits = layer.in_features % groups == 0 and layer.out_features % groups == 0
                check(fits, "groups", groups, f"a divisor of {layer.in_features} and {layer.out_features}")
                result.append((layer, groups))
        return result

    def parameters(self, backbone: nn.Module) -> list[nn.Parameter]:
        """Of the variant `released`: norms, and biases of the blocks' linear layers."""
        if self.config.variant != "released":
            return []
        norms = [p for norm in body_layers(backbone, NORMS) for p in norm.parameters()]
        return norms + [layer.bias for layer, _ in self.layers(backbone) if layer.bias is not None]

    def expected_parameters(self, backbone: nn.Module) -> int:
        connections = sum(m.in_features * m.out_features // g + m.out_features for m, g in self.layers(backbone))
        return int(connections) + super().expected_parameters(backbone)

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        super().attach(backbone, context)
        c, plugged = self.config, []
        for layer, groups in self.layers(backbone):
            sizes = layer.in_features, layer.out_features, groups
            connection = GroupedConnection(*sizes, c.drop_path, interleaved=c.variant != "released")
            if c.variant == "released":
                for parameter in connection.parameters():
                    nn.init.uniform_(parameter, -RELEASED_START, RELEASED_START, generator=context.generator)
            plug_layer(layer, "parallel", connection)
            plugged.append((layer, connection))
        foldable = all(layer.bias is not None for layer, _ in plugged)
        return Attachment(merge=(lambda: fold_all(plugged)) if foldable else None)
