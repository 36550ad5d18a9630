"""DA-VPT: deep prompts, some of which are pulled towards the patches and class tokens of their classes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.architectures import architecture_of
from methods.base import Attachment, Batch, Context, Method, check
from methods.blocks import blocks, plug, require_served, width
from methods.clusters import class_means, cluster
from methods.layers import block_linears, class_token, draw_uniform, projections
from methods.settings import Count, Settings, at_least
from methods.sparse import train_weights
from methods.vpt import InsertPrompts, RemovePrompts

SHARPNESS, MARGIN, LENGTH = 32.0, 0.1, 5.0
"""Of the metric loss: factor and margin of the similarities, and length of the prompts (alpha, delta, kappa)."""

PARTS = ("proj", "fc2", "key", "value", "norm1", "norm2", "class_token")
"""What of the backbone can be trained besides."""

Weight = Annotated[float, at_least(0)]

Trained = tuple[list[nn.Parameter], list[tuple[Any, int, int]]]
"""Whole parameters of the backbone, and rows (from, to) of the biases of layers."""


def anchor_loss(anchors: Tensor, prompts: Tensor, own: Tensor) -> Tensor:
    """A(u) = mean_t log(1 + sum_{b of t} exp(-32 (S - 0.1))) + mean_t log(1 + sum_{b not of t} exp(32 (S + 0.1))),
    S = <u_b / |u_b|, 5 p_t / |p_t|>.

    anchors u: [batch, d]; prompts p: [P, d]; own: [batch], the prompt of each image's class. A prompt that no image
    has, or every one, adds nothing to the first or the second mean.
    """
    similarity = functional.normalize(anchors, dim=1) @ (LENGTH * functional.normalize(prompts, dim=1)).T
    mine = own[:, None] == torch.arange(len(prompts), device=own.device)
    pull = _log_one_plus_sum(-SHARPNESS * (similarity - MARGIN), mine)
    push = _log_one_plus_sum(SHARPNESS * (similarity + MARGIN), ~mine)
    return pull.mean() + push.mean()


def _log_one_plus_sum(exponents: Tensor, chosen: Tensor) -> Tensor:
    """log(1 + sum of exp(exponents) over the chosen rows of each column), without overflow."""
    return functional.pad(exponents.masked_fill(~chosen, -math.inf), (0, 0, 1, 0)).logsumexp(dim=0)


class Guide:
    """The metric loss of one guided block, read from what enters it: [batch, prefix + P + patches, d]. It guides the
    first `count` prompts."""

    def __init__(self, block: Any, insert: InsertPrompts, count: int, name: str, has_class_token: bool) -> None:
        self.block, self.insert, self.count = block, insert, count
        self.name, self.has_class_token = name, has_class_token
        self.query, _, _ = projections(block)
        self.query_biases = architecture_of(block).biases(block)[:1]  # of attention that holds them itself

    def anchors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the patches, and the query of the class token: [batch, d] each. Without a class token the
        second is the query of that mean."""
        patches = x[:, self.insert.prefix + len(self.insert.prompts) :].mean(dim=1)
        read = self.block.attention_reads(x[:, 0] if self.has_class_token else patches)
        return patches, sum(self.query_biases, self.query.layer(read)[:, self.query.start : self.query.stop])

    def loss(self, batch: Batch, own: Tensor, patch_weight: float, class_weight: float) -> Tensor:
        """w1 A(patches) + w2 A(query)."""
        prompts = self.insert.prompts[: self.count]
        patches, query = self.anchors(batch.features[self.name].to(prompts.dtype))
        to_patches, to_query = (anchor_loss(anchor, prompts, own) for anchor in (patches, query))
        return patch_weight * to_patches + class_weight * to_query


class DAVPT(Method):
    """P' new prompts in every block, P in the last G ones, which are guided, and biases, norms and the class token of
    the backbone: G*P*d + (L - G)*P'*d + 7*L*d + d parameters, 249,600 on ViT-B/16.

    In training, mean over the guided blocks of w1 A(mean of the patches that enter) + w2 A(query of the class token
    that enters) is added to the loss, see `anchor_loss`. The prompt of a class is found before training by k-means of
    the classes' mean features, and stays: the release may cluster again after each epoch of training, with the features
    of that epoch, but a method is not told when an epoch ends. Batches are drawn as for every method, not by class.

    The settings of the release's files are not loaded by its code, which falls back on one guided block and no metric
    loss. The files name weights from 0.01 to 1; here it is 0.01, since the metric loss of new prompts is several times
    a cross-entropy. The prompts start so small that AdamW needs a low rate: a step of 5e-3 is larger than they are.
    """

    name = "da_vpt"
    title = "DA-VPT"
    paper = "Ren et al., DA-VPT: Semantic-Guided Visual Prompt Tuning, CVPR 2025, arXiv 2505.23694"
    family = "prompt"
    recipe = {"lr": 5e-4}
    search_space = {
        "lr": (2e-4, 5e-4, 1e-3, 5e-3),
        "weight_decay": (1e-4, 1e-2),
        "tokens": (5, 10, 20, 60),
        "patch_weight": (0.01, 0.1, 1.0),
        "class_weight": (0.01, 0.1, 1.0),
    }
    needs = frozenset({"sequence", "attention"})
    identity_at_start = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        tokens: Count = 20
        """Number P' of prompts of a block that is not guided."""

        guided_tokens: Count = 20
        """Number P of prompts of a guided block; of more than there are classes the rest is not guided, where the
        release has none."""

        guided_blocks: Count = 1
        """Number G of guided blocks, the last ones; 1 is the release's default."""

        patch_weight: Weight = 0.01
        """Weight w1 of the distance from the mean patch."""

        class_weight: Weight = 0.01
        """Weight w2 of the distance from the class token's query."""

        besides: tuple[str, ...] = PARTS
        """What of the backbone is trained besides, where it is there: the biases of `proj`, `fc2`, `key`, `value` and
        `norm2`, the whole of `norm1`, the `class_token`. () is the release's default, all is that of its files for
        supervised ViT-B."""

        def __post_init__(self) -> None:
            super().__post_init__()
            distinct = len(set(self.besides)) == len(self.besides)
            check(distinct and set(self.besides) <= set(PARTS), "besides", self.besides, f"some of {PARTS}, each once")
            object.__setattr__(self, "besides", tuple(part for part in PARTS if part in self.besides))

    config: Config

    def counts(self, backbone: nn.Module) -> list[int]:
        """Number of prompts of each block. Raises `MethodError` if more blocks are guided than there are."""
        c, depth = self.config, len(blocks(require_served(self, backbone)))
        check(c.guided_blocks <= depth, "guided_blocks", c.guided_blocks, f"at most the number of blocks, {depth}")
        return [c.tokens] * (depth - c.guided_blocks) + [c.guided_tokens] * c.guided_blocks

    def besides(self, backbone: nn.Module) -> Trained:
        """What of the backbone is trained."""
        parts, vit_blocks = self.config.besides, blocks(backbone)
        whole: list[nn.Parameter | None] = [*class_token(backbone)] if "class_token" in parts else []
        rows: list[tuple[Any, int, int]] = []
        for block in vit_blocks:
            architecture = architecture_of(block)
            linears = [name for name in ("proj", "fc2") if name in parts]
            whole += [layer.bias for _, layer in (block_linears(block, linears) if linears else ())]
            norm1, norm2 = architecture.norms(block)
            whole += norm1.parameters() if "norm1" in parts else []
            whole += [getattr(norm2, "bias", None)] if "norm2" in parts else []
            whole += architecture.biases(block)[1:] if "value" in parts else []  # those of the queries come first
            for name, place in zip(("key", "value"), projections(block)[1:], strict=True):
                if name in parts and place.layer.bias is not None:
                    rows.append((place.layer, place.start, place.stop))
        return [parameter for parameter in whole if parameter is not None], rows

    def expected_parameters(self, backbone: nn.Module) -> int:
        counts = self.counts(backbone)
        prompts = sum(count * width(block) for block, count in zip(blocks(backbone), counts, strict=True))
        whole, rows = self.besides(backbone)
        return prompts + sum(p.numel() for p in whole) + sum(stop - start for _, start, stop in rows)

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        vit, counts = require_served(self, backbone), self.counts(backbone)
        prompts_of = context.remember("prompts of the classes", lambda: self.map_classes(vit, counts[-1], context))
        whole, rows = self.besides(vit)
        for parameter in whole:
            parameter.requires_grad_(True)
        for layer in dict.fromkeys(layer for layer, _, _ in rows):
            places = [torch.arange(start, stop) for other, start, stop in rows if other is layer]
            train_weights(layer, "bias", torch.cat(places))
        inserts = self.plug_prompts(vit, counts, context.generator)
        names = {module: name for name, module in vit.named_modules()}
        guided = list(zip(blocks(vit), inserts, strict=True))[-self.config.guided_blocks :]
        count, has_class_token = min(counts[-1], context.num_classes), bool(class_token(vit))
        guides = [Guide(block, insert, count, names[insert], has_class_token) for block, insert in guided]
        penalty = self.penalty(guides, prompts_of.to(context.device))
        return Attachment(penalty=penalty, features=tuple(guide.name for guide in guides))

    def map_classes(self, vit: Any, count: int, context: Context) -> Tensor:
        """The prompt of each class: [classes]."""
        means = class_means(vit, context)
        return cluster(functional.layer_norm(means, means.shape[-1:]), count, context.generator)

    def plug_prompts(self, vit: Any, counts: Sequence[int], generator: torch.Generator) -> list[InsertPrompts]:
        """Prompts of their own in every block, guided and plain ones drawn as two tensors [blocks, P, d] by Xavier's
        uniform rule, of which an eighth is taken."""
        architecture, vit_blocks, inserts = architecture_of(vit), blocks(vit), []
        plain, prefix = len(vit_blocks) - self.config.guided_blocks, architecture.prefix_tokens(vit)
        for number, (block, count) in enumerate(zip(vit_blocks, counts, strict=True)):
            d, together = width(block), plain if number < plain else self.config.guided_blocks
            bound = math.sqrt(6 / (count * d + together * d)) / 8
            prompts = draw_uniform(generator, bound, count, d)
            inserts.append(InsertPrompts(prompts, prefix, dropout=0.0))
            plug(block, "input", inserts[-1])
            plug(block, "output", RemovePrompts(count, prefix))
            architecture.add_prefix_tokens(block, count)
        return inserts

    def penalty(self, guides: Sequence[Guide], prompts_of: Tensor) -> Callable[[Batch], Tensor]:
        """The metric loss; `prompts_of`: [classes]."""
        weights = self.config.patch_weight, self.config.class_weight

        def metric_loss(batch: Batch) -> Tensor:
            own = prompts_of[batch.labels]
            return torch.stack([guide.loss(batch, own, *weights) for guide in guides]).mean()

        return metric_loss
