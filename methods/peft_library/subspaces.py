"""Tuners inside subspaces of the frozen weights: AdaMSS (clusters of one weight), FRoD (a basis of all layers)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from methods.base import check
from methods.peft_library.common import LayersConfig, PeftMethod, RankConfig, check_rank


class AdaMSS(PeftMethod):
    """The outputs of a layer are clustered by the weight's r leading singular vectors, and each of k clusters gets an
    update of rank one from the leading input directions: k r + out."""

    name = "adamss"
    title = "AdaMSS"
    paper = "AdaMSS: Adaptive Multi-Subspace Approach, NeurIPS 2025, as implemented by peft without its rank schedule"
    peft_class = "AdamssConfig"
    recipe = {"lr": 1e-2}

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        rank: int = 16
        """Number r of singular vectors; at most the smaller side of the layers."""

        clusters: int = 5
        """Number k of clusters."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check(self.clusters >= 1, "clusters", self.clusters, "at least 1")

    def per_layer(self, layer: nn.Linear) -> int:
        k, out = self.config.clusters, layer.out_features
        check_rank(self.config.rank, layer)
        check(k <= out, "clusters", k, f"at most the output width of the tuned layers, {out}")
        return int(k * self.config.rank + out)

    def options(self, backbone: nn.Module, seed: int) -> dict[str, Any]:
        c = self.config
        return {"r": c.rank, "num_subspaces": c.clusters, "random_seed": seed}


class FRoD(PeftMethod):
    """All layers of one name share a basis from their joint decomposition; each trains the diagonal in it and a share s
    of the other entries, at least one, at random places: in + max(1, s in^2). The layers must be equal in shape, which
    Swin's are not."""

    name = "frod"
    title = "FRoD"
    paper = "FRoD, AAAI 2026, doi 10.1609/aaai.v40i31.39813"
    peft_class = "FrodConfig"
    recipe = {"lr": 5e-3}
    serves = frozenset({"vit"})

    @dataclass(frozen=True, kw_only=True)
    class Config(LayersConfig):
        sparsity: float = 0.01
        """Share s of the off-diagonal entries that are trained."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check(0 < self.sparsity <= 0.5, "sparsity", self.sparsity, "above 0 and at most 0.5")

    def per_layer(self, layer: nn.Linear) -> int:
        return layer.in_features + max(1, int(layer.in_features**2 * self.config.sparsity))

    def options(self, backbone: nn.Module, seed: int) -> dict[str, Any]:
        c = self.config
        return {"sparse_rate": c.sparsity, "projection_prng_key": seed, "progressbar": False}
