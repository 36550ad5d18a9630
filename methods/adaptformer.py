"""AdaptFormer: a bottleneck beside the MLP of every block."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from methods.base import Attachment, Context, Method, check
from methods.blocks import blocks, new_linear, plug, width


class ParallelAdapter(nn.Module):
    """s * W_up(dropout(ReLU(W_down x))), eq. 1-2 of the paper; x: [..., channels]."""

    def __init__(self, down: nn.Linear, up: nn.Linear, scale: float, dropout: float) -> None:
        super().__init__()
        self.down, self.up, self.scale = down, up, scale
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.up(self.dropout(self.down(x).relu()))


class AdaptFormer(Method):
    """Adds 2*d*h + h + d parameters per block (d channels, bottleneck h)."""

    name = "adaptformer"
    title = "AdaptFormer"
    paper = "Chen et al., AdaptFormer, NeurIPS 2022, arXiv 2205.13535"
    family = "adapter"
    recipe = {"lr": 5e-3}

    @dataclass(frozen=True, kw_only=True)
    class Config:
        bottleneck: int = 8
        """Width h of the bottleneck; 8 in VTAB-1K comparisons, 64 in the paper."""

        scale: float = 0.1
        """Factor s on the adapter's output (section 3.2)."""

        dropout: float = 0.1
        """Dropout inside the bottleneck."""

        def __post_init__(self) -> None:
            check(self.bottleneck >= 1, "bottleneck", self.bottleneck, "at least 1")
            check(self.scale > 0, "scale", self.scale, "positive")
            check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")

    def expected_parameters(self, backbone: nn.Module) -> int:
        h = self.config.bottleneck
        return sum(2 * width(b) * h + h + width(b) for b in blocks(backbone))

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        c = self.config
        for block in blocks(backbone):
            d = width(block)
            down = new_linear(d, c.bottleneck, context.generator, std=d**-0.5)
            up = new_linear(c.bottleneck, d, context.generator, std=0)
            plug(block, "mlp_parallel", ParallelAdapter(down, up, c.scale, c.dropout))
        return Attachment()
