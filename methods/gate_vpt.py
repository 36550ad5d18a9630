"""GateVPT: shallow prompts, of which a gate per block decides how much the block may change them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn

from methods.base import Attachment, Context, MethodError
from methods.blocks import blocks, plug, plug_layer, require_served
from methods.settings import Count, Limit, Probability
from methods.tape import Tape
from methods.vpt import PromptConfig, VPTDeep, VPTShallow

TEMPERATURES = (0.01, 10.0)
"""Between these the attention's temperatures are kept."""

LOGITS = Limit(requirement="between -20 and 20", holds=lambda logit: abs(logit) <= 20)


class KeepPrompts(nn.Module):
    """Put the `count` tokens after the first `prefix` ones on the block's tape; x: [batch, tokens, channels] passes
    unchanged."""

    def __init__(self, tape: Tape, prefix: int, count: int) -> None:
        super().__init__()
        self.tape, self.span = tape, slice(prefix, prefix + count)

    def forward(self, x: Tensor) -> Tensor:
        self.tape.features[0] = x[:, self.span]
        return x


class GatePrompts(nn.Module):
    """Prompts become g * out + (1 - g) * in with g = sigmoid(logit); other tokens pass unchanged."""

    def __init__(self, tape: Tape, prefix: int, count: int, logit: float) -> None:
        super().__init__()
        self.tape, self.first, self.last = tape, prefix, prefix + count
        self.logit = nn.Parameter(torch.tensor(logit))

    def forward(self, x: Tensor) -> Tensor:
        (before,) = self.tape.take()
        after = x[:, self.first : self.last]
        mixed = torch.lerp(before, after, self.logit.sigmoid().to(x.dtype))
        return torch.cat([x[:, : self.first], mixed, x[:, self.last :]], dim=1)


class Temperature(nn.Module):
    """q / t with a learned t, on the output of the fused layer [q, k, v]; y: [batch, tokens, 3 * d].

    A t outside `TEMPERATURES` counts as the nearer bound, with the gradient that it has there.
    """

    stateless = True

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, y: Tensor) -> Tensor:
        q, rest = y.split([y.shape[-1] // 3, y.shape[-1] // 3 * 2], dim=-1)
        kept = self.temperature.detach()
        t = kept.clamp(*TEMPERATURES) + (self.temperature - kept)  # the bracket is zero, and passes the gradient on
        return torch.cat([(q / t).to(y.dtype), rest], dim=-1)


@torch.no_grad()
def keep_in_range(modules: Sequence[Temperature], step: int) -> None:
    """Move temperatures that a step took out of their range back to its bound, as the released code does before each
    forward pass."""
    for module in modules:
        module.temperature.clamp_(*TEMPERATURES)


class GateVPT(VPTShallow):
    """p prompts from the first block on, a gate per block but the last (whose prompts nobody reads) and an attention
    temperature per block: p*d + 2*depth - 1 parameters (76,823 on ViT-B, p = 100).

    The defaults are those of the released example (p = 100, gates almost shut) and of its script (dropout).
    """

    name = "gate_vpt"
    title = "GateVPT"
    paper = "Yoo et al., Improving Visual Prompt Tuning for Self-supervised ViTs, ICML 2023, arXiv 2306.05067"
    composition_order = None
    recipe = {"lr": 5e-3}
    search_space = {**VPTDeep.search_space, "gate_logit": (-10.0, -5.0)}
    serves = frozenset({"vit"})

    @dataclass(frozen=True, kw_only=True)
    class Config(PromptConfig):
        tokens: Count = 100
        """Number p of prompts."""

        dropout: Probability = 0.1
        """Dropout on the prompts."""

        gate_logit: Annotated[float, LOGITS] = -5.0
        """Start of the gates' logits, minus the released code's GATE_INIT: 5 in its example, 10 if not given. 0 is a
        gate half open; at -5 the prompts that go on take 0.7 % from a block's output."""

    config: Config

    def expected_parameters(self, backbone: nn.Module) -> int:
        vit_blocks = blocks(require_served(self, backbone))
        if not all(isinstance(block.attn.q_norm, nn.Identity) for block in vit_blocks):
            raise MethodError("the norm of the queries would undo the temperature: blocks with qk_norm are not served")
        return super().expected_parameters(backbone) + 2 * len(vit_blocks) - 1

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        vit = require_served(self, backbone)
        self.expected_parameters(vit)  # refuses blocks with qk_norm
        super().attach(vit, context)
        c, vit_blocks, prefix = self.config, blocks(vit), vit.num_prefix_tokens
        for block in vit_blocks[:-1]:
            tape = Tape()
            plug(block, "input", KeepPrompts(tape, prefix, c.tokens))
            plug(block, "output", GatePrompts(tape, prefix, c.tokens, c.gate_logit))
        temperatures = [Temperature() for _ in vit_blocks]
        for block, temperature in zip(vit_blocks, temperatures, strict=True):
            plug_layer(block.attn.qkv, "output", temperature)
        return Attachment(after_step=partial(keep_in_range, temperatures))
