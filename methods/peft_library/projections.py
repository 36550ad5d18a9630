"""Tuners that train a few numbers in a fixed basis: random projections, vector banks, frequencies, sparse entries."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from methods.base import HIGH_RATES, check
from methods.peft_library.common import (
    LayersConfig,
    PeftMethod,
    RankConfig,
    ScaledRankConfig,
    check_rank,
)


@dataclass(frozen=True, kw_only=True)
class SharedBasisConfig(RankConfig):
    """Knobs of VeRA and PVeRA."""

    rank: int = 256
    """Rank r of the shared random factors."""

    start: float = 0.1
    """Start of the scales inside the rank space; the other scales start at zero, so this one must not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(math.isfinite(self.start) and self.start != 0, "start", self.start, "finite and not zero")


class VeRA(PeftMethod):
    """LoRA with random factors that all layers share; two scale vectors per layer are trained: r + out."""

    name = "vera"
    title = "VeRA"
    paper = "Kopiczko et al., VeRA, ICLR 2024, arXiv 2310.11454"
    peft_class = "VeraConfig"
    Config = SharedBasisConfig
    recipe = {"lr": 2e-2}
    search_space = HIGH_RATES

    def per_layer(self, layer: nn.Linear) -> int:
        return int(self.config.rank + layer.out_features)

    def options(self, backbone: nn.Module, seed: int) -> dict[str, Any]:
        c = self.config
        return {"r": c.rank, "d_initial": c.start, "projection_prng_key": seed}


class PVeRA(PeftMethod):
    """VeRA whose rank-space activations are sampled in training; mean and variance are trained: 2 r + out."""

    name = "pvera"
    title = "PVeRA"
    paper = "PVeRA, 2025, arXiv 2512.07703"
    peft_class = "PveraConfig"
    Config = SharedBasisConfig
    recipe = {"lr": 1e-2}
    search_space = HIGH_RATES

    def per_layer(self, layer: nn.Linear) -> int:
        return int(2 * self.config.rank + layer.out_features)

    def options(self, backbone: nn.Module, seed: int) -> dict[str, Any]:
        c = self.config
        return {"r": c.rank, "d_initial": c.start, "projection_prng_key": seed}


class RandLoRA(PeftMethod):
    """Sum of n = ceil(min(in, out) / r) shared random updates of rank r with trained scales, of full rank in sum:
    n (r + min(in, out))."""

    name = "randlora"
    title = "RandLoRA"
    paper = "Albert et al., RandLoRA, ICLR 2025, arXiv 2502.00987"
    peft_class = "RandLoraConfig"
    recipe = {"lr": 1e-3}

    @dataclass(frozen=True, kw_only=True)
    class Config(ScaledRankConfig):
        rank: int = 32
        """Rank r of each random update: the larger, the fewer parameters."""

        alpha: float = 640.0
        """The update is scaled by alpha / rank; peft's default is 20 times its default rank."""

    def per_layer(self, layer: nn.Linear) -> int:
        smaller = min(layer.in_features, layer.out_features)
        return int(math.ceil(smaller / self.config.rank) * (self.config.rank + smaller))

    def options(self, backbone: nn.Module, seed: int) -> dict[str, Any]:
        c = self.config
        return {"r": c.rank, "randlora_alpha": c.alpha, "projection_prng_key": seed}


class VBLoRA(PeftMethod):
    """LoRA whose factors are cut into vectors of length v, each a mix of the best of h bank vectors that all layers
    share: r (in + out) / v * h mixing weights per layer and h v for the bank."""

    name = "vblora"
    title = "VB-LoRA"
    paper = "Li et al., VB-LoRA, NeurIPS 2024, arXiv 2405.15179"
    peft_class = "VBLoRAConfig"
    identity_at_start = False
    recipe = {"lr": 1e-2}
    search_space = HIGH_RATES

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        rank: int = 4
        """Rank r of the update."""

        vectors: int = 90
        """Number h of vectors in the bank."""

        length: int | None = None
        """Length v of the bank's vectors; None is the largest power of two that divides the layers' widths: 256 of
        ViT-B, as published."""

        top: int = 2
        """Number of bank vectors that are mixed; the weight of a single one would be 1 whatever is learnt."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check(self.vectors >= 2, "vectors", self.vectors, "at least 2")
            check(self.length is None or self.length >= 1, "length", self.length, "at least 1")
            check(2 <= self.top <= self.vectors, "top", self.top, "between 2 and vectors")

    config: Config

    def resolve(self, backbone: nn.Module) -> Config:
        return replace(self.config, length=self.length(backbone))

    def length(self, backbone: nn.Module) -> int:
        """The length v that is used on this backbone. Raises `MethodError` if it does not divide a width."""
        common = math.gcd(*(size for layer in self.layers(backbone) for size in layer.weight.shape))
        length = self.config.length or common & -common
        check(common % length == 0, "length", length, f"a divisor of the layers' widths, whose divisor is {common}")
        return int(length)

    def expected_parameters(self, backbone: nn.Module) -> int:
        c, length = self.config, self.length(backbone)
        cuts = sum(sum(layer.weight.shape) // length for layer in self.layers(backbone))
        return int(c.rank * cuts * c.vectors + c.vectors * length)

    def options(self, backbone: nn.Module, seed: int) -> dict[str, Any]:
        c = self.config
        size = {"num_vectors": c.vectors, "vector_length": self.length(backbone), "topk": c.top}
        return {"r": c.rank, **size}


class UniLoRA(PeftMethod):
    """All LoRA factors of all layers are one random isometry of one trained vector of t numbers: t in all."""

    name = "unilora"
    title = "Uni-LoRA"
    paper = "Li et al., Uni-LoRA, NeurIPS 2025, arXiv 2506.00799"
    peft_class = "UniLoraConfig"
    identity_at_start = False
    recipe = {"lr": 1e-2}
    search_space = HIGH_RATES

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        rank: int = 4
        """Rank r of the update."""

        numbers: int = 512
        """Length t of the trained vector."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check(self.numbers >= 1, "numbers", self.numbers, "at least 1")

    def expected_parameters(self, backbone: nn.Module) -> int:
        self.layers(backbone)
        return int(self.config.numbers)

    def options(self, backbone: nn.Module, seed: int) -> dict[str, Any]:
        c = self.config
        return {"r": c.rank, "theta_d_length": c.numbers, "proj_seed": seed}


class TinyLoRA(PeftMethod):
    """Between the r leading singular directions of the weight, a random mix of u trained numbers: u per layer."""

    name = "tinylora"
    title = "TinyLoRA"
    paper = "Morris et al., Learning to Reason in 13 Parameters (TinyLoRA), 2026, arXiv 2602.04118"
    peft_class = "TinyLoraConfig"
    recipe = {"lr": 1e-2}
    search_space = HIGH_RATES

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        rank: int = 2
        """Number r of singular directions."""

        numbers: int = 64
        """Numbers u trained per layer."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check(self.numbers >= 1, "numbers", self.numbers, "at least 1")

    def per_layer(self, layer: nn.Linear) -> int:
        check_rank(self.config.rank, layer)
        return int(self.config.numbers)

    def options(self, backbone: nn.Module, seed: int) -> dict[str, Any]:
        c = self.config
        return {"r": c.rank, "u": c.numbers, "projection_seed": seed}


class FourierFT(PeftMethod):
    """n random frequencies of the update's two-dimensional spectrum, drawn from a normal distribution: n per layer."""

    name = "fourierft"
    title = "FourierFT"
    paper = "Gao et al., FourierFT, ICML 2024, arXiv 2405.03003"
    peft_class = "FourierFTConfig"
    identity_at_start = False
    recipe = {"lr": 1e-2}
    search_space = HIGH_RATES

    @dataclass(frozen=True, kw_only=True)
    class Config(LayersConfig):
        frequencies: int = 1000
        """Number n of trained frequencies."""

        scale: float = 150.0
        """Factor on the update; 300 for ViT in the paper, with the query and value layers apart."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check(self.frequencies >= 1, "frequencies", self.frequencies, "at least 1")
            check(self.scale > 0, "scale", self.scale, "positive")

    def per_layer(self, layer: nn.Linear) -> int:
        n, entries = self.config.frequencies, layer.weight.numel()
        check(n <= entries, "frequencies", n, f"at most the entries of the tuned layers, {entries}")
        return int(n)

    def options(self, backbone: nn.Module, seed: int) -> dict[str, Any]:
        c = self.config
        return {"n_frequency": c.frequencies, "scaling": c.scale, "random_loc_seed": seed}


class WaveFT(PeftMethod):
    """n random wavelet coefficients of the update (Daubechies 1): n per layer."""

    name = "waveft"
    title = "WaveFT"
    paper = "Bilican et al., WaveFT, 2025, arXiv 2505.12532"
    peft_class = "WaveFTConfig"
    recipe = {"lr": 2e-3}

    @dataclass(frozen=True, kw_only=True)
    class Config(LayersConfig):
        coefficients: int = 1000
        """Number n of trained coefficients."""

        scale: float = 25.0
        """Factor on the update."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check(self.coefficients >= 1, "coefficients", self.coefficients, "at least 1")
            check(self.scale > 0, "scale", self.scale, "positive")

    def per_layer(self, layer: nn.Linear) -> int:
        n, entries = self.config.coefficients, layer.weight.numel()
        check(n <= entries, "coefficients", n, f"at most the entries of the tuned layers, {entries}")
        return int(n)

    def options(self, backbone: nn.Module, seed: int) -> dict[str, Any]:
        c = self.config
        return {"n_frequency": c.coefficients, "scaling": c.scale, "random_loc_seed": seed}


class SHiRA(PeftMethod):
    """As many entries of the weight as LoRA of rank r has parameters, at random places: r (in + out)."""

    name = "shira"
    title = "SHiRA"
    paper = "Bhardwaj et al., SHiRA, NeurIPS 2024, arXiv 2406.13175"
    family = "selective"
    peft_class = "ShiraConfig"
    Config = RankConfig
    recipe = {"lr": 2e-3}

    def per_layer(self, layer: nn.Linear) -> int:
        each, entries = layer.in_features + layer.out_features, layer.weight.numel()
        fits = self.config.rank * each <= entries
        check(fits, "rank", self.config.rank, f"at most {entries // each}: a tuned layer has {entries} entries")
        return int(self.config.rank * each)

    def options(self, backbone: nn.Module, seed: int) -> dict[str, Any]:
        return {"r": self.config.rank, "random_seed": seed}


class SuperTuning(PeftMethod):
    """The largest entries of the weight: (1 - sparsity) in out, rounded down."""

    name = "supertuning"
    title = "Super"
    paper = "Super, arXiv 2607.09287 (as cited by peft)"
    family = "selective"
    peft_class = "SupertuningConfig"
    recipe = {"lr": 2e-2}
    search_space = HIGH_RATES

    @dataclass(frozen=True, kw_only=True)
    class Config(LayersConfig):
        sparsity: float = 0.99
        """Share of the weight's entries that stay frozen."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check(0 <= self.sparsity < 1, "sparsity", self.sparsity, "in [0, 1)")

    def per_layer(self, layer: nn.Linear) -> int:
        entries = layer.weight.numel()
        count = int(entries * (1 - self.config.sparsity))
        check(count >= 1, "sparsity", self.config.sparsity, f"low enough to leave one of {entries} entries")
        return count

    def options(self, backbone: nn.Module, seed: int) -> dict[str, Any]:
        return {"sparsity": self.config.sparsity}
