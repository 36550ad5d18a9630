"""Visual query tuning: learned queries summarise every block; the backbone's features stay as they are."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.base import Attachment, Context, Method
from methods.blocks import blocks, plug_layer, require_served, width
from methods.layers import require_plain_attention
from methods.settings import Count, Probability, Settings
from methods.tape import Record, Tape, last_norm
from methods.vpt import draw_prompts


def answer(block: Any, queries: Tensor, qkv: Tensor) -> Tensor:
    """What a frozen block makes of extra query tokens that only look.

    queries: [tokens, d], or [batch, tokens, d] where each image has its own; qkv: [batch, image tokens, 3 * d], the
    block's own, whose keys and values are used.
    Returns [batch, tokens, d].
    """
    attention, d = block.attn, queries.shape[-1]
    split = (attention.num_heads, attention.head_dim)
    k, v = (t.unflatten(-1, split).transpose(1, 2) for t in qkv.chunk(3, dim=-1)[1:])
    bias = None if attention.qkv.bias is None else attention.qkv.bias[:d]
    q = functional.linear(block.norm1(queries), attention.qkv.weight[:d], bias)
    q = attention.q_norm(q.unflatten(-1, split).transpose(-3, -2)).to(k.dtype).expand(len(k), -1, -1, -1)
    y = functional.scaled_dot_product_attention(q, attention.k_norm(k), v).transpose(1, 2).flatten(2)
    h = queries + block.ls1(attention.proj(attention.norm(y)))
    out: Tensor = h + block.ls2(block.mlp(block.norm2(h)))
    return out


class QuerySummary(nn.Module):
    """features + sum over blocks l and queries t of w[l, t] (*) LN(answer[l, t]), after the backbone's last norm.

    features: [batch, tokens, d] or pooled [batch, d]. Queries and w: [depth, tokens, d].
    """

    def __init__(self, tape: Tape, vit_blocks: list[Any], queries: Tensor, dropout: float) -> None:
        super().__init__()
        self.tape = tape
        # The blocks are the backbone's: a tuple keeps them from being registered here again.
        self.blocks = tuple(vit_blocks)
        self.queries = nn.Parameter(queries)
        self.weights = nn.Parameter(torch.zeros_like(queries))
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        taken, queries = self.tape.take(), self.queries
        if self.training and self.dropout.p > 0:  # another dropout for each image
            queries = self.dropout(queries.unsqueeze(1).expand(-1, len(features), -1, -1))
        answers = [answer(*each) for each in zip(self.blocks, queries, taken, strict=True)]
        normed = functional.layer_norm(torch.stack(answers, dim=1), features.shape[-1:])
        summary = (normed * self.weights).sum(dim=(1, 2))
        return features + (summary if features.dim() == 2 else summary.unsqueeze(1))


class VQT(Method):
    """T queries per block, 2*T*d parameters per block (184,320 on ViT-B, T = 10).

    In the paper the head sees the outputs of all queries side by side, which makes it depth * T times as wide. Here
    the head belongs to the harness and is a linear layer on d features, so the normed outputs reach it as a sum,
    weighted per query and channel; the weights, half of the count, start at zero, and the queries as in the released
    code, like VPT's prompts.
    """

    name = "vqt"
    title = "VQT"
    paper = "Tu et al., Visual Query Tuning, CVPR 2023, arXiv 2212.03220"
    family = "prompt"
    recipe = {"lr": 1e-2}
    serves = frozenset({"vit"})

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        tokens: Count = 10
        """Number T of queries per block."""

        dropout: Probability = 0.1
        """Dropout on the queries; 0.1 in the released script."""

    def expected_parameters(self, backbone: nn.Module) -> int:
        vit_blocks = blocks(require_served(self, backbone))
        require_plain_attention(self.name, vit_blocks)
        return sum(2 * self.config.tokens * width(b) for b in vit_blocks)

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        vit = require_served(self, backbone)
        vit_blocks, tape = blocks(vit), Tape()
        self.expected_parameters(vit)
        queries = torch.stack([draw_prompts(vit, self.config.tokens, context.generator) for _ in vit_blocks])
        plug_layer(last_norm(vit), "output", QuerySummary(tape, vit_blocks, queries, self.config.dropout))
        for number, block in enumerate(vit_blocks):
            plug_layer(block.attn.qkv, "output", Record(tape, number))
        return Attachment(readout="queries of all layers, a weighted sum")
