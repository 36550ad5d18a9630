"""Matrices and vectors of a model, judged by their sensitive weights: which are trained as a whole, within a budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from methods.architectures import architecture_of
from methods.blocks import blocks
from methods.layers import body_layers

RELEASED_VECTORS = 0.2
"""Share of sensitive entries from which the release trains a vector as a whole."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A matrix or a vector that is judged as one: rows of a layer's parameter."""

    layer: Any
    name: str
    """`weight` or `bias`."""

    rows: tuple[int, int]
    cost: int | None
    """Parameters of what is trained in its place as a whole: of a matrix its modules, of a vector itself; None where
    nothing is, or the modules would not be smaller than the matrix."""

    enough: float
    """Number of sensitive weights from which on it is trained as a whole."""

    singles: bool
    """Whether its weights may be trained one by one."""

    @property
    def weights(self) -> Tensor:
        """What is judged: [rows, inputs] or [rows]."""
        whole: Tensor = getattr(self.layer, self.name)
        return whole[slice(*self.rows)]

    @property
    def size(self) -> int:
        """Number of its weights."""
        return self.weights.numel()

    @property
    def is_matrix(self) -> bool:
        """Whether it is a linear layer's and not a vector."""
        return self.weights.dim() == 2


def cut_segments(
    backbone: nn.Module, cost_of: Callable[[nn.Linear, int], int], threshold: float, released: bool
) -> list[Segment]:
    """Linear layers and norms outside the head cut into matrices and vectors; q, k and v are three each.

    `cost_of`: from a layer and a number of its outputs to the parameters of the modules of that matrix, which it gets
    with `threshold` times as many sensitive weights. Under `released` vectors can be trained as a whole, and the
    weights of norms not one by one.
    """
    fused = {id(rows.layer) for b in blocks(backbone) for rows in architecture_of(b).projections(b) if rows.start}
    segments = []
    for layer in body_layers(backbone, (nn.Linear, nn.LayerNorm)):
        step = len(layer.weight) // (3 if id(layer) in fused else 1)
        for name in ("weight", "bias"):
            parameter = getattr(layer, name)
            for start in range(0, 0 if parameter is None else len(parameter), step):
                size = parameter[:step].numel()
                if parameter.dim() == 2:
                    modules = cost_of(layer, step)
                    cost, enough = modules if modules < size else None, threshold * modules
                else:
                    cost, enough = size if released else None, RELEASED_VECTORS * size
                rows, singles = (start, start + step), not released or isinstance(layer, nn.Linear)
                segments.append(Segment(layer=layer, name=name, rows=rows, cost=cost, enough=enough, singles=singles))
    return segments


def allot(segments: Sequence[Segment], counts: Sequence[int]) -> tuple[list[bool], int]:
    """Which segments are trained as a whole when so many of their weights are sensitive, and what all of it costs."""
    whole = [s.cost is not None and n >= s.enough for s, n in zip(segments, counts, strict=True)]
    return whole, sum(s.cost if yes and s.cost else n for s, yes, n in zip(segments, whole, counts, strict=True))


def choose_whole(segments: Sequence[Segment], scores: Sequence[Tensor], budget: int) -> list[bool]:
    """Which segments are trained as a whole, at the lowest cut-off of sensitivity that keeps all within the budget.

    A segment with `enough` weights above the cut-off is; the others train those weights. scores: sensitivities of each
    segment's weights.
    """

    def at(cut: float) -> tuple[list[bool], int]:
        return allot(segments, [int((s >= cut).sum()) for s in scores])

    low, high = 0.0, 2 * max(float(s.max()) for s in scores)
    best, spent = at(low)
    if spent <= budget:
        return best
    best, _ = at(high)
    for _ in range(64):  # the interval is then far narrower than the gaps between float32 sensitivities that matter
        cut = (low + high) / 2
        whole, spent = at(cut)
        if spent <= budget:
            best, high = whole, cut
            if spent == budget:
                break
        else:
            low = cut
    return best
