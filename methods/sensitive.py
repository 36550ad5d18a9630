"""What the SPT methods share: the most sensitive weights are trained within a budget, one by one where they are few in
a matrix, and by modules of the matrix's own where they are many."""

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.architectures import architecture_of
from methods.base import Attachment, Context, Method, MethodError, check
from methods.blocks import blocks
from methods.layers import body_parameters, class_token
from methods.segments import Segment, allot, choose_whole, cut_segments
from methods.settings import Count, Limit, Positive, Settings, one_of
from methods.sparse import gradient_sums, train_weights

SELECTION_BATCH = 32
"""Images per batch while sensitivities are summed."""

SHARE = Limit(requirement="between 0 and 1", holds=lambda share: 0 < share < 1)

THRESHOLDS = {"paper": 1.0, "released": 0.1}
"""Variant to its own threshold."""

RELEASED_BATCHES = 16
"""Batches, the first ones, whose gradients the release looks at."""

RELEASED_DROPOUT = 0.1
"""Of the input of a matrix's modules (of those beside `proj` none), and probability of leaving one out for a sample."""

RELEASED_STD = 0.02
"""Of the weights of a matrix's modules, all of them: the released constructor draws all linear layers again."""


class Dropped(nn.Module):
    """The sum of some modules as the release has it: fed with one input under dropout, each left out for some
    samples."""

    stateless = True

    def __init__(self, branches: Sequence[nn.Module], dropout: float, drop_path: float) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.dropout, self.drop_path = nn.Dropout(dropout), DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., inputs] to [..., outputs]."""
        x = self.dropout(x)
        total: Tensor = sum(self.drop_path(branch(x)) for branch in self.branches)
        return total


@dataclass(frozen=True, kw_only=True)
class SensitiveConfig(Settings):
    """Knobs of all forms."""

    share: Annotated[float, SHARE] = 0.005
    """Budget as a share of the backbone's parameters: 0.43 M on ViT-B. The release chooses it per task, from 0.2 to
    1.0 M."""

    rank: Count = 8
    """Rank of the LoRAs, width of the adapters."""

    threshold: Positive | None = None
    """A matrix gets its modules when its sensitive weights are at least this many times their parameters; None is the
    variant's own: 1, and 0.1 for `released`."""

    variant: Annotated[str, one_of(*THRESHOLDS)] = "paper"
    """`paper`, or `released`: as the authors' scripts run it."""


class SensitiveMethod(Method):
    """Trains exactly round(share * N) parameters, N being the backbone's without head. Subclasses say what a matrix
    with many sensitive weights gets (`cost`, `plug_whole`)."""

    family = "selective"
    recipe = {"lr": 1e-3}
    search_space = {"lr": (5e-4, 1e-3, 2e-3, 5e-3), "weight_decay": (1e-4, 1e-2), "share": (0.0025, 0.005, 0.01)}
    Config = SensitiveConfig
    config: SensitiveConfig
    whole_name: str
    """Name in the record of the number of matrices with modules of their own."""

    @abstractmethod
    def cost(self, backbone: nn.Module) -> Callable[[nn.Linear, int], int]:
        """From a layer and a number of its outputs to the parameters of the modules of that matrix."""

    @abstractmethod
    def plug_whole(self, backbone: nn.Module, matrices: Sequence[Segment], generator: torch.Generator) -> None:
        """Give these matrices their modules."""

    def merge_for(self, layers: Sequence[nn.Module]) -> Callable[[], None] | None:
        """`Attachment.merge` for these layers, all that may have changed."""
        return None

    @property
    def released(self) -> bool:
        """Whether this is the variant `released`."""
        return self.config.variant == "released"

    def starts_at_identity(self) -> bool:
        return not self.released

    def threshold(self) -> float:
        """The threshold asked for or the variant's own."""
        return THRESHOLDS[self.config.variant] if self.config.threshold is None else self.config.threshold

    def resolve(self, backbone: nn.Module) -> SensitiveConfig:
        return replace(self.config, threshold=self.threshold())

    def segments(self, backbone: nn.Module) -> list[Segment]:
        """The backbone's segments as this configuration judges them."""
        return cut_segments(backbone, self.cost(backbone), self.threshold(), self.released)

    def class_token(self, backbone: Any) -> list[nn.Parameter]:
        """The class token, where there is one and it is trained."""
        return class_token(backbone) if self.released else []

    def expected_parameters(self, backbone: nn.Module) -> int:
        share, total = self.config.share, sum(p.numel() for p in body_parameters(backbone))
        token, segments = sum(p.numel() for p in self.class_token(backbone)), self.segments(backbone)
        _, most = allot(segments, [s.size for s in segments])  # when every weight is sensitive
        budget, least = round(share * total), token + 1
        fits = least <= budget <= token + most
        check(fits, "share", share, f"such that {least} to {token + most} of {total} parameters are trained")
        return budget

    def sensitivities(self, backbone: nn.Module, segments: Sequence[Segment], context: Context) -> list[Tensor]:
        """Flat sensitivities of each segment's weights, on the whole training split or its first batches."""
        parameters = list(dict.fromkeys(getattr(s.layer, s.name) for s in segments))
        sums = gradient_sums(
            parameters,
            islice(context.calibration(SELECTION_BATCH), RELEASED_BATCHES if self.released else None),
            lambda images, labels: cross_entropy(backbone(images), labels),
            torch.square,
        )
        by_parameter = dict(zip(parameters, sums, strict=True))
        return [by_parameter[getattr(s.layer, s.name)][slice(*s.rows)].flatten() for s in segments]

    def choose(self, backbone: nn.Module, segments: Sequence[Segment], context: Context) -> tuple[list[bool], Tensor]:
        """Which segments are trained as a whole, and the places in a row of all weights of those that are trained
        themselves: in whole vectors, and one by one."""
        scores = self.sensitivities(backbone, segments, context)
        budget = self.expected_parameters(backbone) - sum(p.numel() for p in self.class_token(backbone))
        whole = choose_whole(segments, scores, budget)
        left = budget - sum(s.cost for s, yes in zip(segments, whole, strict=True) if yes and s.cost)
        candidates, kept = [], []
        for score, segment, yes in zip(scores, segments, whole, strict=True):
            candidates.append(score if segment.singles and not yes else torch.full_like(score, -1))
            kept.append(torch.full_like(score, yes and not segment.is_matrix, dtype=torch.bool))
        singles, mask = torch.cat(candidates), torch.cat(kept)
        if left > int((singles >= 0).sum()):
            c = self.config
            what = f"what matrices of rank={c.rank} and vectors are given cannot use it up"
            raise MethodError(f"share={c.share!r} must be lower: {what}")
        mask[singles.topk(left).indices] = True
        return whole, mask.nonzero().flatten()

    def attach(self, backbone: Any, context: Context) -> Attachment:
        start = time.perf_counter()
        segments = self.segments(backbone)
        whole, places = context.remember("weights", lambda: self.choose(backbone, segments, context))
        seconds = time.perf_counter() - start
        wholes = [s for s, yes in zip(segments, whole, strict=True) if yes]
        matrices, vectors = [s for s in wholes if s.is_matrix], [s for s in wholes if not s.is_matrix]
        self.train_in_place(segments, places)
        self.plug_whole(backbone, matrices, context.generator)
        for token in self.class_token(backbone):
            token.requires_grad_(True)
        info = {
            self.whole_name: len(matrices),
            "whole_vectors": len(vectors),
            "single_weights": len(places) - sum(s.size for s in vectors),
            "selection_seconds": seconds,
        }
        return Attachment(info=info, merge=self.merge_for(list(dict.fromkeys(s.layer for s in segments))))

    def train_in_place(self, segments: Sequence[Segment], places: Tensor) -> None:
        """Train the weights at these places in a row of all segments, which follow each other in each parameter."""
        start = 0
        for layer, name in dict.fromkeys((segment.layer, segment.name) for segment in segments):
            end = start + getattr(layer, name).numel()
            indices = places[(places >= start) & (places < end)] - start
            if len(indices):
                train_weights(layer, name, indices)
            start = end


def attention_outputs(backbone: nn.Module) -> set[nn.Module]:
    """The layers that project what attention gives."""
    return {layer for b in blocks(backbone) for layer in architecture_of(b).linears(b).get("proj", ())}
