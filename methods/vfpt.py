"""VFPT: VPT-Deep, with some of the prompts of every block in the place of their Fourier transform."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor, nn

from methods.settings import Limit, Probability, least_share, one_of
from methods.vpt import InsertPrompts, PromptConfig, VPTDeep

DIMENSIONS: Mapping[str, tuple[int, ...]] = {"all": (-2, -1), "tokens": (-2,), "channels": (-1,)}
"""Dimensions of [images, tokens, channels] that are transformed."""

SHARE = Limit(requirement="from 0 to 1", holds=lambda share: 0 <= share <= 1)


class FourierPrompts(InsertPrompts):
    """The first `count` prompts enter as the real part of their discrete Fourier transform, which is not normalised."""

    def __init__(self, prompts: Tensor, prefix: int, dropout: float, count: int, dims: tuple[int, ...]) -> None:
        super().__init__(prompts, prefix, dropout)
        self.count, self.dims = count, dims

    def form(self, prompts: Tensor) -> Tensor:
        if self.count == 0:
            return prompts
        first, rest = prompts.split([self.count, prompts.shape[1] - self.count], dim=1)
        exact = first if first.dtype == torch.float64 else first.float()  # half precision has no transform
        return torch.cat([torch.fft.fftn(exact, dim=self.dims).real.to(rest.dtype), rest], dim=1)


class VFPT(VPTDeep):
    """P prompts per block, of which the first floor(fraction * P) enter as f[s, k] = sum over those prompts t and all
    channels c of p[t, c] cos(2 pi (s t / F + k c / d)): L * P * d parameters as VPT-Deep (92,160 on ViT-B/16, P = 10).

    With fraction 0 it is VPT-Deep. At the start, f is about a hundred times as large as a plain prompt: of std
    a * sqrt(F * d / 6), a being the bound of the prompts, 1.6 for F = 5 on ViT-B. The release can put the transformed
    prompts behind the plain ones: the same function, since tokens without a position have no order.
    """

    name = "vfpt"
    title = "VFPT"
    paper = "Zeng et al., Visual Fourier Prompt Tuning, NeurIPS 2024, arXiv 2411.01327"
    recipe = {"lr": 5e-3}
    search_space = {**VPTDeep.search_space, "fraction": (0.0, 0.3, 0.5, 0.7, 1.0)}

    @dataclass(frozen=True, kw_only=True)
    class Config(PromptConfig):
        dropout: Probability = 0.1
        """Dropout on the prompts, before the transform; 0.1 in the release."""

        fraction: Annotated[float, SHARE] = 0.5
        """Share of the prompts that is transformed, rounded down to a number; chosen per task in the paper, 1 in the
        release's example."""

        dimension: Annotated[str, one_of(*DIMENSIONS)] = "all"
        """What is transformed: `all` for prompts and channels, or `tokens` or `channels` alone."""

    config: Config

    def count(self) -> int:
        """Number of prompts that are transformed."""
        return int(self.config.fraction * self.config.tokens)

    def resolve(self, backbone: nn.Module) -> Config:
        """The smallest fraction, to three digits, that transforms as many."""
        return replace(self.config, fraction=least_share(self.config.fraction, self.config.tokens))

    def insertions(self, starts: list[Tensor], prefix: int) -> list[InsertPrompts]:
        c, count = self.config, self.count()
        return [FourierPrompts(start, prefix, c.dropout, count, DIMENSIONS[c.dimension]) for start in starts]
