"""BEiT and BEiT v2: vision transformers with relative position biases."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.models.beit import Attention, Block
from timm.models.beit import Beit as BeitModel
from torch import Tensor, nn
from torch.nn import functional

from methods.architectures.base import SMALL, Architecture, ScaledBlock, State, register


class SlottedBeitBlock(ScaledBlock, Block):
    """timm's BEiT block with slots. x: [batch, tokens, channels]."""

    plain = Block


class OpenAttention(Attention):
    """timm's BEiT attention with further tokens that have no position, whose biases are zero: some after the class
    token, and a prefix in front of keys and values. x: [batch, tokens, channels]."""

    stateless = True

    further: int = 0
    """How many tokens follow the class token."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """`shared_rel_pos_bias`: [heads, tokens, tokens] of the model's own tokens."""
        qkv = self.qkv(x)
        if self.q_bias is not None:
            biases: Any = self.q_bias, self.k_bias, self.v_bias
            qkv = qkv + torch.cat(biases)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if (prefix := getattr(self, "prefix", None)) is not None:
            k, v = prefix.prepend(k, v)
        bias = self.position_bias(shared_rel_pos_bias, k.shape[2] - q.shape[2])
        drop = self.attn_drop.p if self.training else 0.0
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop)
        out: Tensor = self.proj_drop(self.proj(y.transpose(1, 2).flatten(2)))
        return out

    def position_bias(self, shared: Tensor | None, prefix: int) -> Tensor | None:
        """The biases [1, heads, queries, keys] with zeros for tokens without a position; None if there are none."""
        own = None if self.relative_position_bias_table is None else self._get_rel_pos_bias()
        if own is None and shared is None:
            return None
        bias = (0 if own is None else own) + (0 if shared is None else shared)
        assert isinstance(bias, Tensor)
        bias = bias.reshape(1, *bias.shape[-3:])
        for side in (-1, -2):
            zeros = bias.new_zeros(*(self.further if d == 4 + side else n for d, n in enumerate(bias.shape)))
            bias = torch.cat([bias.narrow(side, 0, 1), zeros, bias.narrow(side, 1, bias.shape[side] - 1)], dim=side)
        return functional.pad(bias, (prefix, 0))


@register
class Beit(Architecture):
    """timm's `Beit`."""

    name = "beit"
    title = "BEiT"
    model = BeitModel
    blocks = (SlottedBeitBlock,)
    timm_modules = ("beit",)
    small = {"beit": ("beit_base_patch16_224", SMALL)}
    shallow = {"depth": 1}

    def run(self, model: Any, steps: Iterable[Any], x: Tensor) -> Tensor:
        bias = None if model.rel_pos_bias is None else model.rel_pos_bias()
        for step in steps:
            x = step(x, shared_rel_pos_bias=bias) if isinstance(step, Block) else step(x)
        return x

    def add_prefix_tokens(self, block: Any, count: int) -> None:
        block.attn.__class__ = OpenAttention
        block.attn.further += count

    def open_attention(self, attention: Any) -> type[nn.Module] | None:
        return OpenAttention if isinstance(attention, Attention) else None

    def fit(self, state: State, model: Any) -> State:
        return super().fit(_as_for_tuning(state, model) if "mask_token" in state else state, model)


PRETRAINING = ("mask_token", "lm_head.", "cls_pt_layers.")
"""What only the pretraining by masked images has."""

SHARED = "rel_pos_bias."
"""Position biases of all blocks together, in files of the pretraining."""


def _as_for_tuning(state: State, model: Any) -> State:
    """A pretrained BEiT as its authors tune it: each block begins with the shared position biases. The last norm goes
    behind the pooling, where timm's model has it, as timm does with EVA's."""
    tuned: State = {}
    for name, tensor in state.items():
        if name.startswith(PRETRAINING):
            continue
        if name.startswith(SHARED) and model.rel_pos_bias is None:
            own = name.removeprefix(SHARED)
            tuned |= {f"blocks.{i}.attn.{own}": tensor for i in range(len(model.blocks))}
        elif name.startswith("norm.") and isinstance(model.norm, nn.Identity):
            tuned[f"fc_{name}"] = tensor
        else:
            tuned[name] = tensor
    return tuned
