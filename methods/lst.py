"""Ladder side tuning: a narrow transformer beside the backbone, fed by rungs from every block."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from methods.base import Attachment, Context, Method, check
from methods.blocks import blocks, new_linear, plug, plug_layer, require_served, width
from methods.layers import block_linears
from methods.settings import Count, Settings, one_of
from methods.tape import Record, Tape, last_norm

TEMPERATURE = 0.1
"""Of the gates."""


def largest(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest scores along the last dimension, ascending."""
    return scores.topk(count, dim=-1).indices.sort(dim=-1).values


def residual_channels(vit_blocks: list[Any], count: int) -> Tensor:
    """The channels of the residual stream that the blocks write most strongly to (sum of squared output weights)."""
    written = [layer.weight.float().square().sum(dim=1) for b in vit_blocks for layer in (b.attn.proj, b.mlp.fc2)]
    return largest(torch.stack(written).sum(dim=0), count)


@torch.no_grad()
def prune_into(side: Any, source: Any, channels: Tensor) -> None:
    """Start a side block as a slice of the backbone's block (section 3.3), by size of weights.

    Of each head, and of the MLP's hidden units, the strongest are kept; of the residual stream, `channels`.
    """
    heads, small = side.attn.num_heads, side.attn.head_dim
    q, k, v = source.attn.qkv.weight[:, channels].unflatten(0, (3, heads, -1))
    offset = torch.arange(heads, device=channels.device)[:, None] * source.attn.head_dim
    keep_qk = (offset + largest((q.square() + k.square()).sum(-1), small)).flatten()
    keep_v = (offset + largest(v.square().sum(-1), small)).flatten()
    d = width(source)
    rows = torch.cat([keep_qk, d + keep_qk, 2 * d + keep_v])
    hidden = largest(source.mlp.fc1.weight[:, channels].square().sum(-1), side.mlp.fc1.out_features)
    slices = (
        (side.attn.qkv, source.attn.qkv, rows, channels),
        (side.attn.proj, source.attn.proj, channels, keep_v),
        (side.mlp.fc1, source.mlp.fc1, hidden, channels),
        (side.mlp.fc2, source.mlp.fc2, channels, hidden),
    )
    for to, origin, outputs, inputs in slices:
        to.weight.copy_(origin.weight[outputs][:, inputs])
        if origin.bias is not None:
            to.bias.copy_(origin.bias[outputs])
    for to, origin in ((side.norm1, source.norm1), (side.norm2, source.norm2)):
        to.weight.copy_(origin.weight[channels])
        if getattr(origin, "bias", None) is not None:
            to.bias.copy_(origin.bias[channels])


class Ladder(nn.Module):
    """h_0 = D_0 x_0;  h_l = S_l(m_l h_{l-1} + (1 - m_l) D_l x_l),  m_l = sigmoid(a_l / T);  out = U LN(h_L)

    x_l: [batch, tokens, d] from the tape, D_l: d -> w, S_l a transformer block of width w, U: w -> d. It stands after
    the backbone's last norm; `adds` says whether its output is added to the features there or takes their place.
    """

    def __init__(
        self, vit: Any, tape: Tape, rungs: list[nn.Linear], steps: list[Any], up: nn.Linear, adds: bool
    ) -> None:
        super().__init__()
        self.tape, self.adds = tape, adds
        self.vit = (vit,)  # for pooling; a tuple, so that the backbone is not registered inside itself
        self.rungs, self.steps, self.up = nn.ModuleList(rungs), nn.ModuleList(steps), up
        self.gates = nn.Parameter(torch.zeros(len(steps)))
        self.norm = nn.LayerNorm(up.in_features)

    def forward(self, features: Tensor) -> Tensor:
        first, *taken = self.tape.take()
        h = self.rungs[0](first)
        for step, rung, x, gate in zip(self.steps, self.rungs[1:], taken, self.gates, strict=True):
            m = torch.sigmoid(gate / TEMPERATURE)
            h = step(m * h + (1 - m) * rung(x))
        out: Tensor = self.up(self.norm(h))
        if features.dim() == 2:
            out = self.vit[0].pool(out)
        return features + out if self.adds else out


class LST(Method):
    """A side transformer of width w = d / r (its MLP 4*w): per block 12*w*w + 13*w and a gate, depth + 1 rungs
    of d*w + w, a norm of 2*w and w*d + d back: 2,376,492 parameters on ViT-B, r = 8.

    No gradient reaches the backbone.
    """

    name = "lst"
    title = "LST"
    paper = "Sung et al., LST: Ladder Side-Tuning, NeurIPS 2022, arXiv 2206.06522"
    family = "adapter"
    recipe = {"lr": 5e-3}
    search_space = {**Method.search_space, "output": ("side", "sum")}
    serves = frozenset({"vit"})
    identity_at_start = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        reduction: Count = 8
        """Factor r between the backbone's width and that of the side network, which must be a multiple of the heads."""

        init: Annotated[str, one_of("pruned", "random")] = "pruned"
        """`pruned`: side blocks start as slices of the backbone's (by size of weights; the paper ranks by Fisher
        information) and rungs as the matching selection of channels. `random`: as a new transformer."""

        output: Annotated[str, one_of("side", "sum")] = "side"
        """`side`: the head sees the side network alone, as in the paper. `sum`: its output, zero at the start, is added
        to the backbone's features."""

    config: Config

    def side_width(self, backbone: nn.Module) -> int:
        """Width w of the side network. Raises `MethodError` if it does not fit the backbone's width and heads."""
        block, r = blocks(backbone)[0], self.config.reduction
        d, heads = width(block), block.attn.num_heads
        w = d // r
        check(w * r == d and w >= heads and w % heads == 0, "reduction", r, f"{d} / (n * {heads})")
        if self.config.init == "pruned":
            for block in blocks(backbone):
                inner = [layer.out_features for _, layer in block_linears(block, ["fc1"])]
                ((_, fc2),) = block_linears(block, ["fc2"])
                hidden = fc2.in_features
                check(inner == [hidden], "init", "pruned", "'random' where fc1 feeds a gate")
                check(4 * w <= hidden, "reduction", r, f"at least {4 * d / hidden:g}, to cut side blocks out of these")
        return w

    def expected_parameters(self, backbone: nn.Module) -> int:
        depth, d, w = len(blocks(backbone)), width(blocks(backbone)[0]), self.side_width(backbone)
        return depth * (12 * w * w + 13 * w + 1) + (depth + 1) * (d * w + w) + 2 * w + w * d + d

    def side_block(self, w: int, heads: int, generator: torch.Generator) -> Any:
        """A new transformer block of width w."""
        with torch.random.fork_rng(devices=[]):  # the layers draw from the global generator before they are set below
            block: Any = Block(w, heads, mlp_ratio=4, qkv_bias=True)
        for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            layer.load_state_dict(new_linear(layer.in_features, layer.out_features, generator).state_dict())
        return block

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        vit, c, g = require_served(self, backbone), self.config, context.generator
        vit_blocks, tape = blocks(vit), Tape()
        d, w = width(vit_blocks[0]), self.side_width(vit)
        steps = [self.side_block(w, block.attn.num_heads, g) for block in vit_blocks]
        rungs = [new_linear(d, w, g, std=d**-0.5) for _ in range(len(vit_blocks) + 1)]
        if c.init == "pruned":
            channels = residual_channels(vit_blocks, w)
            for step, block in zip(steps, vit_blocks, strict=True):
                prune_into(step, block, channels)
            for rung in rungs:
                rung.weight.data = torch.eye(d, device=channels.device)[channels]
        up = new_linear(w, d, g, std=0.02 if c.output == "side" else 0)
        plug_layer(last_norm(vit), "output", Ladder(vit, tape, rungs, steps, up, adds=c.output == "sum"))
        plug(vit_blocks[0], "input", Record(tape, 0))
        for number, block in enumerate(vit_blocks, start=1):
            plug(block, "output", Record(tape, number))
        return Attachment(readout="side network" if c.output == "side" else "")
