"""Self-Prompt Tuning: VPT whose prompts start as tokens of the training images."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from methods.architectures import architecture_of
from methods.base import Context, Method
from methods.blocks import blocks, width
from methods.settings import Count
from methods.vpt import PromptConfig, VPTDeep

BATCH = 64
"""Images that are looked at together."""


def _as_tokens(x: Tensor, prefix: int) -> Tensor:
    """What the patches' layer gives, or a block is given, as tokens [images, patches, channels]."""
    return x.flatten(2).transpose(1, 2) if x.dim() == 4 else x[:, prefix:]


@torch.no_grad()
def patch_tokens(vit: Any, images: Tensor, tables: int) -> list[Tensor]:
    """Patch tokens of images [images, 3, H, W], without the tokens in front of them: as the patches' layer gives them,
    without positions, then as each further block is given them. `tables` [images, patches, channels] in all."""
    architecture = architecture_of(vit)
    prefix, found = architecture.prefix_tokens(vit), {}

    def hear(number: int, tokens_before: int, _: nn.Module, inputs: Any, output: Any = None) -> None:
        found[number] = _as_tokens(inputs[0] if output is None else output, tokens_before)

    with ExitStack() as stack:
        layer = vit.get_submodule(architecture.first_layer.rpartition(".")[0])
        stack.callback(layer.register_forward_hook(partial(hear, 0, 0)).remove)
        for number, block in enumerate(blocks(vit)[1:tables], start=1):
            stack.callback(block.register_forward_pre_hook(partial(hear, number, prefix)).remove)
        vit.forward_features(images)
    return [found[number] for number in range(tables)]


def tokens_at(vit: Any, batches: Iterable[tuple[Tensor, Tensor]], rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Rows of each of the tables of `patch_tokens`, counted through all patches of all images in order, on the CPU.

    Images of which no row is asked for do not pass the model.
    """
    grid = architecture_of(vit).token_grid(vit)
    patches, start = grid[0] * grid[1], 0
    taken = [torch.empty(len(each), width(blocks(vit)[0])) for each in rows]
    for images, _ in batches:
        wanted = sorted({row // patches for each in rows for row in each} & set(range(start, start + len(images))))
        if wanted:
            tables = patch_tokens(vit, images[[number - start for number in wanted]], len(rows))
            for table, each, into in zip(tables, rows, taken, strict=True):
                for place, row in enumerate(each):
                    if row // patches in wanted:
                        into[place] = table[wanted.index(row // patches), row % patches]
        start += len(images)
    return taken


class SelfPromptDeep(VPTDeep):
    """P prompts enter every block, as in VPT-Deep: L * P * d parameters (184,320 on ViT-B/16, P = 20). Those of a block
    start as P tokens drawn without replacement from all patches of the training images: of block 0 as the patches'
    layer gives them, without positions, of the others as the block before gives them. Training images that have fewer
    patches than P give some of them again.

    Each training image counts once and without augmentation; the release draws as many images as there are, with
    replacement and with the training's augmentation. Its other starts are left out: means and largest values of windows
    of tokens, and centres of k-means that are computed beforehand. For MAE backbones its head reads the mean of all
    tokens, prompts included; here prompts end with the last block for all.
    """

    name = "self_prompt_deep"
    title = "Self-Prompt-Deep"
    paper = "Wang et al., Revisiting the Power of Prompt for Visual Tuning, ICML 2024, arXiv 2402.02382"
    composition_order: ClassVar[int | None] = None
    recipe = {"lr": 5e-3}
    search_space = {**Method.search_space, "tokens": (5, 10, 20, 50, 100)}

    @dataclass(frozen=True, kw_only=True)
    class Config(PromptConfig):
        tokens: Count = 20
        """Number P of prompts of each block."""

    config: Config

    def starts(self, vit: Any, context: Context) -> list[Tensor]:
        drawn: list[Tensor] = context.remember("prompts", lambda: self.drawn(vit, context))
        return drawn

    def drawn(self, vit: Any, context: Context) -> list[Tensor]:
        """Tokens of the training images for each span."""
        rows, columns = architecture_of(vit).token_grid(vit)
        tokens, patches = self.config.tokens, rows * columns * sum(len(y) for _, y in context.calibration(BATCH))
        chance = random.Random(int(torch.randint(2**62, (), generator=context.generator)))
        places = range(patches * math.ceil(tokens / patches))  # each patch as often as all are needed
        chosen = [[place % patches for place in chance.sample(places, tokens)] for _ in self.spans(vit)]
        return tokens_at(vit, context.calibration(BATCH), chosen)


class SelfPromptShallow(SelfPromptDeep):
    """P prompts enter the first block and travel to the last, as in VPT-Shallow: P * d parameters (76,800 on ViT-B/16,
    P = 100). They start as patches as their layer gives them; the rest is as in the deep form."""

    name = "self_prompt_shallow"
    title = "Self-Prompt-Shallow"
    recipe = {"lr": 1e-2}
    search_space = {**Method.search_space, "tokens": (10, 50, 100, 200)}

    @dataclass(frozen=True, kw_only=True)
    class Config(SelfPromptDeep.Config):
        tokens: Count = 100
        """Number P of prompts."""

    config: Config

    def spans(self, vit: Any) -> list[tuple[Any, Any]]:
        return [(blocks(vit)[0], blocks(vit)[-1])]
