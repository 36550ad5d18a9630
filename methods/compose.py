"""Several methods on one backbone, as in NOAH's search space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Attachment, Context, Method, MethodError, check
from methods.blocks import require_vit


def joined_penalty(penalties: list[Callable[[], Tensor]]) -> Callable[[], Tensor] | None:
    """The sum of all penalties, if there are any."""
    return (lambda: torch.stack([penalty() for penalty in penalties]).sum()) if penalties else None


def one_after_the_other(actions: list[Any]) -> Callable[..., None] | None:
    """Calls all actions with the same arguments, if there are any."""

    def run(*arguments: Any) -> None:
        for action in actions:
            action(*arguments)

    return run if actions else None


def merge_all(merges: list[Callable[[], None]]) -> None:
    """Merge every part, last attached first. A part that refuses because another one still sits in the layer that it
    folds into gets its turn after that one. Raises the `MethodError` of a part that refuses to the end."""
    waiting = merges[::-1]
    while waiting:
        refused: list[Callable[[], None]] = []
        for merge in waiting:
            try:
                merge()
            except MethodError:
                if len(refused) == len(waiting) - 1:
                    raise
                refused.append(merge)
        waiting = refused


def load_states(attachments: list[Attachment], states: list[Any]) -> None:
    """Give each part its own state back."""
    for attachment, state in zip(attachments, states, strict=True):
        if attachment.load_state is not None:
            attachment.load_state(state)


class Compose(Method):
    """Attaches `parts` one after the other, each with its default settings; the parameters are the sum of theirs.

    The default is all of NOAH's sub-modules at full size, 543,840 parameters on ViT-B; NOAH itself searches per block
    for a subset (0.43M). It merges if all parts do. Counting assumes that no parameter belongs to
    two parts. With parts that serve Swin it serves Swin, too.
    """

    name = "compose"
    title = "Compose"
    paper = "after Zhang et al., Neural Prompt Search (NOAH), TPAMI 2024, arXiv 2206.04673"
    family = "adapter"
    recipe = {"lr": 5e-3}
    serves = frozenset({"vit"})
    identity_at_start = False

    @dataclass(frozen=True, kw_only=True)
    class Config:
        parts: tuple[str, ...] = ("adapter_pfeiffer", "lora", "vpt_deep")
        """Names of registered methods, in the order in which they are attached."""

        def __post_init__(self) -> None:
            from methods.registry import get

            parts = self.parts
            distinct = not isinstance(parts, str) and len(parts) > 0 and len(set(parts)) == len(parts)
            check(
                distinct and "compose" not in parts, "parts", parts, "a list of distinct methods, none of them compose"
            )
            for part in parts:
                get(part)

    def can_serve(self, kind: str) -> bool:
        return all(method.can_serve(kind) for method in self.methods())

    def methods(self) -> list[Method]:
        """The parts, configured."""
        from methods.registry import get

        return [get(part)() for part in self.config.parts]

    def expected_parameters(self, backbone: nn.Module) -> int:
        return sum(method.expected_parameters(backbone) for method in self.methods())

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        attachments: list[Attachment] = []
        trained: list[nn.Parameter] = []
        parts = self.methods()
        for method in parts:
            if not method.can_serve("swin"):
                require_vit(backbone, method.name)
        for method in parts:
            own = replace(context, memory=context.remember(method.name, dict))
            attachments.append(method.attach(backbone, own))
            trained += [p for p in backbone.parameters() if p.requires_grad]
        # Injecting a tuner of the peft package freezes what earlier parts had turned on.
        for parameter in trained:
            parameter.requires_grad_(True)
        merges = [a.merge for a in attachments if a.merge is not None]
        return Attachment(
            info={part: a.info for part, a in zip(self.config.parts, attachments, strict=True)},
            merge=(lambda: merge_all(merges)) if len(merges) == len(attachments) else None,
            penalty=joined_penalty([a.penalty for a in attachments if a.penalty is not None]),
            after_step=one_after_the_other([a.after_step for a in attachments if a.after_step is not None]),
            state=lambda: [a.state() if a.state is not None else None for a in attachments],
            load_state=partial(load_states, attachments),
        )
