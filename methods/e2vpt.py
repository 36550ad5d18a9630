"""E2VPT: prompts at every block, further ones as keys and values, and masks by which the least important are cut."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from methods.base import Attachment, Context, Method, check
from methods.blocks import blocks, require_served, width
from methods.layers import draw_uniform
from methods.prefix_tuning import Prefix, plug_prefixes
from methods.prompt_masks import PIECES, Masks, PrunableMasks, Pruning
from methods.settings import Count, Limit, Probability, least_share, one_of
from methods.vpt import InsertPrompts, PromptConfig, VPTDeep

INSIDE = Limit(requirement="between 0 and 1", holds=lambda share: 0 < share < 1)


class MaskedPrompts(InsertPrompts):
    """Prompts times their masks, which belong to all blocks and are registered where the module `owns` them."""

    def __init__(self, prompts: Tensor, prefix: int, dropout: float, masks: Masks, owns: bool) -> None:
        super().__init__(prompts, prefix, dropout)
        self.shared = (masks,)  # a tuple keeps them from being registered in every block
        if owns:
            self.masks = masks

    def form(self, prompts: Tensor) -> Tensor:
        return prompts * self.shared[0].factors(prompts.shape[-1])


class E2VPT(VPTDeep):
    """P prompts m[t] * M[t, piece of c] * p[t, c] enter every block as in VPT-Deep, and n learned vectors of every head
    stand in front of the keys and of the values of the image: L * d * (P + n) + 17 * P parameters, masks m and M
    included (184,490 on ViT-B/16, P = n = 10), L * d * n more if keys and values are not shared.

    With `pruned_tokens` or `pruned_pieces`, the gradients of the masks are summed up to the share `prune_at` of the
    training; then the prompts and the pieces of each prompt of the smallest sums of absolute gradients are cut for
    good, all prompts go back to the values that they started from (rewinding), and the masks of what is kept are 1 from
    then on. The counts above are those before the cut. With neither, the masks are trained to the end.

    The variant `released` does two things as the authors' code does: the lowest signed sums are cut, so the most
    negative first, and pieces are interleaved channels, where the paper has segments.

    What one training cannot express: the release scores after a whole training and takes optimiser steps on the way,
    then trains anew from new random prompts, with optimiser and schedule started anew, for each of 9 * 8 pairs of token
    and piece counts, and takes the pair that is best on validation data. Here the scores are gathered while training,
    and the optimiser's moments and the schedule go on after the cut.
    """

    name = "e2vpt"
    title = "E2VPT"
    paper = (
        "Han et al., E2VPT: An Effective and Efficient Approach for Visual Prompt Tuning, ICCV 2023, arXiv 2307.13770"
    )
    composition_order: ClassVar[int | None] = None
    recipe = {"lr": 5e-3}
    search_space = {
        **Method.search_space,
        "tokens": (1, 5, 10, 20, 32, 100),
        "key_values": (1, 5, 10, 20),
        "pruned_tokens": (0.0, 0.5),
        "pruned_pieces": (0.0, 0.5),
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(PromptConfig):
        dropout: Probability = 0.1
        """Dropout on the prompts that enter blocks, before the masks; 0.1 in the release."""

        key_values: Count = 10
        """Number n of learned keys and values per head."""

        shared: bool = True
        """Whether the learned keys are the learned values, too, as in the release's defaults."""

        pruned_tokens: Probability = 0.0
        """Share of the P prompts that is cut, rounded down to a number; the release tries 0.1, 0.2, ..., 0.9."""

        pruned_pieces: Probability = 0.0
        """Share of the 16 pieces of each prompt that is cut, rounded down to a number; the release tries 0.1, 0.2, ...,
        0.9, but 12 pieces at most."""

        prune_at: Annotated[float, INSIDE] = 0.5
        """Share of the training's steps after which it is pruned."""

        variant: Annotated[str, one_of("paper", "released")] = "paper"
        """`paper`: absolute gradients rank, pieces are segments. `released`: signed gradients rank, pieces are
        interleaved."""

    config: Config

    def cut(self) -> tuple[int, int]:
        """How many prompts, and how many pieces of each, are cut."""
        return int(self.config.pruned_tokens * self.config.tokens), int(self.config.pruned_pieces * PIECES)

    def resolve(self, backbone: nn.Module) -> Config:
        """The smallest shares, to three digits, that cut as much; and the default `prune_at` where nothing is cut."""
        c = self.config
        return replace(
            c,
            pruned_tokens=least_share(c.pruned_tokens, c.tokens),
            pruned_pieces=least_share(c.pruned_pieces, PIECES),
            prune_at=c.prune_at if any(self.cut()) else type(c).prune_at,
        )

    def expected_parameters(self, backbone: nn.Module) -> int:
        c, widths = self.config, [width(block) for block in blocks(require_served(self, backbone))]
        for d in widths:
            check(d % PIECES == 0, "width", d, f"a multiple of {PIECES} for {self.name}: prompts are cut into pieces")
        key_values = c.key_values * (1 if c.shared else 2)
        return sum(d * (c.tokens + key_values) for d in widths) + c.tokens * (1 + PIECES)

    def insertions(self, starts: list[Tensor], prefix: int) -> list[InsertPrompts]:
        c = self.config
        masks = (PrunableMasks if any(self.cut()) else Masks)(c.tokens, c.variant == "released")
        return [MaskedPrompts(start, prefix, c.dropout, masks, i == 0) for i, start in enumerate(starts)]

    def prefix(self, generator: torch.Generator, heads: int, channels: int) -> Prefix:
        """New keys and values, uniform between -b and b, b^2 = 6 / (n * channels per head): 0.097 on ViT-B, n = 10."""
        c = self.config
        bound = (6 / (c.key_values * channels)) ** 0.5
        count = 1 if c.shared else 2
        drawn = [draw_uniform(generator, bound, heads, c.key_values, channels) for _ in range(count)]
        return Prefix(drawn[0], None if c.shared else drawn[1], dropout=0.0)

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        self.expected_parameters(backbone)  # refuses what does not fit
        prefixes = plug_prefixes(self, backbone, partial(self.prefix, context.generator))
        super().attach(backbone, context)
        insertions: list[Any] = [block.slots["input"][-1] for block in blocks(backbone)]
        masks = insertions[0].masks
        if not isinstance(masks, PrunableMasks):
            return Attachment()
        prompts = [insertion.prompts for insertion in insertions] + [p for each in prefixes for p in each.parameters()]
        step = max(1, int(self.config.prune_at * context.total_steps))
        pruning = Pruning(masks, prompts, step, self.cut(), self.config.variant == "released")
        return Attachment(
            info=dict(zip(("tokens_cut", "pieces_cut", "cut_after_step"), (*self.cut(), step), strict=True)),
            after_step=pruning.after_step,
            state=pruning.state,
            load_state=pruning.load_state,
        )
