"""HST: a convolutional side network of several resolutions, fed by one learned token and the patches of every block."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from methods.architectures import architecture_of
from methods.base import Attachment, Context, Method, MethodError, check
from methods.blocks import blocks, new_linear, plug, require_served, width
from methods.hst_network import SideBlock, SideNetwork, Stage, convolution
from methods.layers import change_layer, draw_uniform
from methods.settings import Probability, Settings
from methods.tape import Tape
from methods.vpt import InsertPrompts, RemovePrompts

IMAGES = 0
"""The images' number on the tape; those of the blocks follow."""


class KeepImages:
    """Mixed into the layer that takes the images: they are put on the tape, which opens it."""

    tape: Tape

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, 3, rows, columns]."""
        self.tape.features[IMAGES] = x
        y: Tensor = super().forward(x)  # type: ignore[misc]
        return y


class KeepTokens(nn.Module):
    """Put what follows the `prefix` first tokens, the block's own token and the patches, on the tape while it is open;
    x: [batch, tokens, d] passes unchanged.

    Gradient checkpointing runs the block again when the side network has taken the tape and thereby closed it.
    """

    def __init__(self, tape: Tape, number: int, prefix: int) -> None:
        super().__init__()
        self.tape, self.number, self.prefix = tape, number, prefix

    def forward(self, x: Tensor) -> Tensor:
        if IMAGES in self.tape.features:
            self.tape.features[self.number] = x[:, self.prefix :]
        return x


class FromSide:
    """Mixed into the dropout before the classifier: the classifier reads the side network."""

    side: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, d], not read."""
        y: Tensor = super().forward(self.side(x))  # type: ignore[misc]
        return y


class HST(Method):
    """Learned tokens, the norms of all blocks and a side network: 764,840 parameters on ViT-B/16,

    5*L*d + sum over stages of [d*D + 3*D + n * (12*D*D + 15*D)] + 3*9*D_1 + 2*D_1 + 4*D_1^2 + 3*D_1
    + sum over the later stages of [9*D_before*D + 3*D],

    for n blocks in a stage of width D. The first map has a quarter of the images' rows and columns, and each later one
    half of those before it. The classifier reads the mean of the last map, D numbers; the backbone's own pooled
    features are not used. The blocks are shared out over the stages evenly and in order, where there are fewer blocks
    than stages the last stages fall away.

    The gradient goes through the backbone. In training, batch norms use the batch's statistics, and the stored ones for
    the last norm of a batch of one image.
    """

    name = "hst"
    title = "HST"
    paper = "Lin et al., Hierarchical Side-Tuning for Vision Transformers, 2023, arXiv 2310.05393"
    family = "adapter"
    recipe = {"lr": 1e-3}
    search_space = {
        "lr": (1e-3, 5e-3, 1e-2),
        "weight_decay": (1e-4, 5e-4, 5e-2),
        "side_drop_path": (0.0, 0.1, 0.2),
    }
    serves = frozenset({"vit", "eva", "beit"})
    needs = frozenset({"sequence", "attention"})
    identity_at_start = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        widths: tuple[int, ...] = (32, 48, 64, 72)
        """Width D of each stage."""

        heads: tuple[int, ...] = (2, 4, 8, 12)
        """Heads of the cross attention of each stage."""

        side_drop_path: Probability = 0.1
        """Probability of leaving a branch of a side block out for an image; the release has 0, 0.1 or 0.2 per task,
        there and in the backbone, whose is the recipe's."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check(min(self.widths, default=0) >= 1, "widths", self.widths, "one width or more, each at least 1")
            fits = len(self.heads) == len(self.widths) and min(self.heads) >= 1
            fits = fits and not any(w % h for w, h in zip(self.widths, self.heads, strict=True))
            check(fits, "heads", self.heads, f"a divisor of each of widths={self.widths}")

    config: Config

    def shares(self, depth: int) -> list[int]:
        """Number of blocks of each stage."""
        count = min(len(self.config.widths), depth)
        starts = [-(-stage * depth // count) for stage in range(count + 1)]
        return [stop - start for start, stop in pairwise(starts)]

    def expected_parameters(self, backbone: nn.Module) -> int:
        vit_blocks = blocks(require_served(self, backbone))
        images = image_layer(backbone).in_channels
        total: int = sum(
            p.numel() for b in vit_blocks for norm in architecture_of(b).norms(b) for p in norm.parameters()
        )
        total += sum(width(block) for block in vit_blocks)
        d, before = width(vit_blocks[0]), 0
        for size, count in zip(self.config.widths, self.shares(len(vit_blocks)), strict=False):
            stem = 9 * before * size + size if before else 9 * images * size + 2 * size + 4 * size * size + size
            total += stem + 2 * size + d * size + size + count * (12 * size * size + 15 * size) + 2 * size
            before = size
        return total

    def stage(self, number: int, count: int, vit: nn.Module, generator: torch.Generator) -> Stage:
        """A new stage of so many blocks."""
        c, d = self.config, width(blocks(vit)[0])
        size, heads = c.widths[number], c.heads[number]
        if number == 0:
            first = convolution(image_layer(vit).in_channels, size, 3, generator, bias=False)
            second = convolution(size, size, 2, generator)
            embed: nn.Module = nn.Sequential(first, nn.BatchNorm2d(size), nn.ReLU(), second)
        else:
            embed = convolution(c.widths[number - 1], size, 3, generator)
        side_blocks = [SideBlock(size, heads, c.side_drop_path, generator) for _ in range(count)]
        return Stage(embed, new_linear(d, size, generator), side_blocks, architecture_of(vit).token_grid(vit))

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        self.expected_parameters(backbone)  # refuses what does not fit
        architecture, vit_blocks, g = architecture_of(backbone), blocks(backbone), context.generator
        tape, prefix, d = Tape(), architecture.prefix_tokens(backbone), width(vit_blocks[0])
        for number, block in enumerate(vit_blocks, start=IMAGES + 1):
            for norm in architecture.norms(block):
                norm.requires_grad_(True)
            token = draw_uniform(g, math.sqrt(3 / d), 1, d)
            plug(block, "input", InsertPrompts(token, prefix, dropout=0.0))
            plug(block, "output", KeepTokens(tape, number, prefix))
            plug(block, "output", RemovePrompts(1, prefix))
            architecture.add_prefix_tokens(block, 1)
        stages = [self.stage(i, count, backbone, g) for i, count in enumerate(self.shares(len(vit_blocks)))]
        side = SideNetwork(tape, stages).to(next(backbone.parameters())).train(backbone.training)
        images = image_layer(backbone)
        change_layer(images, KeepImages)
        images.tape = tape
        owner, name = architecture.head_dropout(backbone)
        last = getattr(owner, name)
        change_layer(last, FromSide)
        last.side = side
        return Attachment(readout="side network, mean of its last map", head_width=self.config.widths[len(stages) - 1])


def image_layer(backbone: nn.Module) -> Any:
    """The convolution that cuts the images into patches. Raises `MethodError` where there is none."""
    architecture = architecture_of(backbone)
    layer = backbone.get_submodule(architecture.first_layer.rpartition(".")[0])
    if not isinstance(layer, nn.Conv2d) or layer.kernel_size[0] != architecture.patch_side(backbone):
        raise MethodError(
            "HST reads the images where a convolution cuts them into patches, which this backbone has not"
        )
    return layer
