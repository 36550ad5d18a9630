"""Several methods on one backbone, as in NOAH's search space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from methods.base import Attachment, Batch, Context, Method, check
from methods.blocks import require_served
from methods.registry import all_methods, get


def possible_parts() -> tuple[str, ...]:
    """Names of all methods that can be a part, in the order in which parts are attached."""
    orders = ((method.composition_order, name) for name, method in all_methods().items())
    return tuple(name for _, name in sorted((order, name) for order, name in orders if order is not None))


class _PossibleParts:
    """`built_from`, looked up when it is read: the registry is complete only then."""

    def __get__(self, instance: object, owner: type) -> tuple[str, ...]:
        return possible_parts()


def joined_penalty(penalties: list[Callable[[Batch], Tensor]]) -> Callable[[Batch], Tensor] | None:
    """The sum of all penalties, if there are any."""
    return (lambda batch: torch.stack([penalty(batch) for penalty in penalties]).sum()) if penalties else None


def one_after_the_other(actions: list[Any]) -> Callable[..., None] | None:
    """Calls all actions with the same arguments, if there are any."""

    def run(*arguments: Any) -> None:
        for action in actions:
            action(*arguments)

    return run if actions else None


def load_states(attachments: list[Attachment], states: list[Any]) -> None:
    """Give each part its own state back."""
    for attachment, state in zip(attachments, states, strict=True):
        if attachment.load_state is not None:
            attachment.load_state(state)


class Compose(Method):
    """Attaches `parts`, each with its default settings; the parameters are the sum of theirs.

    The default is all of NOAH's sub-modules at full size, 543,840 parameters on ViT-B; NOAH itself searches per block
    for a subset (0.43M). Parts share layers, so there is no merging. With parts that serve Swin it serves Swin, too.
    """

    name = "compose"
    title = "Compose"
    paper = "after Zhang et al., Neural Prompt Search (NOAH), TPAMI 2024, arXiv 2206.04673"
    family = "adapter"
    recipe = {"lr": 5e-3}
    needs = frozenset({"sequence", "attention"})
    identity_at_start = False
    built_from = cast(tuple[str, ...], _PossibleParts())

    @dataclass(frozen=True, kw_only=True)
    class Config:
        parts: tuple[str, ...] = ("adapter_pfeiffer", "lora", "vpt_deep")
        """Names of the parts; they are kept in the order in which they are attached."""

        def __post_init__(self) -> None:
            possible = possible_parts()
            distinct = len(self.parts) > 0 and len(set(self.parts)) == len(self.parts)
            known = set(self.parts) <= set(possible)
            check(distinct and known, "parts", self.parts, f"distinct methods of {', '.join(possible)}")
            # In one order, so that runs that differ in the order alone are one.
            object.__setattr__(self, "parts", tuple(sorted(self.parts, key=possible.index)))
            for one, other in pairwise(self.parts):
                alone = get(one).composition_order != get(other).composition_order
                check(alone, "parts", self.parts, f"parts of which at most one wraps layers: {one} and {other} both do")

    def can_serve(self, kind: str) -> bool:
        return all(method.can_serve(kind) for method in self.methods())

    def methods(self) -> list[Method]:
        """The parts, configured, in the order in which they are attached."""
        return [get(part)() for part in self.config.parts]

    def expected_parameters(self, backbone: nn.Module) -> int:
        return sum(method.expected_parameters(backbone) for method in self.methods())

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        attachments: list[Attachment] = []
        trained: list[nn.Parameter] = []
        parts, expected = self.methods(), self.expected_parameters(backbone)
        for method in parts:
            require_served(method, backbone)
        for method in parts:
            own = replace(context, memory=context.remember(method.name, dict))
            attachments.append(method.attach(backbone, own))
            trained += [p for p in backbone.parameters() if p.requires_grad]
        # Injecting a tuner of the peft package freezes what earlier parts had turned on.
        for parameter in trained:
            parameter.requires_grad_(True)
        together = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
        alone = f"parts that train {expected} parameters together as they do alone, not {together}"
        check(together == expected, "parts", self.config.parts, alone)
        stateful = any(a.state is not None for a in attachments)
        return Attachment(
            info={method.name: a.info for method, a in zip(parts, attachments, strict=True)},
            penalty=joined_penalty([a.penalty for a in attachments if a.penalty is not None]),
            after_step=one_after_the_other([a.after_step for a in attachments if a.after_step is not None]),
            state=(lambda: [a.state() if a.state is not None else None for a in attachments]) if stateful else None,
            load_state=partial(load_states, attachments) if stateful else None,
            features=tuple(dict.fromkeys(name for a in attachments for name in a.features)),
            forward_passes=1 + sum(a.forward_passes - 1 for a in attachments),
            groups=tuple(group for a in attachments for group in a.groups),
            recomputed=tuple(tensor for a in attachments for tensor in a.recomputed),
        )
