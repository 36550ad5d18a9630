"""RepAdapter: linear adapters before attention and MLP that fold into the layers after them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.architectures import architecture_of
from methods.base import Attachment, Context, Method, MethodError, check
from methods.blocks import blocks, new_linear, pads, unplug
from methods.bottleneck import AdapterMethod, Place
from methods.settings import Count, Positive, Probability, Settings

LAYERS = {"attention_input": "qkv", "mlp_input": "fc1"}
"""Slot of each adapter to the linear layer after it, which takes it in when merging."""


class GroupedLinearAdapter(nn.Module):
    """x + s * (W_up dropout(W_down x + b_down) + b_up), W_up block-diagonal in `groups` blocks.

    x: [..., d]; W_down: [h, d]; W_up is held as its blocks [groups, d / groups, h / groups].
    """

    stateless = True

    def __init__(self, down: nn.Linear, groups: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down, self.scale = down, scale
        h, d = down.weight.shape
        self.up = nn.Parameter(torch.zeros(groups, d // groups, h // groups))
        self.bias = nn.Parameter(torch.zeros(d))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(self.down(x)).unflatten(-1, (self.up.shape[0], -1))
        update = torch.einsum("...gi,goi->...go", h, self.up).flatten(-2)
        return x + self.scale * (update + self.bias)

    def as_affine(self) -> tuple[Tensor, Tensor]:
        """M [d, d] and c [d], float64, with forward(x) = M x + c in eval mode."""
        up = torch.block_diag(*self.up.double())
        down, bias = self.down.weight.double(), self.down.bias.double()
        identity = torch.eye(len(up), dtype=up.dtype, device=up.device)
        return identity + self.scale * up @ down, self.scale * (up @ bias + self.bias.double())


@torch.no_grad()
def fold(adapter: GroupedLinearAdapter, layer: nn.Linear) -> None:
    """W (M x + c) + b = (W M) x + (W c + b): let `layer` do what `adapter` in front of it did."""
    matrix, shift = adapter.as_affine()
    weight = layer.weight.double()
    layer.bias.copy_(weight @ shift + layer.bias)
    layer.weight.copy_(weight @ matrix)


class RepAdapter(AdapterMethod):
    """Two linear adapters per block, each d*h + h (down) + d*h/g + d (grouped up): 239,808 parameters on ViT-B with
    h = 8 and g = 2. The paper's 0.22M are the weights alone, 221,184."""

    name = "repadapter"
    title = "RepAdapter"
    paper = "Luo et al., Towards Efficient Visual Adaption via Structural Re-parameterization, arXiv 2302.08106"
    composition_order = 39
    recipe = {"lr": 5e-3}
    mergeable = True
    needs = frozenset({"attention"})
    search_space = {**Method.search_space, "scale": (0.1, 1.0, 10.0)}
    slots = tuple(LAYERS)

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        bottleneck: Count = 8
        """Width h of the bottleneck."""

        groups: Count = 2
        """Number g of groups of the up-projection; it must divide the bottleneck and the width of every block."""

        scale: Positive = 1.0
        """Factor s on the update; the released scripts search 0.1, 0.5, 1, 5, 10 per task."""

        dropout: Probability = 0.1
        """Dropout inside the bottleneck."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check(self.bottleneck % self.groups == 0, "groups", self.groups, f"a divisor of {self.bottleneck}")

    config: Config

    def adapter_parameters(self, d: int) -> int:
        h, g = self.config.bottleneck, self.config.groups
        check(d % g == 0, "groups", g, f"a divisor of the blocks' width {d}")
        return d * h + h + d * (h // g) + d

    def adapter(self, place: Place, generator: torch.Generator) -> GroupedLinearAdapter:
        """A new adapter with Xavier down-projection and zero up-projection."""
        c, d = self.config, place.d
        down = new_linear(d, c.bottleneck, generator, std=0)
        nn.init.xavier_uniform_(down.weight, generator=generator)
        return GroupedLinearAdapter(down, c.groups, c.scale, c.dropout)

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        super().attach(backbone, context)
        plugged = [(b, slot, b.slots[slot][-1], name) for b in blocks(backbone) for slot, name in LAYERS.items()]

        def following() -> list[tuple[Any, ...]]:
            return [architecture_of(block).linears(block).get(name, (None,)) for block, *_, name in plugged]

        def merge() -> None:
            if any(type(layer) is not nn.Linear for layers in following() for layer in layers):
                raise MethodError("'repadapter' merges into plain linear layers: merge what changes them first")
            for (block, slot, adapter, _), layers in zip(plugged, following(), strict=True):
                for layer in layers:
                    fold(adapter, layer)
                unplug(block, slot, adapter)

        layers = [layer for layers in following() for layer in layers]
        foldable = all(isinstance(layer, nn.Linear) and layer.bias is not None for layer in layers)
        exact = foldable and not any(map(pads, blocks(backbone)))
        return Attachment(merge=merge if exact else None)
