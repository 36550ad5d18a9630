"""SPT: sensitive weights are trained one by one, and by LoRA in matrices where they are many."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.base import Attachment, Context, Method, MethodError, check
from methods.blocks import blocks, plug_layer
from methods.layers import body_layers, low_rank
from methods.sparse import fold_sparse, gradient_sums, train_weights

SELECTION_BATCH = 32
"""Images per batch while sensitivities are summed."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A matrix or a vector that is judged as one: rows of a layer's parameter."""

    layer: Any
    name: str
    """`weight` or `bias`."""

    rows: tuple[int, int]
    lora: int | None
    """Parameters of a LoRA in its place; None for a vector, and where that would not be fewer than its own."""


def segments(backbone: nn.Module, rank: int) -> list[Segment]:
    """Linear layers and norms outside the head cut into matrices and vectors; q, k and v are three matrices."""
    fused = {id(b.attn.qkv) for b in blocks(backbone)}
    found = []
    for layer in body_layers(backbone, (nn.Linear, nn.LayerNorm)):
        outputs = len(layer.weight)
        step = outputs // 3 if id(layer) in fused else outputs
        for start in range(0, outputs, step):
            inputs = layer.in_features if isinstance(layer, nn.Linear) else 1
            lora = rank * (inputs + step)
            rows = (start, start + step)
            found.append(Segment(layer=layer, name="weight", rows=rows, lora=lora if lora < inputs * step else None))
        if layer.bias is not None:
            found.append(Segment(layer=layer, name="bias", rows=(0, outputs), lora=None))
    return found


def choose_lora(scores: Sequence[Tensor], costs: Sequence[int | None], budget: int, threshold: float) -> list[bool]:
    """Which segments get a LoRA, at the lowest cut-off of sensitivity that keeps the whole within the budget.

    A segment whose weights above the cut-off number at least `threshold` times its LoRA's parameters gets that LoRA;
    the others train those weights. scores: sensitivities of each segment's weights.
    """

    def at(cut: float) -> tuple[list[bool], int]:
        counts = [int((s >= cut).sum()) for s in scores]
        lora = [cost is not None and n >= threshold * cost for n, cost in zip(counts, costs, strict=True)]
        spent = [cost if yes and cost else n for yes, n, cost in zip(lora, counts, costs, strict=True)]
        return lora, sum(spent)

    low, high = 0.0, 2 * max(float(s.max()) for s in scores)
    chosen, spent = at(low)
    if spent <= budget:
        return chosen
    chosen, _ = at(high)
    for _ in range(64):  # the interval is then far narrower than the gaps between float32 sensitivities that matter
        cut = (low + high) / 2
        lora, spent = at(cut)
        if spent <= budget:
            chosen, high = lora, cut
            if spent == budget:
                break
        else:
            low = cut
    return chosen


class SPTLoRA(Method):
    """Trains exactly round(share * N) parameters, N being the backbone's without head: the weights most sensitive on
    the training data, s = sum of squared gradients over batches, one by one where they are few in a
    matrix, and a LoRA of that matrix where they are many. What the LoRAs leave of the budget goes to the most sensitive
    single weights elsewhere.
    """

    name = "spt_lora"
    title = "SPT-LoRA"
    paper = "He et al., Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning, ICCV 2023, arXiv 2303.08566"
    family = "selective"
    recipe = {"lr": 1e-3}
    mergeable = True
    search_space = {"lr": (5e-4, 1e-3, 2e-3, 5e-3), "weight_decay": (1e-4, 1e-2), "share": (0.0025, 0.005, 0.01)}

    @dataclass(frozen=True, kw_only=True)
    class Config:
        share: float = 0.005
        """Budget as a share of the backbone's parameters: 0.43 M on ViT-B; the released code chooses per task."""

        rank: int = 8
        """Rank of the LoRAs."""

        threshold: float = 1.0
        """A matrix gets a LoRA when its sensitive weights are at least this many times the LoRA's parameters;
        0.2 in the released code."""

        def __post_init__(self) -> None:
            check(0 < self.share < 1, "share", self.share, "between 0 and 1")
            check(self.rank >= 1, "rank", self.rank, "at least 1")
            check(self.threshold > 0, "threshold", self.threshold, "positive")

    def expected_parameters(self, backbone: Any) -> int:
        head = {id(p) for p in backbone.get_classifier().parameters()}
        share, total = self.config.share, sum(p.numel() for p in backbone.parameters() if id(p) not in head)
        budget, most = round(share * total), self.most(backbone)
        check(1 <= budget <= most, "share", share, f"such that 1 to {most} of {total} parameters are trained")
        return budget

    def most(self, backbone: nn.Module) -> int:
        """How many parameters there are when every weight is sensitive: matrices are LoRAs then where these count."""
        rank, threshold = self.config.rank, self.config.threshold
        sizes = [(getattr(s.layer, s.name)[slice(*s.rows)].numel(), s.lora) for s in segments(backbone, rank)]
        return sum(lora if lora is not None and n >= threshold * lora else n for n, lora in sizes)

    def sensitivities(self, backbone: nn.Module, found: Sequence[Segment], context: Context) -> list[Tensor]:
        """Flat sensitivities of each segment's weights, on the whole training split."""
        parameters = {id(p): p for p in (getattr(s.layer, s.name) for s in found)}
        sums = gradient_sums(
            list(parameters.values()),
            context.calibration(SELECTION_BATCH),
            lambda images, labels: cross_entropy(backbone(images), labels),
            torch.square,
        )
        by_parameter = dict(zip(parameters, sums, strict=True))
        return [by_parameter[id(getattr(s.layer, s.name))][slice(*s.rows)].flatten() for s in found]

    def choose(self, scores: Sequence[Tensor], costs: Sequence[int | None], budget: int) -> tuple[list[bool], Tensor]:
        """Which segments get a LoRA, and a mask over all weights in a row of those trained one by one."""
        lora = choose_lora(scores, costs, budget, self.config.threshold)
        left = budget - sum(cost for cost, yes in zip(costs, lora, strict=True) if yes and cost)
        candidates = torch.cat([torch.full_like(s, -1) if yes else s for s, yes in zip(scores, lora, strict=True)])
        if left > int((candidates >= 0).sum()):
            c = self.config
            raise MethodError(f"share={c.share!r} must be lower: LoRAs of rank={c.rank} and vectors cannot use it up")
        mask = torch.zeros(len(candidates), dtype=torch.bool, device=candidates.device)
        mask[candidates.topk(left).indices] = True
        return lora, mask

    def choose_weights(
        self, backbone: nn.Module, found: Sequence[Segment], context: Context
    ) -> tuple[list[bool], Tensor]:
        """Which segments get a LoRA, and the places in a row of all weights of those trained one by one."""
        scores = self.sensitivities(backbone, found, context)
        lora, mask = self.choose(scores, [s.lora for s in found], self.expected_parameters(backbone))
        return lora, mask.nonzero().flatten()

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        start = time.perf_counter()
        found = segments(backbone, self.config.rank)
        lora, singles = context.remember("weights", lambda: self.choose_weights(backbone, found, context))
        seconds = time.perf_counter() - start
        self.train_singles(found, singles)
        for segment, yes in zip(found, lora, strict=True):
            if yes:
                branch = low_rank(segment.layer, self.config.rank, context.generator, rows=segment.rows)
                plug_layer(segment.layer, "parallel", branch)
        layers = list({id(s.layer): s.layer for s in found}.values())
        info = {"lora_matrices": sum(lora), "single_weights": len(singles), "selection_seconds": seconds}
        return Attachment(info=info, merge=partial(fold_sparse, layers))

    def train_singles(self, found: Sequence[Segment], singles: Tensor) -> None:
        """Train the weights at these places in a row of all segments, which follow each other in each parameter."""
        start = 0
        for layer, name in dict.fromkeys((segment.layer, segment.name) for segment in found):
            end = start + getattr(layer, name).numel()
            indices = singles[(singles >= start) & (singles < end)] - start
            if len(indices):
                train_weights(layer, name, indices)
            start = end
