"""SA2VP: a map of prompts, one for each token, goes through the frozen blocks beside the image and is mixed with it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.architectures import architecture_of
from methods.architectures.base import Rows
from methods.base import Attachment, Batch, Context, Method
from methods.blocks import blocks, new_linear, plug, require_served, width
from methods.bottleneck import Bottleneck
from methods.layers import projections, require_plain_attention
from methods.settings import Count, Limit, Positive, Probability, Settings
from methods.tape import Tape

SHARE = Limit(requirement="between 0 and 1", holds=lambda share: 0 <= share <= 1)


def neighbours(grid: tuple[int, int], prefix: int, device: torch.device) -> Tensor:
    """Which tokens (columns) each token (row) attends to: a patch to those at most a row and a column away, a token
    before the patches to all. [tokens, tokens], true or false."""
    rows, columns = (torch.arange(side, device=device) for side in grid)
    near_rows, near_columns = ((at[:, None] - at).abs() <= 1 for at in (rows, columns))
    near = near_rows[:, None, :, None] & near_columns[None, :, None, :]
    patches = near.flatten(2).flatten(0, 1)
    mask = functional.pad(patches, (prefix, 0, prefix, 0))
    return mask | (torch.arange(len(mask), device=device) < prefix)[:, None]


def project(rows: Rows, x: Tensor) -> Tensor:
    """Queries, keys or values of normed tokens."""
    here, bias = slice(rows.start, rows.stop), rows.layer.bias
    return functional.linear(x, rows.layer.weight[here], None if bias is None else bias[here])


class Cross(nn.Module):
    """F(o(softmax_3x3(q(LN q) k(LN kv)^T / sqrt(d_h)) v(LN kv)) + q) with q, k, v, o and LN of a frozen block, and
    F(c) = V GELU(U LN_new(c) + u) + v of its own. Both streams: [batch, tokens, d]."""

    stateless = True

    def __init__(self, block: Any, feed: nn.Module, grid: tuple[int, int], prefix: int, dropout: float) -> None:
        super().__init__()
        self.block = (block,)  # a tuple, so that the block is not registered inside itself
        self.feed, self.grid, self.prefix = feed, grid, prefix
        self.dropout = nn.Dropout(dropout)

    def forward(self, kv: Tensor, query: Tensor) -> Tensor:
        block = self.block[0]
        attention, (to_q, to_k, to_v) = block.attn, projections(block)
        read, normed = block.norm1(kv), block.norm1(query)
        q, k, v = (
            project(rows, x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for rows, x in ((to_q, normed), (to_k, read), (to_v, read))
        )
        q, k = attention.q_norm(q), attention.k_norm(k)
        mask = neighbours(self.grid, self.prefix, q.device)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        out: Tensor = self.feed(query + block.ls1(self.dropout(attention.proj(attention.norm(mixed)))))
        return out


class PromptMap(nn.Module):
    """T A + a, [1, tokens, d]; T: [tokens, k], A: [k, d]."""

    stateless = True

    def __init__(self, tokens: int, up: nn.Linear, generator: torch.Generator) -> None:
        super().__init__()
        self.up = up
        self.tokens = nn.Parameter(torch.empty(tokens, up.in_features))
        nn.init.trunc_normal_(self.tokens, std=0.02, generator=generator)

    def forward(self) -> Tensor:
        out: Tensor = self.up(self.tokens)[None]
        return out


class BeginStream(nn.Module):
    """Put the prompts, at the positions of the images' tokens, behind the images. x: [batch, tokens, d], returns
    [2 batch, tokens, d]."""

    stateless = True

    def __init__(self, vit: Any, prompts: PromptMap, dropout: float) -> None:
        super().__init__()
        self.vit = (vit,)  # for its positions; a tuple, so that the backbone is not registered inside itself
        self.prompts, self.dropout = prompts, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        vit, prompts = self.vit[0], self.prompts()
        if vit.pos_embed is not None:  # the tokens before the patches may have none
            prompts = prompts + functional.pad(vit.pos_embed, (0, 0, prompts.shape[1] - vit.pos_embed.shape[1], 0))
        prompts = vit.norm_pre(self.dropout(prompts.expand(len(x), -1, -1)))
        return torch.cat([x, prompts.to(x.dtype)])


class EnterBlock(nn.Module):
    """Compute what one stream gives to the other from what enters the block, and keep it for the block's exit. x:
    [2 batch, tokens, d]; prompts of the block's own, if there are, follow as one more."""

    def __init__(self, tape: Tape, cross: Cross, to_prompts: bool, own: PromptMap | None) -> None:
        super().__init__()
        self.tape, self.cross, self.to_prompts, self.own = tape, cross, to_prompts, own

    def forward(self, x: Tensor) -> Tensor:
        images, prompts = x.chunk(2)
        self.tape.features[0] = self.cross(images, prompts) if self.to_prompts else self.cross(prompts, images)
        return x if self.own is None else torch.cat([x, self.own().to(x.dtype)])


class LeaveBlock(nn.Module):
    """Add `scale` times what was kept to the stream that it is for, and what the block made of its own prompts, times a
    trained factor per channel, to the prompts."""

    def __init__(self, tape: Tape, to_prompts: bool, scale: float, factor: Tensor | None) -> None:
        super().__init__()
        self.tape, self.to_prompts, self.scale = tape, to_prompts, scale
        self.factor = None if factor is None else nn.Parameter(factor)

    def forward(self, x: Tensor) -> Tensor:
        (given,) = self.tape.take()
        images, prompts, *own = x.split(len(given))
        if self.factor is not None:
            prompts = prompts + own[0] * self.factor
        if self.to_prompts:
            prompts = prompts + self.scale * given
        else:
            images = images + self.scale * given
        return torch.cat([images, prompts])


class EndStream(nn.Module):
    """The images alone: the first half of x, [2 batch, tokens, d]."""

    stateless = True

    def forward(self, x: Tensor) -> Tensor:
        return x[: len(x) // 2]


class SA2VP(Method):
    """Prompts T A + a + positions, one for each token, run through the blocks in a second half of the batch:

    3 T k + 3 (k d + d) + 2 d + L (2 k d + k + 3 d) parameters for T tokens, 372,912 on ViT-B/16 with k = 16.

    In three blocks at i = 0, L/3 and 2L/3 (rounded down) the images feed the prompts, and from the second of them on
    further prompts do; in all others, and always in the last, the prompts feed the images, through the block's own
    attention over 3 x 3 patches (`Cross`). On shallow models these may be fewer than three. The classifier reads the
    image's stream. The loss is 0.8 of the recipe's, and 0.2 of what the recipe's would be for the prompts' stream under
    the same norm and classifier. A pass costs a little more than two of the plain model.

    The release is for 12 blocks and 14 x 14 patches. Its faster file, with one head in the cross attention, is another
    function and not offered.
    """

    name = "sa2vp"
    title = "SA2VP"
    paper = "Pei et al., SA2VP: Spatially Aligned-and-Adapted Visual Prompt, AAAI 2024, arXiv 2312.10376"
    family = "prompt"
    recipe = {"lr": 5e-3}
    search_space = {**Method.search_space, "inner": (8, 16, 32), "scale": (0.05, 0.1, 0.5)}
    serves = frozenset({"vit"})
    needs = frozenset({"sequence", "attention"})
    identity_at_start = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        inner: Count = 16
        """Width k of the prompts before they are projected, and of the layers behind the cross attention; 8, 16 or 32
        per task in the release."""

        scale: Positive = 0.1
        """Factor of what one stream gives to the other."""

        prompt_weight: Annotated[float, SHARE] = 0.2
        """Share of the loss that the prompts' stream has."""

        dropout: Probability = 0.1
        """Dropout as in the release: behind the embedding of both streams, twice in every MLP of the backbone, behind
        the cross attention, and twice in the layers after it."""

    config: Config

    def expected_parameters(self, backbone: nn.Module) -> int:
        vit_blocks = blocks(require_served(self, backbone))
        require_plain_attention(self.name, vit_blocks)
        k, d, maps = self.config.inner, width(vit_blocks[0]), max(1, len(readers(len(vit_blocks))))
        prompts = maps * (token_count(backbone) * k + k * d + d) + (maps - 1) * d
        return prompts + len(vit_blocks) * (2 * k * d + k + 3 * d)

    def linear(self, inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
        """A linear layer: weight Xavier-uniform, bias normal with std 1e-6."""
        layer = new_linear(inputs, outputs, generator, std=0)
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.normal_(layer.bias, std=1e-6, generator=generator)
        return layer

    def prompt_map(self, vit: nn.Module, generator: torch.Generator) -> PromptMap:
        """New prompts."""
        up = self.linear(self.config.inner, width(blocks(vit)[0]), generator)
        return PromptMap(token_count(vit), up, generator)

    def cross(self, vit: Any, block: Any, generator: torch.Generator) -> Cross:
        """A new cross attention through the block."""
        c, d, architecture = self.config, width(block), architecture_of(vit)
        down, up = self.linear(d, c.inner, generator), self.linear(c.inner, d, generator)
        feed = Bottleneck(down, up, nn.GELU(), dropout=c.dropout, norm=nn.LayerNorm(d, eps=1e-6))
        prefix = architecture.prefix_tokens(vit)
        return Cross(block, nn.Sequential(feed, nn.Dropout(c.dropout)), architecture.token_grid(vit), prefix, c.dropout)

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        self.expected_parameters(backbone)  # refuses what does not fit
        vit: Any = backbone
        c, g, vit_blocks = self.config, context.generator, blocks(vit)
        plug(vit_blocks[0], "input", BeginStream(vit, self.prompt_map(vit, g), c.dropout))
        for number, block in enumerate(vit_blocks):
            tape, to_prompts = Tape(), number in readers(len(vit_blocks))
            adds = to_prompts and number > 0
            own = self.prompt_map(vit, g) if adds else None
            factor = 0.02 * torch.randn(width(block), generator=g) if adds else None
            plug(block, "input", EnterBlock(tape, self.cross(vit, block, g), to_prompts, own))
            leave = LeaveBlock(tape, to_prompts, c.scale, factor)
            plug(block, "output", leave)
        plug(vit_blocks[-1], "output", EndStream())
        for dropout in (m for part in (vit.pos_drop, *(b.mlp for b in vit_blocks)) for m in part.modules()):
            if isinstance(dropout, nn.Dropout):
                dropout.p = c.dropout
        (last,) = (name for name, module in vit.named_modules() if module is leave)
        return Attachment(penalty=self.penalty(vit, last), features=(last,))

    def penalty(self, vit: Any, last: str) -> Callable[[Batch], Tensor]:
        """What makes the recipe's loss that of both streams; `last`: name of the module that both leave."""

        def prompts_loss(batch: Batch) -> Tensor:
            other = batch.loss(prompt_logits(vit, batch.features[last]))
            return self.config.prompt_weight * (other - batch.loss(batch.logits))

        return prompts_loss


def prompt_logits(vit: Any, streams: Tensor) -> Tensor:
    """Logits of the prompts' stream, from both as they leave the last block: [2 batch, tokens, d]."""
    architecture, prompts = architecture_of(vit), streams.chunk(2)[1]
    steps = architecture.steps(vit)
    rest = steps[steps.index(blocks(vit)[-1]) + 1 :]
    logits: Tensor = vit.forward_head(architecture.run(vit, rest, prompts.to(next(vit.parameters()).dtype)))
    return logits


def readers(depth: int) -> list[int]:
    """The blocks in which the images feed the prompts."""
    return sorted({part * depth // 3 for part in range(3)} - {depth - 1})


def token_count(vit: nn.Module) -> int:
    """Number of tokens of an image."""
    architecture = architecture_of(vit)
    rows, columns = architecture.token_grid(vit)
    return architecture.prefix_tokens(vit) + rows * columns
