"""Partial fine-tuning: the last blocks are trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from methods.architectures import architecture_of
from methods.base import Attachment, Context, Method, check
from methods.blocks import blocks


class Partial(Method):
    """Trains the last k blocks and the final norm after them: k * (12 d^2 + 13 d) + 2 d for a ViT.

    Swin's patch merging layers lie between stages, belong to no block and stay frozen.
    """

    name = "partial"
    title = "Partial"
    paper = "baseline of Jia et al., Visual Prompt Tuning, ECCV 2022, arXiv 2203.12119"
    family = "selective"
    recipe = {"lr": 1e-3}
    search_space = {"lr": (5e-4, 1e-3, 2e-3), "weight_decay": (1e-4, 1e-2), "blocks": (1, 2, 4)}

    @dataclass(frozen=True, kw_only=True)
    class Config:
        blocks: int = 1
        """Number k of trained blocks, counted from the output; 1 in VPT's tables."""

        def __post_init__(self) -> None:
            check(self.blocks >= 1, "blocks", self.blocks, "at least 1")

    def parts(self, backbone: nn.Module) -> list[nn.Module]:
        """The last k blocks and the norms between them and the head."""
        found = blocks(backbone)
        k = self.config.blocks
        check(k <= len(found), "blocks", k, f"at most the backbone's number of blocks, {len(found)}")
        return [*found[-k:], *architecture_of(backbone).final_norms(backbone)]

    def expected_parameters(self, backbone: nn.Module) -> int:
        return sum(p.numel() for part in self.parts(backbone) for p in part.parameters())

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        for part in self.parts(backbone):
            part.requires_grad_(True)
        return Attachment()
