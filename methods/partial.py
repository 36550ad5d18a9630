"""Partial fine-tuning: the last blocks are trained."""

from dataclasses import dataclass

from torch import nn

from methods.architectures import architecture_of
from methods.base import check
from methods.blocks import blocks
from methods.layers import PretrainedMethod
from methods.settings import Count, Settings


class Partial(PretrainedMethod):
    """Trains the last k blocks and the final norm after them: k * (12 d^2 + 13 d) + 2 d for a ViT.

    Swin's patch merging layers lie between stages, belong to no block and stay frozen.
    """

    name = "partial"
    title = "Partial"
    paper = "baseline of Jia et al., Visual Prompt Tuning, ECCV 2022, arXiv 2203.12119"
    recipe = {"lr": 1e-3}
    search_space = {"lr": (5e-4, 1e-3, 2e-3), "weight_decay": (1e-4, 1e-2), "blocks": (1, 2, 4)}

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        blocks: Count = 1
        """Number k of trained blocks, counted from the output; 1 in VPT's tables."""

    def parameters(self, backbone: nn.Module) -> list[nn.Parameter]:
        all_blocks, k = blocks(backbone), self.config.blocks
        check(k <= len(all_blocks), "blocks", k, f"at most the backbone's number of blocks, {len(all_blocks)}")
        parts = [*all_blocks[-k:], *architecture_of(backbone).final_norms(backbone)]
        return [p for part in parts for p in part.parameters()]
