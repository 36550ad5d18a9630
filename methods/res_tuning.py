"""Res-Tuning-Bypass: a path of bottlenecks beside the frozen backbone, whose end the head reads."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Attachment, Context, Method
from methods.blocks import blocks, plug, require_served, width
from methods.bottleneck import SequentialBottleneck, bottleneck_parameters
from methods.settings import Count, Settings
from methods.tape import Tape


class EnterBlock(nn.Module):
    """Gives the block its stream, without gradient, and puts the bypass on the tape.

    Between blocks the two lie behind each other in the batch, so that gradient checkpointing, which runs a block again,
    meets the right ones, and what stands between stages does to both what it does to one. The bypass starts as the
    stream that the `first` block is given.
    """

    def __init__(self, tape: Tape, first: bool) -> None:
        super().__init__()
        self.tape, self.first = tape, first

    def forward(self, x: Tensor) -> Tensor:
        x, bypass = (x, x) if self.first else x.chunk(2)
        self.tape.features[0] = bypass.detach() if self.first else bypass
        return x.detach()


class LeaveBlock(nn.Module):
    """b <- T_lateral(x) + T_vertical(b), x being the block's output without gradient. Returns both streams, and of the
    `last` block the bypass alone."""

    def __init__(self, tape: Tape, lateral: nn.Module, vertical: nn.Module, last: bool) -> None:
        super().__init__()
        self.tape, self.lateral, self.vertical, self.last = tape, lateral, vertical, last

    def forward(self, x: Tensor) -> Tensor:
        (bypass,) = self.tape.take()
        x = x.detach()
        out: Tensor = self.lateral(x) + self.vertical(bypass)
        return out if self.last else torch.cat([x, out.to(x.dtype)])


class ResTuning(Method):
    """b_0 is the first block's input, b_{i+1} = T(output of block i) + T(b_i), each T(z) = z + V GELU(U z + u) + v a
    bottleneck of its own, and the last b takes the place of the last block's output: 2 * (2 * k * d + k + d) parameters
    per block of width d, 1,198,848 on ViT-B, k = 32. No gradient reaches the backbone's blocks.

    This is the bypass of the authors' library with the settings of its ViT example; which tuners and sizes the paper's
    VTAB rows have is not released. With T(z) = z it is the sum of the input and all blocks' outputs, which grows with
    depth. Where the width changes between stages, the bypass passes the frozen layers between them, as the stream does.
    """

    name = "res_tuning"
    title = "Res-Tuning-Bypass"
    paper = "Jiang et al., Res-Tuning, NeurIPS 2023, arXiv 2310.19859"
    family = "adapter"
    recipe = {"lr": 1e-3}
    search_space = {**Method.search_space, "bottleneck": (8, 16, 32)}
    identity_at_start = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        bottleneck: Count = 32
        """Hidden units k of the bottlenecks; 32 in the library's example."""

    config: Config

    def expected_parameters(self, backbone: nn.Module) -> int:
        widths = [width(block) for block in blocks(require_served(self, backbone))]
        return sum(2 * bottleneck_parameters(d, self.config.bottleneck) for d in widths)

    def tuner(self, d: int, generator: torch.Generator) -> SequentialBottleneck:
        """A new bottleneck: weights Xavier-uniform, biases N(0, 1e-6)."""
        k = self.config.bottleneck
        down, up = (nn.utils.skip_init(nn.Linear, *sizes) for sizes in ((d, k), (k, d)))
        for layer in (down, up):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.normal_(layer.bias, std=1e-6, generator=generator)
        return SequentialBottleneck(down, up, nn.GELU())

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        all_blocks: list[Any] = blocks(require_served(self, backbone))
        for block in all_blocks:
            tape, generator = Tape(), context.generator
            lateral, vertical = (self.tuner(width(block), generator) for _ in range(2))
            plug(block, "input", EnterBlock(tape, block is all_blocks[0]))
            plug(block, "output", LeaveBlock(tape, lateral, vertical, block is all_blocks[-1]))
        return Attachment()
