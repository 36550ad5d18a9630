"""RepAdapter: linear adapters before attention and MLP that fold into the layers after them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Attachment, Context, Method, MethodError, check
from methods.blocks import blocks, new_linear, pads, plug, unplug, width

SITES = (("attention_input", "attn", "qkv"), ("mlp_input", "mlp", "fc1"))
"""Slot of each adapter, and the linear layer after it that takes it in when merging."""


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


class RepAdapter(Method):
    """Two linear adapters per block, each d*h + h (down) + d*h/g + d (grouped up): 239,808 parameters on ViT-B with
    h = 8 and g = 2. The paper's 0.22M are the weights alone, 221,184."""

    name = "repadapter"
    title = "RepAdapter"
    paper = "Luo et al., Towards Efficient Visual Adaption via Structural Re-parameterization, arXiv 2302.08106"
    family = "adapter"
    composition_order = 39
    recipe = {"lr": 5e-3}
    mergeable = True
    search_space = {**Method.search_space, "scale": (0.1, 1.0, 10.0)}

    @dataclass(frozen=True, kw_only=True)
    class Config:
        bottleneck: int = 8
        """Width h of the bottleneck."""

        groups: int = 2
        """Number g of groups of the up-projection; it must divide the bottleneck and the width of every block."""

        scale: float = 1.0
        """Factor s on the update; the released scripts search 0.1, 0.5, 1, 5, 10 per task."""

        dropout: float = 0.1
        """Dropout inside the bottleneck."""

        def __post_init__(self) -> None:
            check(self.bottleneck >= 1, "bottleneck", self.bottleneck, "at least 1")
            check(self.groups >= 1, "groups", self.groups, "at least 1")
            check(self.bottleneck % self.groups == 0, "groups", self.groups, f"a divisor of {self.bottleneck}")
            check(self.scale > 0, "scale", self.scale, "positive")
            check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")

    def expected_parameters(self, backbone: nn.Module) -> int:
        h, g = self.config.bottleneck, self.config.groups
        for block in blocks(backbone):
            check(width(block) % g == 0, "groups", g, f"a divisor of the blocks' width {width(block)}")
        return sum(2 * (width(b) * h + h + width(b) * (h // g) + width(b)) for b in blocks(backbone))

    def adapter(self, block: Any, context: Context) -> GroupedLinearAdapter:
        """A new adapter with Xavier down-projection and zero up-projection."""
        c, d = self.config, width(block)
        down = new_linear(d, c.bottleneck, context.generator, std=0)
        with torch.no_grad():
            nn.init.xavier_uniform_(down.weight, generator=context.generator)
        return GroupedLinearAdapter(down, c.groups, c.scale, c.dropout)

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        self.expected_parameters(backbone)  # refuses groups that do not fit
        adapted = [(block, *site, self.adapter(block, context)) for block in blocks(backbone) for site in SITES]
        for block, slot, _, _, adapter in adapted:
            plug(block, slot, adapter)

        def merge() -> None:
            layers = [getattr(getattr(block, part), name) for block, _, part, name, _ in adapted]
            if any(type(layer) is not nn.Linear for layer in layers):
                raise MethodError("'repadapter' merges into plain linear layers: merge what changes them first")
            for (block, slot, _, _, adapter), layer in zip(adapted, layers, strict=True):
                fold(adapter, layer)
                unplug(block, slot, adapter)

        behind = [getattr(getattr(block, part), name, None) for block, _, part, name, _ in adapted]
        foldable = all(isinstance(layer, nn.Linear) and layer.bias is not None for layer in behind)
        exact = foldable and not any(pads(block) for block, *_ in adapted)
        return Attachment(merge=merge if exact else None)
