"""VAPT: prompts of the first block are learned, those of the later ones computed from the image's own tokens."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from methods.architectures import architecture_of
from methods.base import Attachment, Context, check
from methods.blocks import blocks, new_linear, plug, require_served, width
from methods.bottleneck import SequentialBottleneck
from methods.layers import torch_linear
from methods.settings import Count, Probability
from methods.vpt import PromptConfig, VPTShallow

KERNEL = 2
"""Side of the kernel that patches are summed up by."""


class AdaptPrompts(nn.Module):
    """New prompts in the place of those that a block is given; x: [batch, tokens, channels].

    Normed patches, as a map, pass one kernel that all channels share, without padding; a linear map over the positions
    gives one row per prompt, which passes z + V dropout(relu(U z)). U and V belong to all blocks, and are registered
    where the module `owns` them.
    """

    stateless = True

    def __init__(
        self,
        kernel: Tensor,
        mix: nn.Linear,
        refine: SequentialBottleneck,
        owns: bool,
        prefix: int,
        grid: tuple[int, int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(refine.down.in_features)
        self.kernel, self.mix = nn.Parameter(kernel), mix
        self.dropout = nn.Dropout1d(dropout)  # of whole channels
        self.shared = (refine,)  # a tuple keeps it from being registered in every block
        if owns:
            self.refine = refine
        self.prefix, self.grid = prefix, grid

    def summed_up(self, patches: Tensor) -> Tensor:
        """Patches under the kernel at each of its positions: [batch, channels, positions]."""
        image = patches.unflatten(1, self.grid)
        rows, columns = (side - KERNEL + 1 for side in self.grid)
        shifts = [(i, j) for i in range(KERNEL) for j in range(KERNEL)]
        terms = [self.kernel[i, j] * image[:, i : i + rows, j : j + columns] for i, j in shifts]
        return torch.stack(terms).sum(dim=0).flatten(1, 2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        patches = x[:, self.prefix + self.mix.out_features :]
        rows = self.mix(self.dropout(self.summed_up(self.norm(patches)))).transpose(1, 2)
        return torch.cat([x[:, : self.prefix], self.shared[0](rows).to(x.dtype), patches], dim=1)


class VAPT(VPTShallow):
    """P learned prompts enter block 0; in front of each later block they are overwritten by prompts computed from the
    patches, all zero at the start: P * d + (L - 1) * (2 * d + 4 + (h - 1) * (w - 1) * P + P) + 2 * d * b parameters on
    h x w patches, 55,608 on ViT-B/16 with P = 10 and b = 8.

    The release takes square grids only; its Swin file holds plain VPT.
    """

    name = "vapt"
    title = "VAPT"
    paper = "Le et al., Revisit Visual Prompt Tuning: The Expressiveness of Prompt Experts, ICLR 2026, arXiv 2501.18936"
    composition_order: ClassVar[int | None] = None
    recipe = {"lr": 5e-3}

    @dataclass(frozen=True, kw_only=True)
    class Config(PromptConfig):
        dropout: Probability = 0.1
        """Dropout on the prompts of block 0, of whole channels behind the kernel, and behind the relu; 0.1 in the
        release."""

        bottleneck: Count = 8
        """Hidden units b of the map that all blocks share; 8 in the release."""

    config: Config

    def positions(self, vit: nn.Module) -> int:
        """Number of positions of the kernel. Raises `MethodError` if there is no room for it."""
        rows, columns = architecture_of(vit).token_grid(vit)
        check(min(rows, columns) >= KERNEL, "grid of patches", (rows, columns), f"{KERNEL} x {KERNEL} at least")
        return (rows - KERNEL + 1) * (columns - KERNEL + 1)

    def expected_parameters(self, backbone: nn.Module) -> int:
        c, (first, *later) = self.config, blocks(require_served(self, backbone))
        d, positions = width(first), self.positions(backbone)
        each = 2 * d + KERNEL**2 + (positions + 1) * c.tokens
        return c.tokens * d + len(later) * each + (2 * d * c.bottleneck if later else 0)

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        self.expected_parameters(backbone)  # refuses what does not fit
        super().attach(backbone, context)
        vit: Any = backbone
        c, generator, (first, *later) = self.config, context.generator, blocks(vit)
        architecture, d, positions = architecture_of(vit), width(first), self.positions(vit)
        down, up = torch_linear(d, c.bottleneck, generator), torch_linear(c.bottleneck, d, generator)
        refine = SequentialBottleneck(down, up, nn.ReLU(), dropout=c.dropout)
        for block in later:
            kernel = torch.randn(KERNEL, KERNEL, generator=generator)
            mix = new_linear(positions, c.tokens, generator, std=0)
            prefix, grid = architecture.prefix_tokens(vit), architecture.token_grid(vit)
            plug(block, "input", AdaptPrompts(kernel, mix, refine, block is later[0], prefix, grid, c.dropout))
        return Attachment()
