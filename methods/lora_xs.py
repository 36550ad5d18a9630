"""LoRA-XS: a small matrix between frozen bases of singular vectors is trained."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.base import Attachment, Context, check
from methods.blocks import plug_layer
from methods.layers import fold_linears
from methods.settings import Count, Positive, Probability
from methods.updates import UpdateConfig, UpdateMethod

STD = 1e-5
"""Standard deviation of the trained matrix at the start."""


def left_vectors(weight: Tensor, rank: int) -> Tensor:
    """The first `rank` left singular vectors: [out, r], of at least single precision, in which they are computed."""
    precise = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    vectors: Tensor = torch.linalg.svd(precise, full_matrices=False)[0]
    return vectors[:, :rank].contiguous()


class LatentMap(nn.Module):
    """scale * B R A dropout(x); R: [r, r] is trained, A: [r, in] and B: [out, r] are frozen.

    B holds left singular vectors of the weight W, A the right ones times their singular values: A = B^T W.
    """

    stateless = True

    a: Tensor
    b: Tensor

    def __init__(self, weight: Tensor, b: Tensor, scale: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("a", (b.T.double() @ weight.detach().double()).to(weight.dtype))
        self.register_buffer("b", b)
        self.latent = nn.Parameter(STD * torch.randn(b.shape[1], b.shape[1], generator=generator))
        self.scale, self.dropout = scale, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        code = functional.linear(functional.linear(self.dropout(x), self.a), self.latent)
        return self.scale * functional.linear(code, self.b)


class LoRAXS(UpdateMethod):
    """W + (alpha / r) B R A for each linear layer of the blocks, B and A being the first r singular vectors of W, those
    of the inputs times the singular values: r^2 parameters per layer, 12,288 on ViT-B/16 with r = 16.

    R starts at a standard deviation of 1e-5, close to the pretrained function and not at it. The singular vectors are
    exact here; the release approximates them by a randomised decomposition, which is off by per cents where singular
    values are close. It has no recipe for vision.
    """

    name = "lora_xs"
    title = "LoRA-XS"
    paper = "Bałazy et al., LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters, arXiv 2405.17604"
    recipe = {"lr": 1e-2}
    identity_at_start = False
    search_space = {**UpdateMethod.search_space, "rank": (8, 16, 25)}

    @dataclass(frozen=True, kw_only=True)
    class Config(UpdateConfig):
        rank: Count = 16
        """Rank r, at most the smaller side of each layer; the paper uses up to 25."""

        alpha: Positive = 16.0
        """The update is scaled by alpha / rank."""

        dropout: Probability = 0.0
        """Dropout on the input of the update."""

    config: Config

    def per_layer(self, layer: nn.Linear) -> int:
        narrow, rank = min(layer.in_features, layer.out_features), self.config.rank
        check(rank <= narrow, "rank", rank, f"at most the smaller side of the tuned layers, {narrow}")
        return rank**2

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        self.expected_parameters(backbone)  # refuses what does not fit
        c, layers = self.config, self.layers(backbone)
        vectors = context.remember("vectors", lambda: [left_vectors(layer.weight, c.rank) for layer in layers])
        branches = []
        for layer, b in zip(layers, vectors, strict=True):
            branch = LatentMap(layer.weight, b.to(layer.weight), c.alpha / c.rank, c.dropout, context.generator)
            plug_layer(layer, "parallel", branch)
            branches.append(branch)
        frozen = tuple(tensor for branch in branches for tensor in branch.buffers())
        return Attachment(merge=partial(fold_linears, layers), recomputed=frozen)
