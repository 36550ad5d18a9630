"""FacT: all weight increments of the model are one tensor, stored as a tensor train or in Tucker form.

The increments of a ViT with L blocks are stacked as a tensor [12 L, d, d]: q, k, v and proj are one d x d slice each,
fc1 and fc2 four slices each. On Swin each width has a tensor of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from methods.base import Attachment, Context, Method, MethodError
from methods.blocks import blocks, plug_layer, width
from methods.layers import block_linears, fold_linears, uniform
from methods.settings import Count, Positive, Probability, Settings, one_of


class TensorTrain(nn.Module):
    """Slices U Sigma_n V of the increments; U: [d, r], Sigma: [n, r, r], V: [r, d], zero at the start.

    `inputs` holds for each slice the number of d-wide inputs of its layer: 1, or 4 for fc2. As in the released code, U
    and Sigma start as torch's linear layers do, Sigma from U(-b, b) with b = (inputs * r)^-1/2.
    """

    def __init__(self, d: int, inputs: Sequence[int], rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.u = uniform(generator, d**-0.5, d, rank)
        self.v = nn.Parameter(torch.zeros(rank, d))
        bounds = (rank * torch.tensor(inputs, dtype=torch.get_default_dtype())) ** -0.5
        self.sigma = uniform(generator, bounds[:, None, None], len(inputs), rank, rank)

    def cores(self, start: int, stop: int) -> Tensor:
        """Sigma of these slices: [stop - start, r, r]."""
        return self.sigma[start:stop]


class Tucker(nn.Module):
    """Slices U (sum_c P_nc C_c) V of the increments; C: [r, r, r], P: [n, r], U and V as in `TensorTrain`.

    P and C start Xavier-uniform as in the released code: C, with r^2 inputs and outputs, from U(-b, b), b = 3^1/2 / r.
    """

    def __init__(self, d: int, inputs: Sequence[int], rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.u = uniform(generator, d**-0.5, d, rank)
        self.v = nn.Parameter(torch.zeros(rank, d))
        self.p = uniform(generator, math.sqrt(6 / (rank + len(inputs))), len(inputs), rank)
        self.c = uniform(generator, math.sqrt(3) / rank, rank, rank, rank)

    def cores(self, start: int, stop: int) -> Tensor:
        """The middle matrices of these slices: [stop - start, r, r]."""
        return torch.einsum("nc,abc->nab", self.p[start:stop], self.c)


def reshaped(cores: Tensor, transposed: bool) -> Tensor:
    """The middle matrices that the release of FacT-TK multiplies with in the MLP, made of the regular ones; both
    [n, r, r].

    It stacks the n matrices along a last axis, [r, r, n], and reads that memory as one matrix [r, n * r], of which it
    takes r columns after r columns; for fc2 (`transposed`) it transposes each.
    """
    cut = cores.permute(1, 2, 0).reshape(cores.shape[1], len(cores), -1)
    return cut.permute(1, 2, 0) if transposed else cut.transpose(0, 1)


@dataclass(frozen=True, kw_only=True)
class FactConfig(Settings):
    """Knobs of both forms."""

    rank: Count = 16
    """Rank r of all factors."""

    scale: Positive = 1.0
    """Factor s on the increments; the paper chooses it per task from 0.01 to 100."""

    dropout: Probability = 0.1
    """Dropout on the r-dimensional code in front of V, as in the released code."""


@dataclass(frozen=True, kw_only=True)
class Sliced:
    """A linear layer cut into d x d slices."""

    layer: nn.Linear
    name: str
    """`qkv`, `proj`, `fc1` or `fc2`."""

    slices: int
    split_input: bool
    """Whether the slices lie along its input, where their results add up, and not along its output."""


class FactUpdate(nn.Module):
    """s * x (U Sigma_n V) of one linear layer, whose slices begin at `start`; `released` takes them as `reshaped`
    does."""

    stateless = True

    def __init__(self, factors: nn.Module, sliced: Sliced, start: int, config: FactConfig, released: bool) -> None:
        super().__init__()
        self.factors, self.slices, self.split_input = factors, (start, start + sliced.slices), sliced.split_input
        self.scale, self.released = config.scale, released
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        f: Any = self.factors
        cores = f.cores(*self.slices)
        if self.released:
            cores = reshaped(cores, self.split_input)
        if self.split_input:
            h = torch.einsum("...na,nab->...b", x.unflatten(-1, (len(cores), -1)) @ f.u, cores)
        else:
            h = torch.einsum("...a,nab->...nb", x @ f.u, cores)
        out: Tensor = self.scale * (self.dropout(h) @ f.v)
        return out if self.split_input else out.flatten(-2)


def sliced_layers(backbone: nn.Module) -> dict[int, list[Sliced]]:
    """The linear layers of all blocks, by the width d of their blocks."""
    by_width: dict[int, list[Sliced]] = {}
    for block in blocks(backbone):
        d = width(block)
        for name, layer in block_linears(block):
            inputs, outputs = layer.in_features, layer.out_features
            if min(inputs, outputs) != d or inputs % d or outputs % d:
                raise MethodError(f"FacT cannot cut {name} ({inputs} to {outputs}) into {d} x {d} slices")
            slices, split_input = max(inputs, outputs) // d, inputs > outputs
            sliced = Sliced(layer=layer, name=name, slices=slices, split_input=split_input)
            by_width.setdefault(d, []).append(sliced)
    return by_width


class FactTT(Method):
    """Tensor-train form: 2 * d * r + 12 * L * r^2 parameters for L blocks of width d."""

    name = "fact_tt"
    title = "FacT-TT"
    paper = "Jie and Deng, FacT, AAAI 2023, arXiv 2212.03145"
    family = "reparameterisation"
    composition_order = 21
    Config = FactConfig
    config: FactConfig
    recipe = {"lr": 5e-3}
    mergeable = True
    search_space = {"lr": (1e-3, 5e-3), "scale": (0.1, 1.0, 10.0), "rank": (4, 8, 16)}
    factors: type = TensorTrain

    def core_parameters(self, slices: int) -> int:
        """Parameters beside U and V."""
        return slices * self.config.rank**2

    def expected_parameters(self, backbone: nn.Module) -> int:
        counts = {d: sum(s.slices for s in layers) for d, layers in sliced_layers(backbone).items()}
        return sum(2 * d * self.config.rank + self.core_parameters(slices) for d, slices in counts.items())

    def released(self, sliced: Sliced) -> bool:
        """Whether this layer takes its slices in the order of the release of FacT-TK."""
        return False

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        by_width = sliced_layers(backbone)
        for d, layers in by_width.items():
            inputs = [s.slices if s.split_input else 1 for s in layers for _ in range(s.slices)]
            factors, start = self.factors(d, inputs, self.config.rank, context.generator), 0
            for s in layers:
                plug_layer(s.layer, "parallel", FactUpdate(factors, s, start, self.config, self.released(s)))
                start += s.slices
        return Attachment(merge=partial(fold_linears, [s.layer for layers in by_width.values() for s in layers]))


class FactTK(FactTT):
    """Tucker form: 2 * d * r + 12 * L * r + r^3 parameters for L blocks of width d.

    The default is the regular form of the paper. The release cuts the slices of fc1 and fc2 in another order (variant
    `released`): it reads [r, r, 4] as [r, 4 r] without a permutation, and transposes fc2's.
    """

    name = "fact_tk"
    title = "FacT-TK"
    composition_order = 22
    search_space = {"lr": (1e-3, 5e-3), "scale": (0.1, 1.0, 10.0), "rank": (8, 16, 32)}
    factors = Tucker

    @dataclass(frozen=True, kw_only=True)
    class Config(FactConfig):
        rank: Count = 32
        """Rank r of all factors; at most 32 in the paper."""

        variant: Annotated[str, one_of("paper", "released")] = "paper"
        """`paper`, or `released`: the slices of fc1 and fc2 in the order of the released code."""

    config: Config

    def core_parameters(self, slices: int) -> int:
        return slices * self.config.rank + self.config.rank**3

    def released(self, sliced: Sliced) -> bool:
        return self.config.variant == "released" and sliced.name in ("fc1", "fc2")
