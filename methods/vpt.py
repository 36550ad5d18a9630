"""Visual prompt tuning: learned tokens between the class token and the patch tokens."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from methods.architectures import architecture_of
from methods.base import Attachment, Context, Method
from methods.blocks import blocks, plug, require_served, width
from methods.layers import draw_uniform
from methods.settings import Count, Probability, Settings


def draw_prompts(vit: nn.Module, count: int, generator: torch.Generator) -> Tensor:
    """Prompts [count, d], uniform with Xavier's bound for the patch embedding, as VPT's and VQT's released code draws
    them: between -0.0625 and 0.0625 on ViT-B/16, std 0.036."""
    d, *patch = vit.get_parameter(architecture_of(vit).first_layer).shape
    bound = math.sqrt(6 / (math.prod(patch) + d))
    return draw_uniform(generator, bound, count, d)


class InsertPrompts(nn.Module):
    """Put learned tokens [tokens, channels] after the `prefix` first tokens of x: [batch, tokens, channels]."""

    stateless = True

    def __init__(self, prompts: Tensor, prefix: int, dropout: float) -> None:
        super().__init__()
        self.prompts = nn.Parameter(prompts)
        self.dropout = nn.Dropout(dropout)
        self.prefix = prefix

    def form(self, prompts: Tensor) -> Tensor:
        """What enters of the prompts [images, tokens, channels], or [1, ...] where no dropout tells images apart."""
        return prompts

    def forward(self, x: Tensor) -> Tensor:
        images = len(x) if self.training and self.dropout.p > 0 else 1  # another dropout for each image
        prompts = self.form(self.dropout(self.prompts.expand(images, -1, -1))).to(x.dtype)
        return torch.cat([x[:, : self.prefix], prompts.expand(len(x), -1, -1), x[:, self.prefix :]], dim=1)


class RemovePrompts(nn.Module):
    """Undo `InsertPrompts`: what the block made of the prompts is dropped."""

    stateless = True

    def __init__(self, count: int, prefix: int) -> None:
        super().__init__()
        self.count, self.prefix = count, prefix

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, : self.prefix], x[:, self.prefix + self.count :]], dim=1)


@dataclass(frozen=True, kw_only=True)
class PromptConfig(Settings):
    """Knobs of both forms."""

    tokens: Count = 10
    """Number p of prompts (per block, for deep); the published rows tune it per task."""

    dropout: Probability = 0.0
    """Dropout on the prompts; 0.1 in some of the paper's runs."""


class VPTDeep(Method):
    """New prompts enter every block: depth * p * d parameters (paper, eq. 6-7). They have no position: rotary positions
    do not turn them, and relative position biases are zero for them."""

    name = "vpt_deep"
    title = "VPT-Deep"
    paper = "Jia et al., Visual Prompt Tuning, ECCV 2022, arXiv 2203.12119"
    family = "prompt"
    composition_order: ClassVar[int | None] = 51
    Config = PromptConfig
    config: PromptConfig
    recipe = {"lr": 5e-3}
    search_space = {**Method.search_space, "tokens": (1, 5, 10, 50, 100, 200)}
    needs = frozenset({"sequence"})
    identity_at_start = False

    def spans(self, vit: Any) -> list[tuple[Any, Any]]:
        """First and last of the blocks that the same prompts pass."""
        return [(block, block) for block in blocks(vit)]

    def starts(self, vit: Any, context: Context) -> list[Tensor]:
        """The prompts of each span at the start: [tokens, channels]."""
        return [draw_prompts(vit, self.config.tokens, context.generator) for _ in self.spans(vit)]

    def insertions(self, starts: list[Tensor], prefix: int) -> list[InsertPrompts]:
        """A new module for each span's prompts, which follow the `prefix` first tokens."""
        return [InsertPrompts(start, prefix, self.config.dropout) for start in starts]

    def expected_parameters(self, backbone: nn.Module) -> int:
        return sum(self.config.tokens * width(first) for first, _ in self.spans(require_served(self, backbone)))

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        vit = require_served(self, backbone)
        architecture, all_blocks = architecture_of(vit), blocks(vit)
        insertions = self.insertions(self.starts(vit, context), architecture.prefix_tokens(vit))
        for (first, last), insertion in zip(self.spans(vit), insertions, strict=True):
            count = len(insertion.prompts)
            plug(first, "input", insertion)
            plug(last, "output", RemovePrompts(count, insertion.prefix))
            for block in all_blocks[all_blocks.index(first) : all_blocks.index(last) + 1]:
                architecture.add_prefix_tokens(block, count)
        return Attachment()


class VPTShallow(VPTDeep):
    """Prompts enter the first block and travel to the last: p * d parameters (paper, eq. 4-5)."""

    name = "vpt_shallow"
    title = "VPT-Shallow"
    composition_order: ClassVar[int | None] = 50
    recipe = {"lr": 1e-2}

    def spans(self, vit: Any) -> list[tuple[Any, Any]]:
        return [(blocks(vit)[0], blocks(vit)[-1])]
