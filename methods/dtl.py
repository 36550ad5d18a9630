"""DTL: a compact side network that reads every block's input and is added back after the later blocks."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from methods.architectures import architecture_of
from methods.base import Attachment, Context, Method, check
from methods.blocks import blocks, new_linear, plug, stages, width
from methods.grid import new_convolution, on_grid
from methods.layers import torch_linear
from methods.settings import Count, Positive, Probability, Settings, at_least, least_share, one_of
from methods.tape import Tape


class Extract(nn.Module):
    """h <- h + B A x at a block's entrance. x: [batch, tokens, d] or Swin map, h of the same shape after it
    in dimension 1 unless the block is the `first`; returns x alone.

    The tape holds h until the block's exit. Between blocks h travels after x in one tensor, so that gradient
    checkpointing, which runs a block again, meets the right one.
    """

    def __init__(self, tape: Tape, a: nn.Linear, b: nn.Linear, first: bool) -> None:
        super().__init__()
        self.tape, self.a, self.b, self.first = tape, a, b, first

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            self.tape.features[0] = self.b(self.a(x))
            return x
        x, h = x.chunk(2, dim=1)
        self.tape.features[0] = h + self.b(self.a(x))
        return x


class FeedBack(nn.Module):
    """x <- x + h * sigmoid(beta h) at a block's exit, in DTL+ through a depth-wise convolution, where
    `feeds`; h follows after x in dimension 1 unless the block is the `last`."""

    def __init__(self, tape: Tape, beta: float, feeds: bool, last: bool, grid: tuple[int, int]) -> None:
        super().__init__()
        self.tape, self.beta, self.feeds, self.last, self.grid = tape, beta, feeds, last, grid
        # One convolution serves a stage; a tuple keeps it registered in a single place.
        self.shared: tuple[nn.Conv2d, ...] = ()

    def adapted(self, h: Tensor) -> Tensor:
        """Activated side features; prefix tokens pass the convolution by, as in the released code."""
        active = h * torch.sigmoid(self.beta * h)
        if not self.shared:
            return active
        prefix = 0 if h.dim() == 4 else h.shape[1] - self.grid[0] * self.grid[1]
        return torch.cat([active[:, :prefix], on_grid(self.convolve, active[:, prefix:], self.grid)], dim=1)

    def convolve(self, image: Tensor) -> Tensor:
        """An image [batch, d, rows, columns] of the same size. An even kernel looks one pixel further right and down
        than left and up: the row and column that its padding adds in front fall away."""
        out: Tensor = self.shared[0](image)[:, :, -image.shape[2] :, -image.shape[3] :]
        return out

    def forward(self, x: Tensor) -> Tensor:
        (h,) = self.tape.take()
        if self.feeds:
            x = x + self.adapted(h)
        return x if self.last else torch.cat([x, h.to(x.dtype)], dim=1)


class ReadPatches(nn.Module):
    """Every token becomes the mean of those after the `prefix` first ones: whatever the head reads then, it reads that
    mean, normed. x: [batch, tokens, d]."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.prefix :].mean(dim=1, keepdim=True).expand_as(x)


class DTL(Method):
    """A low-rank map of rank r per block, 2*r*d parameters (36,864 on ViT-B, r = 2); DTL+ (`kernel` 3) adds k*k*d
    once (43,776). On Swin, where the width changes, the side features start afresh in every stage.

    The head reads what it reads for all methods; `readout=patches` is what the released ViT code does.
    """

    name = "dtl"
    title = "DTL"
    paper = "Fu et al., DTL: Disentangled Transfer Learning for Visual Recognition, AAAI 2024, arXiv 2312.07856"
    family = "adapter"
    recipe = {"lr": 5e-3}
    search_space = {**Method.search_space, "beta": (1.0, 100.0)}

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        rank: Count = 2
        """Rank r of the maps."""

        start: Probability = 0.5
        """Part of a stage's blocks that only feed the side network; 0.5 is the paper's block 7 of 12."""

        beta: Positive = 100.0
        """Slope of the activation h * sigmoid(beta h)."""

        kernel: Annotated[int, at_least(0)] = 0
        """Size k of the depth-wise convolution of DTL+, 3, 4 or 5 per task in the released scripts; 0 is DTL without
        one."""

        readout: Annotated[str, one_of("backbone", "patches")] = "backbone"
        """What the head reads: `backbone` for the model's own choice, mostly the class token, or `patches` for the norm
        of the mean of the patch tokens, as in the released ViT code; then it does not start at the pretrained
        function."""

    config: Config

    def starts_at_identity(self) -> bool:
        return self.config.readout == "backbone"

    def resolve(self, backbone: nn.Module) -> Config:
        """The smallest `start`, to three digits, with the same blocks in every stage: 0.5 of 12 blocks for 0.55 too."""
        return replace(self.config, start=least_share(self.config.start, *map(len, stages(backbone))))

    def expected_parameters(self, backbone: nn.Module) -> int:
        r, k, readout = self.config.rank, self.config.kernel, self.config.readout
        fits = readout == "backbone" or architecture_of(backbone).sequence
        check(fits, "readout", readout, "'backbone' here: the head reads the mean of the patches anyway")
        maps = sum(2 * r * width(b) for b in blocks(backbone))
        return maps + sum(k * k * width(stage[0]) for stage in stages(backbone))

    def extractor(self, block: Any, tape: Tape, first: bool, context: Context) -> Extract:
        """A new low-rank map, A as torch draws linear layers, B zero."""
        d, r = width(block), self.config.rank
        a = torch_linear(d, r, context.generator)
        return Extract(tape, a, new_linear(r, d, context.generator, std=0, bias=False), first)

    def attach_stage(self, stage: list[Any], grid: tuple[int, int], context: Context) -> None:
        """Lay the side network along blocks of one width."""
        c = self.config
        shared: tuple[nn.Conv2d, ...] = ()
        for number, block in enumerate(stage):
            tape, feeds = Tape(), number >= int(c.start * len(stage))
            feedback = FeedBack(tape, c.beta, feeds, block is stage[-1], grid)
            if feeds and c.kernel and not shared:
                feedback.convolution = new_convolution(
                    width(block), c.kernel, width(block), context.generator, bias=False
                )
                shared = (feedback.convolution,)
            feedback.shared = shared
            plug(block, "input", self.extractor(block, tape, number == 0, context))
            plug(block, "output", feedback)

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        self.expected_parameters(backbone)  # refuses a readout that does not fit
        architecture = architecture_of(backbone)
        for stage in stages(backbone):
            self.attach_stage(stage, architecture.token_grid(backbone), context)
        if self.config.readout == "backbone":
            return Attachment()
        plug(blocks(backbone)[-1], "output", ReadPatches(architecture.prefix_tokens(backbone)))
        return Attachment(readout="mean of the patches")
