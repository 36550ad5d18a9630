"""Several methods on one backbone, as in NOAH's search space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Attachment, Context, Method, check
from methods.blocks import require_vit

TUNERS = ("lora", "rslora", "dora", "pissa", "olora", "lora_fa", "adalora", "kasa")
"""Parts that wrap a layer, of which peft takes one; what they wrap is still called, with all that it holds."""

ORDER = (
    *("bitfit", "norm_tuning"),  # train what is in the untouched model
    "sct",  # looks at the features of the untouched model
    *("lora_qv", "fact_tt", "fact_tk", "hydra", "arc", "consolidator"),  # change layers
    *("adapter_pfeiffer", "adapter_houlsby", "adapter_plus", "adaptformer", "bi_adaptformer", "compacter"),
    *("convpass", "lorand", "mona", "repadapter"),  # with those above, stand beside or behind layers
    *TUNERS,
    *("vpt_shallow", "vpt_deep", "prefix_tuning", "mlp_head"),
)
"""What may be a part, in the order in which parts are attached."""


def joined_penalty(penalties: list[Callable[[], Tensor]]) -> Callable[[], Tensor] | None:
    """The sum of all penalties, if there are any."""
    return (lambda: torch.stack([penalty() for penalty in penalties]).sum()) if penalties else None


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
    serves = frozenset({"vit"})
    identity_at_start = False
    built_from = ORDER

    @dataclass(frozen=True, kw_only=True)
    class Config:
        parts: tuple[str, ...] = ("adapter_pfeiffer", "lora", "vpt_deep")
        """Names of the parts, of those in `ORDER`, which is the order in which they are attached."""

        def __post_init__(self) -> None:
            distinct = len(self.parts) > 0 and len(set(self.parts)) == len(self.parts)
            known = set(self.parts) <= set(ORDER)
            check(distinct and known, "parts", self.parts, f"distinct methods of {', '.join(ORDER)}")
            tuners = [part for part in self.parts if part in TUNERS]
            check(len(tuners) <= 1, "parts", self.parts, f"with at most one of {', '.join(TUNERS)}")
            # In one order, so that runs that differ in the order alone are one.
            object.__setattr__(self, "parts", tuple(sorted(self.parts, key=ORDER.index)))

    def can_serve(self, kind: str) -> bool:
        return all(method.can_serve(kind) for method in self.methods())

    def methods(self) -> list[Method]:
        """The parts, configured, in the order in which they are attached."""
        from methods.registry import get

        return [get(part)() for part in self.config.parts]

    def expected_parameters(self, backbone: nn.Module) -> int:
        return sum(method.expected_parameters(backbone) for method in self.methods())

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        attachments: list[Attachment] = []
        trained: list[nn.Parameter] = []
        parts, expected = self.methods(), self.expected_parameters(backbone)
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
        found = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
        alone = f"parts that train {expected} parameters together as they do alone, not {found}"
        check(found == expected, "parts", self.config.parts, alone)
        stateful = any(a.state is not None for a in attachments)
        return Attachment(
            info={method.name: a.info for method, a in zip(parts, attachments, strict=True)},
            penalty=joined_penalty([a.penalty for a in attachments if a.penalty is not None]),
            after_step=one_after_the_other([a.after_step for a in attachments if a.after_step is not None]),
            state=(lambda: [a.state() if a.state is not None else None for a in attachments]) if stateful else None,
            load_state=partial(load_states, attachments) if stateful else None,
        )
