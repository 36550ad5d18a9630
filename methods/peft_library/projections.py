"""Tuners that train a few numbers in a fixed basis: random projections, vector banks, singular directions, frequencies,
sparse entries."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any

from torch import nn

from methods.base import HIGH_RATES, Context, check
from methods.peft_library.common import (
    ADAPTER,
    LayersConfig,
    PeftMethod,
    RankConfig,
    ScaledRankConfig,
    Several,
    check_rank,
)
from methods.settings import Count, Limit, Positive, Probability

NotZero = Annotated[float, Limit(requirement="finite and not zero", holds=lambda x: math.isfinite(x) and x != 0)]


class VeRA(PeftMethod):
    """LoRA with random factors that all layers share; two scale vectors per layer are trained: r + out."""

    name = "vera"
    title = "VeRA"
    paper = "Kopiczko et al., VeRA, ICLR 2024, arXiv 2310.11454"
    peft_class = "VeraConfig"
    arguments = {"r": "rank", "d_initial": "start"}
    seed_argument = "projection_prng_key"
    recipe = {"lr": 2e-2}
    search_space = HIGH_RATES

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        rank: Count = 256
        """Rank r of the shared random factors."""

        start: NotZero = 0.1
        """Start of the scales inside the rank space; the other scales start at zero, so this one must not."""

    def per_layer(self, layer: nn.Linear) -> int:
        return int(self.config.rank + layer.out_features)


class PVeRA(VeRA):
    """VeRA whose rank-space activations are sampled in training; mean and variance are trained: 2 r + out."""

    name = "pvera"
    title = "PVeRA"
    paper = "PVeRA, 2025, arXiv 2512.07703"
    peft_class = "PveraConfig"
    recipe = {"lr": 1e-2}

    def per_layer(self, layer: nn.Linear) -> int:
        return int(2 * self.config.rank + layer.out_features)


class RandLoRA(PeftMethod):
    """Sum of n = ceil(min(in, out) / r) shared random updates of rank r with trained scales, of full rank in sum:
    n (r + min(in, out))."""

    name = "randlora"
    title = "RandLoRA"
    paper = "Albert et al., RandLoRA, ICLR 2025, arXiv 2502.00987"
    peft_class = "RandLoraConfig"
    arguments = {"r": "rank", "randlora_alpha": "alpha"}
    seed_argument = "projection_prng_key"
    recipe = {"lr": 1e-3}

    @dataclass(frozen=True, kw_only=True)
    class Config(ScaledRankConfig):
        rank: Count = 32
        """Rank r of each random update: the larger, the fewer parameters."""

        alpha: Positive = 640.0
        """The update is scaled by alpha / rank; peft's default is 20 times its default rank."""

    def per_layer(self, layer: nn.Linear) -> int:
        smaller = min(layer.in_features, layer.out_features)
        return int(math.ceil(smaller / self.config.rank) * (self.config.rank + smaller))


class VBLoRA(PeftMethod):
    """LoRA whose factors are cut into vectors of length v, each a mix of the best of h bank vectors that all layers
    share: r (in + out) / v * h mixing weights per layer and h v for the bank."""

    name = "vblora"
    title = "VB-LoRA"
    paper = "Li et al., VB-LoRA, NeurIPS 2024, arXiv 2405.15179"
    peft_class = "VBLoRAConfig"
    arguments = {"r": "rank", "num_vectors": "vectors", "topk": "top"}
    identity_at_start = False
    recipe = {"lr": 1e-2}
    search_space = HIGH_RATES

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        rank: Count = 4
        """Rank r of the update."""

        vectors: Several = 90
        """Number h of vectors in the bank."""

        length: Count | None = None
        """Length v of the bank's vectors; None is the largest power of two that divides the layers' widths: 256 of
        ViT-B, as published."""

        top: int = 2
        """Number of bank vectors that are mixed; the weight of a single one would be 1 whatever is learnt."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check(2 <= self.top <= self.vectors, "top", self.top, "between 2 and vectors")

    config: Config

    def resolve(self, backbone: nn.Module) -> Any:
        return replace(super().resolve(backbone), length=self.length(backbone))

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

    def options(self, backbone: nn.Module) -> dict[str, Any]:
        return {**super().options(backbone), "vector_length": self.length(backbone)}


class UniLoRA(PeftMethod):
    """All LoRA factors of all layers are one random isometry of one trained vector of t numbers: t in all."""

    name = "unilora"
    title = "Uni-LoRA"
    paper = "Li et al., Uni-LoRA, NeurIPS 2025, arXiv 2506.00799"
    peft_class = "UniLoraConfig"
    arguments = {"r": "rank", "theta_d_length": "numbers"}
    seed_argument = "proj_seed"
    identity_at_start = False
    recipe = {"lr": 1e-2}
    search_space = HIGH_RATES

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        rank: Count = 4
        """Rank r of the update."""

        numbers: Count = 512
        """Length t of the trained vector."""

    def expected_parameters(self, backbone: nn.Module) -> int:
        self.layers(backbone)
        return int(self.config.numbers)


class TinyLoRA(PeftMethod):
    """Between the r leading singular directions of the weight, a random mix of u trained numbers: u per layer."""

    name = "tinylora"
    title = "TinyLoRA"
    paper = "Morris et al., Learning to Reason in 13 Parameters (TinyLoRA), 2026, arXiv 2602.04118"
    peft_class = "TinyLoraConfig"
    arguments = {"r": "rank", "u": "numbers"}
    seed_argument = "projection_seed"
    recipe = {"lr": 1e-2}
    search_space = HIGH_RATES

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        rank: Count = 2
        """Number r of singular directions."""

        numbers: Count = 64
        """Numbers u trained per layer."""

    def per_layer(self, layer: nn.Linear) -> int:
        check_rank(self.config.rank, layer)
        return int(self.config.numbers)


class AdaMSS(PeftMethod):
    """The outputs of a layer are clustered by the weight's r leading singular vectors, and each of k clusters gets an
    update of rank one from the leading input directions: k r + out."""

    name = "adamss"
    title = "AdaMSS"
    paper = "AdaMSS: Adaptive Multi-Subspace Approach, NeurIPS 2025, as implemented by peft without its rank schedule"
    peft_class = "AdamssConfig"
    not_loadable = "peft stores no clusters, and those that it finds anew may differ"
    arguments = {"r": "rank", "num_subspaces": "clusters"}
    seed_argument = "random_seed"
    recipe = {"lr": 1e-2}

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        rank: Count = 16
        """Number r of singular vectors; at most the smaller side of the layers."""

        clusters: Count = 5
        """Number k of clusters."""

    def per_layer(self, layer: nn.Linear) -> int:
        k, out = self.config.clusters, layer.out_features
        check_rank(self.config.rank, layer)
        check(k <= out, "clusters", k, f"at most the output width of the tuned layers, {out}")
        return int(k * self.config.rank + out)

    def inject(self, backbone: nn.Module, config: Any, context: Context) -> Any:
        from peft.tuners.adamss.layer import AdamssLayer

        tuner = super().inject(backbone, config, context)
        layers: list[Any] = [module for module in backbone.modules() if isinstance(module, AdamssLayer)]
        for layer in layers:
            updates = layer.adamss_B[ADAPTER]
            for cluster, places in layer.seg_result[ADAPTER].items():  # remembered ones may be of other sizes
                updates[cluster] = nn.Parameter(updates[cluster].new_zeros(len(places), 1))
        return tuner


class FRoD(PeftMethod):
    """All layers of one name share a basis from their joint decomposition; each trains the diagonal in it and a share s
    of the other entries, at least one, at random places: in + max(1, s in^2). The layers must be equal in shape, which
    Swin's are not."""

    name = "frod"
    title = "FRoD"
    paper = "FRoD, AAAI 2026, doi 10.1609/aaai.v40i31.39813"
    peft_class = "FrodConfig"
    arguments = {"sparse_rate": "sparsity"}
    fixed = {"progressbar": False}
    seed_argument = "projection_prng_key"
    recomputed = (f".frod_U.{ADAPTER}",)
    recipe = {"lr": 5e-3}
    needs = frozenset({"sequence"})

    @dataclass(frozen=True, kw_only=True)
    class Config(LayersConfig):
        sparsity: Annotated[float, Limit(requirement="above 0 and at most 0.5", holds=lambda s: 0 < s <= 0.5)] = 0.01
        """Share s of the off-diagonal entries that are trained."""

    def per_layer(self, layer: nn.Linear) -> int:
        return layer.in_features + max(1, int(layer.in_features**2 * self.config.sparsity))

    def inject(self, backbone: nn.Module, config: Any, context: Context) -> Any:
        from peft.tuners.frod.layer import FrodLayer

        tuner = super().inject(backbone, config, context)
        shared = [basis for kind in (tuner.frod_V, tuner.frod_s_indices) for basis in kind.values()]
        known = context.remember("shared", lambda: [basis[ADAPTER] for basis in shared])
        for basis, tensor in zip(shared, known, strict=True):
            basis[ADAPTER] = tensor
        layers: list[Any] = [module for module in backbone.modules() if isinstance(module, FrodLayer)]
        for layer in layers:
            weight = layer.get_base_layer().weight
            layer.frod_U[ADAPTER].copy_(layer._calculate_frod_u_and_lambda(layer.frod_V[ADAPTER], weight)[0])
        return tuner


class FourierFT(PeftMethod):
    """n random frequencies of the update's two-dimensional spectrum, drawn from a normal distribution: n per layer."""

    name = "fourierft"
    title = "FourierFT"
    paper = "Gao et al., FourierFT, ICML 2024, arXiv 2405.03003"
    peft_class = "FourierFTConfig"
    arguments = {"n_frequency": "frequencies", "scaling": "scale"}
    seed_argument = "random_loc_seed"
    identity_at_start = False
    recipe = {"lr": 1e-2}
    search_space = HIGH_RATES

    @dataclass(frozen=True, kw_only=True)
    class Config(LayersConfig):
        frequencies: Count = 1000
        """Number n of trained frequencies."""

        scale: Positive = 150.0
        """Factor on the update; 300 for ViT in the paper, with the query and value layers apart."""

    def per_layer(self, layer: nn.Linear) -> int:
        return within_entries("frequencies", self.config.frequencies, layer)


def within_entries(setting: str, number: int, layer: nn.Linear) -> int:
    """The number. Raises `MethodError` if the layer's weight has fewer entries."""
    entries = layer.weight.numel()
    check(number <= entries, setting, number, f"at most the entries of the tuned layers, {entries}")
    return number


class WaveFT(PeftMethod):
    """n random wavelet coefficients of the update (Daubechies 1): n per layer."""

    name = "waveft"
    title = "WaveFT"
    paper = "Bilican et al., WaveFT, 2025, arXiv 2505.12532"
    peft_class = "WaveFTConfig"
    arguments = {"n_frequency": "coefficients", "scaling": "scale"}
    seed_argument = "random_loc_seed"
    identity_at_start = True
    recipe = {"lr": 2e-3}
    search_space = PeftMethod.search_space

    @dataclass(frozen=True, kw_only=True)
    class Config(LayersConfig):
        coefficients: Count = 1000
        """Number n of trained coefficients."""

        scale: Positive = 25.0
        """Factor on the update."""

    def per_layer(self, layer: nn.Linear) -> int:
        return within_entries("coefficients", self.config.coefficients, layer)


class SHiRA(PeftMethod):
    """As many entries of the weight as LoRA of rank r has parameters, at random places: r (in + out)."""

    name = "shira"
    title = "SHiRA"
    paper = "Bhardwaj et al., SHiRA, NeurIPS 2024, arXiv 2406.13175"
    family = "selective"
    peft_class = "ShiraConfig"
    seed_argument = "random_seed"
    recipe = {"lr": 2e-3}

    def per_layer(self, layer: nn.Linear) -> int:
        each, entries = layer.in_features + layer.out_features, layer.weight.numel()
        fits = self.config.rank * each <= entries
        check(fits, "rank", self.config.rank, f"at most {entries // each}: a tuned layer has {entries} entries")
        return super().per_layer(layer)


class SuperTuning(PeftMethod):
    """The largest entries of the weight: (1 - sparsity) in out, rounded down."""

    name = "supertuning"
    title = "Super"
    paper = "Super, arXiv 2607.09287 (as cited by peft)"
    family = "selective"
    peft_class = "SupertuningConfig"
    arguments = {"sparsity": "sparsity"}
    recipe = {"lr": 2e-2}
    search_space = HIGH_RATES

    @dataclass(frozen=True, kw_only=True)
    class Config(LayersConfig):
        sparsity: Probability = 0.99
        """Share of the weight's entries that stay frozen."""

    def per_layer(self, layer: nn.Linear) -> int:
        entries = layer.weight.numel()
        count = int(entries * (1 - self.config.sparsity))
        check(count >= 1, "sparsity", self.config.sparsity, f"low enough to leave one of {entries} entries")
        return count
