"""Prefix tuning: learned keys and values in front of those that attention computes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from methods.architectures import architecture_of
from methods.base import Attachment, Context, Method, MethodError
from methods.blocks import blocks, require_served, width
from methods.settings import Count, Probability, Settings


class Prefix(nn.Module):
    """Learned keys and values of one attention layer, both [heads, tokens, channels per head]; the keys are the values,
    too, where none are given."""

    def __init__(self, keys: Tensor, values: Tensor | None, dropout: float) -> None:
        super().__init__()
        self.keys = nn.Parameter(keys)
        self.values = None if values is None else nn.Parameter(values)
        self.dropout = nn.Dropout(dropout)

    def prepend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put the prefix in front of k and v: [batch, heads, tokens, channels per head]."""
        learned = self.keys, self.keys if self.values is None else self.values
        new_k, new_v = (self.dropout(t.expand(len(k), -1, -1, -1)).to(k.dtype) for t in learned)
        return torch.cat([new_k, k], dim=2), torch.cat([new_v, v], dim=2)


def plug_prefixes(method: Method, backbone: nn.Module, prefix: Callable[[int, int], Prefix]) -> list[Prefix]:
    """A prefix in every attention layer, made by `prefix(heads, channels per head)`.

    Raises `MethodError`, before anything is changed, if there is a layer that cannot have one.
    """
    architecture = architecture_of(backbone)
    layers = [(block.attn, architecture.open_attention(block.attn)) for block in blocks(backbone)]
    for attention, opened in layers:
        if opened is None:
            raise MethodError(f"method {method.name!r} does not serve {type(attention).__name__}")
    for attention, opened in layers:
        weight, heads = attention.proj.weight, attention.num_heads
        own = prefix(heads, weight.shape[1] // heads).train(attention.training)
        attention.__class__ = opened
        attention.prefix = own.to(device=weight.device, dtype=weight.dtype)
    return [attention.prefix for attention, _ in layers]


class PrefixTuning(Method):
    """p keys and p values per block, learned directly: 2*p*d parameters per block (368,640 on ViT-B, p = 20).

    The paper trains them through an MLP that is dropped afterwards (section 4.3); that trick, meant for language
    models, has many times the parameters of the prefix, and comparisons in vision do without it.
    """

    name = "prefix_tuning"
    title = "Prefix"
    paper = "Li and Liang, Prefix-Tuning, ACL 2021, arXiv 2101.00190"
    family = "prompt"
    composition_order = 52
    recipe = {"lr": 1e-2}
    search_space = {**Method.search_space, "dropout": (0.0, 0.1)}
    needs = frozenset({"sequence"})
    identity_at_start = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        tokens: Count = 20
        """Number p of learned keys, and of learned values, per block."""

        dropout: Probability = 0.0
        """Dropout on the prefix."""

    def expected_parameters(self, backbone: nn.Module) -> int:
        return sum(2 * self.config.tokens * width(b) for b in blocks(backbone))

    def prefix(self, generator: torch.Generator, heads: int, channels: int) -> Prefix:
        """A new prefix, keys and values trunc_normal(0.02)."""
        keys, values = (torch.empty(heads, self.config.tokens, channels) for _ in range(2))
        for tensor in (keys, values):
            nn.init.trunc_normal_(tensor, std=0.02, generator=generator)
        return Prefix(keys, values, self.config.dropout)

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        plug_prefixes(self, require_served(self, backbone), partial(self.prefix, context.generator))
        return Attachment()
