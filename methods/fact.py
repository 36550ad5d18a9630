"""FacT: all weight increments of the model are one tensor, stored as a tensor train or in Tucker form.

The increments of a ViT with L blocks are stacked as a tensor [12 L, d, d]: q, k, v and proj are one d x d slice each,
fc1 and fc2 four slices each. On Swin each width has a tensor of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Attachment, Context, Method, MethodError, check
from methods.blocks import blocks, plug_layer, width
from methods.layers import block_linears, fold_linears


def uniform(generator: torch.Generator, bound: float, *shape: int) -> nn.Parameter:
    """A parameter drawn from U(-bound, bound)."""
    return nn.Parameter((2 * torch.rand(*shape, generator=generator) - 1) * bound)


class TensorTrain(nn.Module):
    """Slices U Sigma_n V of the increments; U: [d, r], Sigma: [n, r, r], V: [r, d], zero at the start."""

    def __init__(self, d: int, slices: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.u = uniform(generator, d**-0.5, d, rank)
        self.v = nn.Parameter(torch.zeros(rank, d))
        self.sigma = uniform(generator, rank**-0.5, slices, rank, rank)

    def cores(self, start: int, stop: int) -> Tensor:
        """Sigma of these slices: [stop - start, r, r]."""
        return self.sigma[start:stop]


class Tucker(nn.Module):
    """Slices U (sum_c P_nc C_c) V of the increments; C: [r, r, r], P: [n, r], U and V as in `TensorTrain`."""

    def __init__(self, d: int, slices: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.u = uniform(generator, d**-0.5, d, rank)
        self.v = nn.Parameter(torch.zeros(rank, d))
        self.p = uniform(generator, math.sqrt(6 / (rank + slices)), slices, rank)
        self.c = uniform(generator, rank**-0.5, rank, rank, rank)

    def cores(self, start: int, stop: int) -> Tensor:
        """The middle matrices of these slices: [stop - start, r, r]."""
        return torch.einsum("nc,abc->nab", self.p[start:stop], self.c)


class FactUpdate(nn.Module):
    """s * x (U Sigma_n V) of one linear layer, whose slices [start, stop) lie side by side along its output (or, for
    `split_input`, along its input, where their results add up)."""

    stateless = True

    def __init__(
        self, factors: nn.Module, start: int, stop: int, split_input: bool, scale: float, dropout: float
    ) -> None:
        super().__init__()
        self.factors, self.slices, self.split_input, self.scale = factors, (start, stop), split_input, scale
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        f: Any = self.factors
        cores = f.cores(*self.slices)
        if self.split_input:
            h = torch.einsum("...na,nab->...b", x.unflatten(-1, (len(cores), -1)) @ f.u, cores)
            return self.scale * (self.dropout(h) @ f.v)
        h = torch.einsum("...a,nab->...nb", x @ f.u, cores)
        return self.scale * (self.dropout(h) @ f.v).flatten(-2)


def sliced_layers(found: Iterable[Any]) -> list[tuple[nn.Linear, int, bool]]:
    """Each linear layer of blocks of one width with its number of d x d slices and whether they split its input."""
    result = []
    for block in found:
        d = width(block)
        for name, layer in block_linears(block).items():
            inputs, outputs = layer.in_features, layer.out_features
            if min(inputs, outputs) != d or inputs % d or outputs % d:
                raise MethodError(f"FacT cannot cut {name} ({inputs} to {outputs}) into {d} x {d} slices")
            result.append((layer, max(inputs, outputs) // d, inputs > outputs))
    return result


def by_width(backbone: nn.Module) -> dict[int, list[Any]]:
    """The backbone's blocks by number of channels."""
    groups: dict[int, list[Any]] = {}
    for block in blocks(backbone):
        groups.setdefault(width(block), []).append(block)
    return groups


@dataclass(frozen=True, kw_only=True)
class FactConfig:
    """Knobs of both forms."""

    rank: int = 16
    """Rank r of all factors."""

    scale: float = 1.0
    """Factor s on the increments; the paper chooses it per task from 0.01 to 100."""

    dropout: float = 0.1
    """Dropout on the r-dimensional code in front of V, as in the released code."""

    def __post_init__(self) -> None:
        check(self.rank >= 1, "rank", self.rank, "at least 1")
        check(self.scale > 0, "scale", self.scale, "positive")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")


class FactTT(Method):
    """Tensor-train form: 2 * d * r + 12 * L * r^2 parameters for L blocks of width d."""

    name = "fact_tt"
    title = "FacT-TT"
    paper = "Jie and Deng, FacT, AAAI 2023, arXiv 2212.03145"
    family = "reparameterisation"
    Config = FactConfig
    recipe = {"lr": 5e-3}
    mergeable = True
    search_space = {"lr": (1e-3, 5e-3), "scale": (0.1, 1.0, 10.0), "rank": (4, 8, 16)}
    factors: type = TensorTrain

    def core_parameters(self, slices: int) -> int:
        """Parameters beside U and V."""
        return slices * self.config.rank**2

    def expected_parameters(self, backbone: nn.Module) -> int:
        total = 0
        for d, group in by_width(backbone).items():
            total += 2 * d * self.config.rank + self.core_parameters(sum(n for _, n, _ in sliced_layers(group)))
        return total

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        c = self.config
        groups = {d: sliced_layers(group) for d, group in by_width(backbone).items()}
        for d, group in groups.items():
            factors = self.factors(d, sum(n for _, n, _ in group), c.rank, context.generator)
            start = 0
            for layer, count, split_input in group:
                update = FactUpdate(factors, start, start + count, split_input, c.scale, c.dropout)
                plug_layer(layer, "parallel", update)
                start += count
        layers = [layer for group in groups.values() for layer, _, _ in group]
        return Attachment(merge=partial(fold_linears, layers))


class FactTK(FactTT):
    """Tucker form: 2 * d * r + 12 * L * r + r^3 parameters for L blocks of width d."""

    name = "fact_tk"
    title = "FacT-TK"
    search_space = {"lr": (1e-3, 5e-3), "scale": (0.1, 1.0, 10.0), "rank": (8, 16, 32)}
    factors = Tucker

    @dataclass(frozen=True, kw_only=True)
    class Config(FactConfig):
        """As `FactConfig`, with the paper's larger rank."""

        rank: int = 32
        """Rank r of all factors; at most 32 in the paper."""

    def core_parameters(self, slices: int) -> int:
        return slices * self.config.rank + self.config.rank**3
