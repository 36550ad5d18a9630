"""Tuners that rotate or rescale: orthogonal maps of a weight's input, and per-channel factors and shifts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from torch import nn

from methods.architectures import architecture_of
from methods.base import HIGH_RATES, Attachment, Context, NoConfig, check
from methods.blocks import blocks
from methods.peft_library.common import LayersConfig, PeftMethod, RankConfig, Several, check_rank
from methods.settings import EvenCount, Limit, at_least


class OFT(PeftMethod):
    """The input of a layer is rotated in groups of b channels (Cayley transform): in (b - 1) / 2."""

    name = "oft"
    title = "OFT"
    paper = "Qiu et al., OFT, NeurIPS 2023, arXiv 2306.07280; Qiu et al., OFTv2, EMNLP 2025, arXiv 2506.19847"
    peft_class = "OFTConfig"
    arguments = {"oft_block_size": "block"}
    takes_maps = False
    # peft's default is the first terms of a series, which training soon takes away from any rotation.
    fixed = {"r": 0, "use_cayley_neumann": False}
    recipe = {"lr": 2e-2}
    search_space = HIGH_RATES

    @dataclass(frozen=True, kw_only=True)
    class Config(LayersConfig):
        block: Several = 8
        """Channels b that are rotated together; it divides the layers' input width."""

    def per_layer(self, layer: nn.Linear) -> int:
        check_block(self.config.block, layer)
        return int(layer.in_features * (self.config.block - 1) // 2)


def check_block(block: int, layer: nn.Linear) -> None:
    """Raise `MethodError` unless the layer's input can be cut into blocks of so many channels."""
    fits = layer.in_features % block == 0
    check(fits, "block", block, f"a divisor of the input width {layer.in_features}")


class BOFT(PeftMethod):
    """One block-diagonal rotation of a layer's input (blocks of b channels) and a scale per output: in b + out.

    The paper multiplies several such rotations in a butterfly. peft does that only where its CUDA extension can be
    compiled, and elsewhere silently takes one; a run must be the same everywhere, so here it is always one.
    """

    name = "boft"
    title = "BOFT (one factor)"
    paper = "Liu et al., BOFT, ICLR 2024, arXiv 2311.06243"
    peft_class = "BOFTConfig"
    arguments = {"boft_block_size": "block"}
    recomputed = (".boft_P",)
    recipe = {"lr": 1e-2}

    @dataclass(frozen=True, kw_only=True)
    class Config(LayersConfig):
        block: Several = 4
        """Channels b of one block; it divides the layers' input width."""

    def per_layer(self, layer: nn.Linear) -> int:
        check_block(self.config.block, layer)
        return int(layer.in_features * self.config.block + layer.out_features)


class HRA(PeftMethod):
    """A chain of r Householder reflections of the input: r in. An even r starts at the identity."""

    name = "hra"
    title = "HRA"
    paper = "Yuan et al., HRA, NeurIPS 2024, arXiv 2405.17484"
    peft_class = "HRAConfig"
    recipe = {"lr": 2e-2}
    search_space = HIGH_RATES

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        rank: EvenCount = 8
        """Number r of reflections."""

    def per_layer(self, layer: nn.Linear) -> int:
        return int(self.config.rank * layer.in_features)


class PSOFT(PeftMethod):
    """A rotation and two scales inside the principal subspace of the weight: r (r - 1) / 2 + 2 r."""

    name = "psoft"
    title = "PSOFT"
    paper = "PSOFT, openreview FSHrinMArK"
    peft_class = "PsoftConfig"
    not_loadable = "peft stores no principal subspace, and the signs of those that it finds anew may differ"
    arguments = {"r": "rank", "psoft_alpha": "rank"}
    recipe = {"lr": 5e-3}

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        rank: Annotated[int, at_least(2, ": a line has no rotation")] = 16
        """Dimension r of the principal subspace; at most the smaller side of the layers."""

    def per_layer(self, layer: nn.Linear) -> int:
        r = self.config.rank
        check_rank(r, layer)
        return int(r * (r - 1) // 2 + 2 * r)


class RoAd(PeftMethod):
    """Pairs of output channels are rotated and scaled; out, 2 out or 4 out parameters for variants 1, 2 and 4."""

    name = "road"
    title = "RoAd"
    paper = "Liao and Monz, 3-in-1: RoAd, NeurIPS 2024, arXiv 2409.00119"
    peft_class = "RoadConfig"
    arguments = {"group_size": "group"}
    recipe = {"lr": 2e-2}
    search_space = HIGH_RATES

    @dataclass(frozen=True, kw_only=True)
    class Config(LayersConfig):
        variant: Annotated[int, Limit(requirement="1, 2 or 4", holds=lambda variant: variant in (1, 2, 4))] = 1
        """1: an angle and a length per pair; 2: per channel; 4: a free 2 x 2 map per pair."""

        group: Annotated[int, Limit(requirement="even and at least 2", holds=lambda n: n >= 2 and n % 2 == 0)] = 8
        """Channels i and i + group / 2 of a group are a pair; it divides the layers' output width."""

    def per_layer(self, layer: nn.Linear) -> int:
        c, out = self.config, layer.out_features
        check(out % c.group == 0, "group", c.group, f"a divisor of the output width {out}")
        return int(c.variant * out)

    def options(self, backbone: nn.Module) -> dict[str, Any]:
        return {**super().options(backbone), "variant": f"road_{self.config.variant}"}


class IA3(PeftMethod):
    """A factor per output channel of the attention's layers (out) and per input channel of the MLP's (in). The paper's
    are k, v and fc2; timm's fused qkv brings q along."""

    name = "ia3"
    title = "IA3"
    paper = "Liu et al., IA3 (T-Few), NeurIPS 2022, arXiv 2205.05638"
    peft_class = "IA3Config"
    arguments = {}
    recipe = {"lr": 5e-3}
    default_targets = ("qkv", "fc2")
    Config = LayersConfig

    def expected_parameters(self, backbone: nn.Module) -> int:
        layers = self.named_layers(backbone).items()
        return sum(x.in_features if ".mlp." in name else x.out_features for name, x in layers)

    def options(self, backbone: nn.Module) -> dict[str, Any]:
        names = list(self.named_layers(backbone))
        return {"target_modules": names, "feedforward_modules": [name for name in names if ".mlp." in name]}


class LNTuning(PeftMethod):
    """Weight and bias of both norms of every block: 4 d per block."""

    name = "ln_tuning"
    title = "LN-Tuning"
    paper = "Zhao et al., Tuning LayerNorm in Attention, ICLR 2024, arXiv 2312.11420"
    family = "selective"
    recipe = {"lr": 2e-2}
    search_space = HIGH_RATES
    peft_class = "LNTuningConfig"
    arguments = {}
    Config = NoConfig

    def layers(self, backbone: nn.Module) -> list[Any]:
        return [norm for block in blocks(backbone) for norm in architecture_of(block).norms(block)]

    def per_layer(self, layer: Any) -> int:
        return sum(p.numel() for p in layer.parameters())


class BEFT(PeftMethod):
    """A trained shift of the layers' output: out."""

    name = "beft"
    title = "BEFT"
    paper = "Huang et al., BEFT: Bias-Efficient Fine-Tuning, 2025, arXiv 2509.15974"
    family = "selective"
    peft_class = "BeftConfig"
    arguments = {}
    Config = LayersConfig
    recipe = {"lr": 1e-2}

    def per_layer(self, layer: nn.Linear) -> int:
        return layer.out_features

    def attachment(self, backbone: nn.Module, tuner: Any, context: Context) -> Attachment:
        from peft.tuners.tuners_utils import BaseTunerLayer

        tuned = (module.get_base_layer() for module in backbone.modules() if isinstance(module, BaseTunerLayer))
        foldable = all(layer.bias is not None for layer in tuned)
        return super().attachment(backbone, tuner, context) if foldable else Attachment()
