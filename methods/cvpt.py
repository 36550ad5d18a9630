"""CVPT: image tokens look at prompts through the block's own attention weights; prompts never join the tokens."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.architectures import architecture_of
from methods.base import Attachment, Context, Method
from methods.blocks import blocks, plug, require_served, width
from methods.layers import draw_uniform, projections
from methods.settings import Count, Limit, Probability, Settings
from methods.tape import Tape

INSERTS = {
    1: ("input",),
    2: ("input", "attention_output"),
    3: ("after_attention",),
    4: ("after_attention", "mlp_input"),
    5: ("output",),
}
"""Number of a place to the slots where the tokens look at the prompts and, if not there, what they see is added."""

INSERT = Limit(requirement="1, 2, 3, 4 or 5", holds=lambda place: place in INSERTS)


class CrossPrompts(nn.Module):
    """x + o(softmax(q(x) k(p)^T) v(p)), q, k, v and o being the block's frozen layers; x: [batch, tokens, channels] or
    [batch, rows, columns, channels]."""

    stateless = True

    def __init__(self, block: Any, prompts: Tensor, dropout: float) -> None:
        super().__init__()
        self.prompts = nn.Parameter(prompts)
        self.dropout = nn.Dropout(dropout)
        self.architecture, self.rows = architecture_of(block), projections(block)
        self.attention = (block.attn,)  # a tuple keeps it from being registered here again

    def heads(self, part: int, x: Tensor) -> Tensor:
        """Queries (part 0), keys or values of tokens [batch, tokens, channels]: [batch, heads, tokens, channels per
        head]."""
        rows, (attention,) = self.rows[part], self.attention
        own = slice(rows.start, rows.stop)
        y = functional.linear(x, rows.layer.weight[own], None if rows.layer.bias is None else rows.layer.bias[own])
        held = getattr(attention, ("q_bias", "k_bias", "v_bias")[part], None)
        if held is not None:
            y = y + held
        split: Tensor = y.unflatten(-1, (attention.num_heads, -1))
        return split.transpose(1, 2)

    def seen(self, x: Tensor) -> Tensor:
        """What the tokens see of the prompts, in the shape of x."""
        tokens, (attention,) = x.flatten(1, -2), self.attention
        images = len(x) if self.training and self.dropout.p > 0 else 1  # another dropout for each image
        prompts = self.dropout(self.prompts.expand(images, -1, -1)).to(x.dtype)
        k, v = (self.heads(part, prompts) for part in (1, 2))
        q, k = self.architecture.compared(attention, self.heads(0, tokens), k)
        k, v = (t.to(q.dtype).expand(len(x), -1, -1, -1) for t in (k, v))
        y = functional.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2)
        norm = getattr(attention, "norm", None)
        out: Tensor = attention.proj(y if norm is None else norm(y))
        return out.view_as(x)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.seen(x)


class LookAtPrompts(CrossPrompts):
    """Puts what the tokens see on the tape; x passes unchanged."""

    def __init__(self, block: Any, prompts: Tensor, dropout: float, tape: Tape) -> None:
        super().__init__(block, prompts, dropout)
        self.tape = tape

    def forward(self, x: Tensor) -> Tensor:
        self.tape.features[0] = self.seen(x)
        return x


class AddSeen(nn.Module):
    """Adds what is on the tape."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def forward(self, x: Tensor) -> Tensor:
        (seen,) = self.tape.take()
        return x + seen


class CVPT(Method):
    """P prompts per block, which each image token attends to with the block's frozen attention weights, with no norm in
    front: L * P * d parameters (92,160 on ViT-B/16, P = 10).

    Cross attention has no position: queries are not turned by rotary positions, and there is no relative bias. Norms of
    queries and keys, and Swin v2's cosines, are those of the block; a gate on attention's output is left out. On maps
    each position attends to the prompts, whatever its window.

    At the places 2 and 4 what the stream sees in front of a branch is kept until it is added inside of it, so that the
    trainer takes no shortcuts there.
    """

    name = "cvpt"
    title = "CVPT"
    paper = "Huang et al., CVPT: Cross Visual Prompt Tuning, ICCV 2025, arXiv 2408.14961"
    family = "prompt"
    recipe = {"lr": 5e-3}
    search_space = {**Method.search_space, "tokens": (1, 5, 10, 20, 50, 200)}
    needs = frozenset({"attention"})
    identity_at_start = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        tokens: Count = 10
        """Number P of prompts per block; 1 to 200 per task in the release."""

        insert: Annotated[int, INSERT] = 3
        """Where what is seen is added: 1 to the stream in front of the attention, 2 to the attention's output (inside
        its drop path), 3 behind the attention, 4 to the MLP's normed input, 5 at the block's end."""

        dropout: Probability = 0.1
        """Dropout on the prompts; 0.1 in the release."""

    config: Config

    def expected_parameters(self, backbone: nn.Module) -> int:
        return sum(self.config.tokens * width(block) for block in blocks(require_served(self, backbone)))

    def start(self, depth: int, d: int, generator: torch.Generator) -> Tensor:
        """Prompts of one block, uniform with Xavier's bound for the tensor [depth, tokens, d] of all blocks."""
        tokens = self.config.tokens
        bound = math.sqrt(6 / (tokens * d + depth * d))
        return draw_uniform(generator, bound, tokens, d)

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        all_blocks, c = blocks(require_served(self, backbone)), self.config
        for block in all_blocks:
            projections(block)  # refuses what is built of other layers, before anything is changed
        for block in all_blocks:
            prompts, tape = self.start(len(all_blocks), width(block), context.generator), Tape()
            look, *add = INSERTS[c.insert]
            if add:
                plug(block, look, LookAtPrompts(block, prompts, c.dropout, tape))
                plug(block, add[0], AddSeen(tape))
            else:
                plug(block, look, CrossPrompts(block, prompts, c.dropout))
        return Attachment()
