"""MLAE: low-rank updates cut into experts of rank one, which are weighted and dropped one by one."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.layers import uniform
from methods.settings import Count, Positive, Probability
from methods.updates import BranchMethod, UpdateConfig


class Experts(nn.Module):
    """sum_j m_j lambda_j <a_j, dropout(x)> b_j; a: [r, in], b: [r, out], lambda: [r].

    In training m_j is zero with a probability and 1 / (1 - probability) otherwise, the same for all that is in x; in
    eval mode it is one. a starts at U(-in^-1/2, in^-1/2), b at zero, lambda at `alpha`.
    """

    stateless = True

    def __init__(
        self, layer: nn.Linear, rank: int, alpha: float, masked: float, dropout: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.a = uniform(generator, layer.in_features**-0.5, rank, layer.in_features)
        self.b = nn.Parameter(torch.zeros(rank, layer.out_features))
        self.weights = nn.Parameter(torch.full((rank,), alpha))
        self.mask, self.dropout = nn.Dropout(masked), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        code = functional.linear(self.dropout(x), self.a)
        return functional.linear(code * self.mask(self.weights), self.b.T)


class MLAE(BranchMethod):
    """W + sum_j lambda_j b_j a_j^T with r experts for each linear layer of the blocks, which are left out at random for
    a whole batch in training: r * (in + out + 1) parameters per layer, 1,180,032 on ViT-B/16 with r = 8.

    No factor alpha / r: `alpha` is where the weights lambda start. The release is this one layer; which layers are
    changed, and rank, masking and alpha per task, are not in it, so all linear layers and the values here are a choice.
    """

    name = "mlae"
    title = "MLAE"
    paper = "Wang et al., MLAE: Masked LoRA Experts for Visual Parameter-Efficient Fine-Tuning, 2024, arXiv 2405.18897"
    recipe = {"lr": 5e-3}
    search_space = {**BranchMethod.search_space, "rank": (4, 8, 16), "masked": (0.0, 0.3, 0.5)}

    @dataclass(frozen=True, kw_only=True)
    class Config(UpdateConfig):
        rank: Count = 8
        """Number r of experts of each layer."""

        alpha: Positive = 1.0
        """Weight of each expert at the start."""

        masked: Probability = 0.5
        """Probability of leaving out an expert in a training pass."""

        dropout: Probability = 0.0
        """Dropout on the input of the experts."""

    config: Config

    def per_layer(self, layer: nn.Linear) -> int:
        return self.config.rank * (layer.in_features + layer.out_features + 1)

    def branch(self, layer: nn.Linear, generator: torch.Generator) -> Experts:
        c = self.config
        return Experts(layer, c.rank, c.alpha, c.masked, c.dropout, generator)
