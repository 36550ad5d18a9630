"""SNELL and SNELLA: updates of weight matrices that are kernels of two small sets of factors, thinned by size."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional

from methods.architectures import architecture_of
from methods.architectures.base import Rows
from methods.base import Attachment, Context, Method, ParameterGroup
from methods.blocks import blocks, plug_layer
from methods.layers import class_token, fold_linears, matrices, uniform
from methods.settings import EvenCount, Probability, Settings, at_least, one_of

FACTOR = torch.tensor(0.1).item()
"""Factor on the difference of distances: 0.1 in float32, as the released code holds it."""


class Kernel(nn.Module):
    """x E; E: [in, out], K where |K| exceeds its quantile at `sparsity`, all of K without sparsity; as `released`,
    K |K| there, whose second factor gets no gradient.

    K_io = 0.1 (|P_1i - Q_1o| - |P_2i - Q_2o|) with P: [2, in, r/2] and Q: [2, out, r/2], Kaiming-uniform by their last
    two axes.
    """

    stateless = True

    def __init__(self, rows: Rows, rank: int, sparsity: float, released: bool, generator: torch.Generator) -> None:
        super().__init__()
        inputs, outputs, half = rows.layer.in_features, rows.stop - rows.start, rank // 2
        self.inputs = uniform(generator, (inputs * half) ** -0.5, 2, inputs, half)
        self.outputs = uniform(generator, (outputs * half) ** -0.5, 2, outputs, half)
        self.sparsity, self.released = sparsity, released

    def kernel(self) -> Tensor:
        """K."""
        first, second = torch.cdist(self.inputs, self.outputs)
        difference: Tensor = FACTOR * (first - second)
        return difference

    def update(self) -> Tensor:
        """E."""
        kernel = self.kernel()
        if self.sparsity == 0:
            return kernel
        size = kernel.detach().abs()
        kept = size > size.flatten().kthvalue(1 + int(self.sparsity * (size.numel() - 1))).values
        return kernel * (size * kept if self.released else kept)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.update().T)


class MixedKernel(Kernel):
    """The same with K + alpha softmax(K / gamma) + beta, the softmax over outputs, in place of K; `mix`: alpha, gamma
    and beta."""

    stateless = True

    def __init__(
        self, rows: Rows, rank: int, sparsity: float, released: bool, generator: torch.Generator, alpha: float
    ) -> None:
        super().__init__(rows, rank, sparsity, released, generator)
        self.mix = nn.Parameter(torch.tensor([alpha, 1.0, 0.0]))

    def kernel(self) -> Tensor:
        """The mixed K."""
        plain, (alpha, gamma, beta) = super().kernel(), self.mix
        mixed: Tensor = plain + alpha * (plain / gamma).softmax(-1) + beta
        return mixed


class Kernels(nn.Module):
    """The updates of one layer's matrices, which follow each other: one dropout of their input, and each left out for
    some samples. x: [..., in] to [..., out]."""

    stateless = True

    def __init__(self, kernels: Sequence[Kernel], dropout: float, drop_path: float) -> None:
        super().__init__()
        self.kernels = nn.ModuleList(kernels)
        self.dropout, self.drop_path = nn.Dropout(dropout), DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(x)
        return torch.cat([self.drop_path(kernel(x)) for kernel in self.kernels], -1)


@dataclass(frozen=True, kw_only=True)
class SNELLConfig(Settings):
    """Knobs of both forms."""

    rank: EvenCount = 32
    """Rank r: columns of both sets of factors together."""

    sparsity: Probability = 0.5
    """Share of each update's entries that are zero."""

    dropout: Probability = 0.1
    """Dropout on the input of the updates, but for those of attention's output projection."""

    drop_path: Probability = 0.1
    """Probability of leaving out an update for a sample, for a window beside the attention layers of Swin."""

    variant: Annotated[str, one_of("masked", "released")] = "masked"
    """`masked`: the large entries of the kernel are the update. `released`: each of them times its own size, as the
    authors' code has it. Without sparsity they are one."""


class SNELL(Method):
    """W + E^T for each weight matrix of the blocks, q, k and v apart, E being a sparse kernel matrix; the class token
    is trained too: 18 * r * L * d + d parameters for L blocks of width d, 5,309,184 on ViT-B/16 with r = 32.

    The kernel is the difference of two distances between the factors of an input and those of an output, so its rank is
    not bound to r. E is small, but not zero, at the start. The paper keeps the entries that are large; the released
    code multiplies each of them with its own size besides, without a gradient of the second factor, which makes the
    update a thousand times smaller at the start (variant `released`). The release chooses the sparsity per task of
    VTAB-1K, from 0 to 0.995, and trains for up to 200 epochs; the dropouts are its own.
    """

    name = "snell"
    title = "SNELL"
    paper = "Shen et al., Expanding Sparse Tuning for Low Memory Usage, NeurIPS 2024, arXiv 2411.01800"
    family = "reparameterisation"
    recipe = {"lr": 1e-3}
    mergeable = True
    identity_at_start = False
    search_space = {
        "lr": (3e-4, 7e-4, 1e-3, 2e-3),
        "weight_decay": (1e-4, 1e-3, 1e-2, 5e-2),
        "sparsity": (0.0, 0.1, 0.5, 0.9, 0.99),
    }
    Config = SNELLConfig
    config: SNELLConfig
    scalars = 0
    """Parameters of a kernel beside its factors."""

    def matrices(self, backbone: nn.Module) -> list[tuple[nn.Linear, list[Rows], bool]]:
        """The linear layers with the matrices that they hold, and whether each projects attention's output."""
        found = []
        for block in blocks(backbone):
            undropped = architecture_of(block).linears(block).get("proj", ())
            found += [(layer, parts, layer in undropped) for layer, parts in matrices(block).items()]
        return found

    def expected_parameters(self, backbone: nn.Module) -> int:
        rows = [rows for _, parts, _ in self.matrices(backbone) for rows in parts]
        sides = sum(int(r.layer.in_features) + r.stop - r.start for r in rows)
        scalars = self.scalars * len(rows)
        return self.config.rank * sides + scalars + sum(token.numel() for token in class_token(backbone))

    def kernel(self, rows: Rows, generator: torch.Generator) -> Kernel:
        """A new update of a matrix."""
        c = self.config
        return Kernel(rows, c.rank, c.sparsity, c.variant == "released", generator)

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        c, found = self.config, self.matrices(backbone)
        for layer, parts, undropped in found:
            kernels = [self.kernel(rows, context.generator) for rows in parts]
            plug_layer(layer, "parallel", Kernels(kernels, 0.0 if undropped else c.dropout, c.drop_path))
        token = class_token(backbone)
        for parameter in token:
            parameter.requires_grad_(True)
        undecayed = ParameterGroup(parameters=tuple(token), weight_decay=0.0)
        return Attachment(merge=partial(fold_linears, [layer for layer, *_ in found]), groups=(undecayed,))


class SNELLA(SNELL):
    """SNELL with a mixed kernel, K + alpha softmax(K / gamma) + beta, of three trained numbers: 18 * L parameters more,
    5,309,400 on ViT-B/16 with r = 32.

    By default nothing is thinned, as the release runs it on VTAB-1K. Its schedule for other data, which allots a
    sparsity to each matrix in every epoch by importance, is not here: `sparsity` is the same for all, and stays.

    The softmax shifts all outputs of a matrix alike. Behind the last layer of a branch the next norm takes such a shift
    away in a plain ViT, but not where LayerScale lies between (DINOv2, DINOv3, BEiT, ConvNeXt): there alpha = 1 starts
    far from the pretrained function, and `alpha=0.0` does not.
    """

    name = "snella"
    title = "SNELLA"
    paper = "Shen et al., Kernelized Sparse Fine-Tuning with Bi-level Parameter Competition, 2025, arXiv 2510.24037"
    search_space = {**SNELL.search_space, "alpha": (0.0, 1.0)}

    @dataclass(frozen=True, kw_only=True)
    class Config(SNELLConfig):
        sparsity: Probability = 0.0
        """Share of each update's entries that are zero."""

        alpha: Annotated[float, at_least(0)] = 1.0
        """Factor on the softmax at the start, 1 in the released code."""

    config: Config
    scalars = 3

    def kernel(self, rows: Rows, generator: torch.Generator) -> MixedKernel:
        c = self.config
        return MixedKernel(rows, c.rank, c.sparsity, c.variant == "released", generator, c.alpha)
