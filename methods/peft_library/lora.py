"""LoRA and its variants that differ in scale, start, factorisation or gradient: peft's `LoraConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from methods.base import Attachment, Context, ParameterGroup, check
from methods.peft_library.common import (
    ADAPTER,
    NotNegative,
    PeftMethod,
    ScaledRankConfig,
    check_divides,
    check_rank,
)
from methods.settings import Count, EvenCount, Probability, at_least, one_of

VARIANTS = ("paper", "noah_release")


class LoraTuner(PeftMethod):
    """Low-rank update alpha/r * B A of linear layers. Subclasses say in `fixed` or `options` what is special about
    them."""

    peft_class = "LoraConfig"
    arguments = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}
    recipe = {"lr": 5e-3}

    @dataclass(frozen=True, kw_only=True)
    class Config(ScaledRankConfig):
        dropout: Probability = 0.0
        """Dropout on the input of the update."""

    def per_layer(self, layer: nn.Linear) -> int:
        check_rank(self.config.rank, layer)
        return super().per_layer(layer)


class LoRA(LoraTuner):
    """Low-rank update alpha/r * B A of timm's fused qkv: r * (d + 3d) parameters per block, as in NOAH's LoRA row."""

    name = "lora"
    title = "LoRA"
    paper = "Hu et al., LoRA, ICLR 2022, arXiv 2106.09685"
    composition_order = 40

    @dataclass(frozen=True, kw_only=True)
    class Config(LoraTuner.Config):
        variant: Annotated[str, one_of(*VARIANTS)] = "paper"
        """`paper`: A random, B zero. `noah_release`: as NOAH's code ends up, A and B both of std 0.02, so that training
        does not start at the pretrained function; its runs have a dropout of 0.1."""

    config: Config

    def starts_at_identity(self) -> bool:
        return self.config.variant == "paper"

    def inject(self, backbone: nn.Module, config: Any, context: Context) -> Any:
        tuner = super().inject(backbone, config, context)
        for layer in lora_layers(backbone).values() if self.config.variant == "noah_release" else ():
            for factor in (*layer.lora_A.parameters(), *layer.lora_B.parameters()):
                nn.init.trunc_normal_(factor, std=0.02)
        return tuner


class LoRAPlus(LoraTuner):
    """LoRA whose B is trained with `ratio` times the learning rate of A, so that features change as fast as they can
    without diverging in wide models (paper, section 4)."""

    name = "lora_plus"
    title = "LoRA+"
    paper = "Hayou et al., LoRA+, ICML 2024, arXiv 2402.12354"
    composition_order = 40
    recipe = {"lr": 1e-3}
    search_space = {"lr": (2e-4, 5e-4, 1e-3, 2e-3), "weight_decay": (1e-4, 1e-2), "ratio": (4.0, 16.0)}

    @dataclass(frozen=True, kw_only=True)
    class Config(LoraTuner.Config):
        ratio: Annotated[float, at_least(1)] = 16.0
        """The learning rate of B divided by that of A, which is the recipe's; 16 (2^4) is what the paper advises."""

    config: Config

    def attachment(self, backbone: nn.Module, tuner: Any, context: Context) -> Attachment:
        attachment = super().attachment(backbone, tuner, context)
        ups = tuple(p for layer in lora_layers(backbone).values() for p in layer.lora_B.parameters())
        attachment.groups = (ParameterGroup(parameters=ups, lr_factor=self.config.ratio),)
        return attachment


class RsLoRA(LoraTuner):
    """LoRA scaled by alpha / sqrt(r)."""

    name = "rslora"
    title = "rsLoRA"
    paper = "Kalajdzievski, Rank-Stabilized LoRA, 2023, arXiv 2312.03732"
    fixed = {"use_rslora": True}
    composition_order = 40
    recipe = {"lr": 2e-3}


class DoRA(LoraTuner):
    """LoRA on the direction of each row of the weight, with a trained norm per row: r * (in + out) + out."""

    name = "dora"
    title = "DoRA"
    paper = "Liu et al., DoRA, ICML 2024, arXiv 2402.09353"
    fixed = {"use_dora": True}
    composition_order = 40

    def per_layer(self, layer: nn.Linear) -> int:
        return super().per_layer(layer) + layer.out_features


class ResidualStart(LoraTuner):
    """LoRA that starts at factors B0 and A0, which the frozen weight loses: W - alpha/r * B0 A0 is frozen, and the
    function stays the same. The factors are remembered; the frozen weight is computed from them."""

    recomputed = (".base_layer.weight",)

    def inject(self, backbone: nn.Module, config: Any, context: Context) -> Any:
        weights = {name: layer.weight.clone() for name, layer in self.named_layers(backbone).items()}
        if "start" in context.memory:
            config.init_lora_weights = True  # any start will do: the remembered one takes its place
        tuner = super().inject(backbone, config, context)
        layers = lora_layers(backbone)
        start = context.remember("start", lambda: {name: factors(layer) for name, layer in layers.items()})
        with torch.no_grad():
            for name, layer in layers.items():
                up, down = start[name]
                layer.lora_B[ADAPTER].weight.copy_(up)
                layer.lora_A[ADAPTER].weight.copy_(down)
                layer.get_base_layer().weight.copy_(weights[name] - layer.scaling[ADAPTER] * up @ down)
        return tuner

    def adapter(
        self, plain: nn.Module, state: dict[str, Tensor], memory: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Tensor]]:
        """As plain LoRA of twice the rank: W - s B0 A0 + s B A is W + s [B, B0] [A; -A0]."""
        config, state = super().adapter(plain, state, memory)
        config.init_lora_weights, config.lora_ga_config = True, None
        config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha  # s = alpha / r stays
        for name, (up, down) in memory["start"].items():
            b, a = (f"{name}.{factor}.{ADAPTER}.weight" for factor in ("lora_B", "lora_A"))
            state |= {b: torch.cat([state[b], up], dim=1), a: torch.cat([state[a], -down])}
        return config, state


def factors(layer: Any) -> tuple[Tensor, Tensor]:
    """Copies of B [out, r] and A [r, in] of a LoRA layer, as a file gives them back: a product's last bit may depend on
    the order of the factors in memory."""
    up, down = layer.lora_B[ADAPTER].weight.detach(), layer.lora_A[ADAPTER].weight.detach()
    return up.clone(memory_format=torch.contiguous_format), down.clone(memory_format=torch.contiguous_format)


class PiSSA(ResidualStart):
    """LoRA started at the r largest singular triplets, which the frozen weight loses: the function stays the same."""

    name = "pissa"
    title = "PiSSA"
    paper = "Meng et al., PiSSA, NeurIPS 2024, arXiv 2404.02948"
    fixed = {"init_lora_weights": "pissa"}
    composition_order = 40
    recipe = {"lr": 2e-3}


class OLoRA(ResidualStart):
    """LoRA started at r columns of the weight's QR factors, which the frozen weight loses: same function."""

    name = "olora"
    title = "OLoRA"
    paper = "Buyukakyuz, OLoRA, 2024, arXiv 2406.01775"
    fixed = {"init_lora_weights": "olora"}
    composition_order = 40


class MiCA(LoraTuner):
    """LoRA with B frozen at the left singular vectors of the r smallest singular values, and A zero: r * in."""

    name = "mica"
    title = "MiCA"
    paper = "MiCA (Minor Component Adaptation), 2026, arXiv 2604.01694, as implemented by peft"
    fixed = {"init_lora_weights": "mica"}

    def per_layer(self, layer: nn.Linear) -> int:
        check_rank(self.config.rank, layer)
        return int(self.config.rank * layer.in_features)


class OrthogonalLoRA(LoraTuner):
    """LoRA started at random orthogonal factors whose product is zero, so that both learn at once."""

    name = "orthogonal_lora"
    title = "LoRA (orthogonal start)"
    paper = "peft, init_lora_weights='orthogonal'; https://datta0.github.io/posts/rethink-lora-init"
    fixed = {"init_lora_weights": "orthogonal"}

    @dataclass(frozen=True, kw_only=True)
    class Config(LoraTuner.Config):
        rank: EvenCount = 8
        """Rank r of the update."""


class LoRAFA(LoraTuner):
    """LoRA with A frozen at its random start: r * out."""

    name = "lora_fa"
    title = "LoRA-FA"
    paper = "Zhang et al., LoRA-FA, 2023, arXiv 2308.03303"
    composition_order = 40
    recipe = {"lr": 1e-2}

    def per_layer(self, layer: nn.Linear) -> int:
        return int(self.config.rank * layer.out_features)

    def inject(self, backbone: nn.Module, config: Any, context: Context) -> Any:
        tuner = super().inject(backbone, config, context)
        for layer in lora_layers(backbone).values():
            layer.lora_A.requires_grad_(False)
        return tuner


UP, DOWN = ("qkv", "fc1"), ("proj", "fc2")
"""Layers whose B, and layers whose A, is block-diagonal."""


class BdLoRA(LoraTuner):
    """LoRA with one block-diagonal factor (made for sharded serving): B of qkv and fc1, A of proj and fc2."""

    name = "bdlora"
    title = "BD-LoRA"
    paper = "Block-Diagonal LoRA for tensor-parallel serving, 2025, arXiv 2510.23346"

    @dataclass(frozen=True, kw_only=True)
    class Config(LoraTuner.Config):
        parts: int = 2
        """Number of blocks on the diagonal; it divides the rank and the layers' widths."""

        def __post_init__(self) -> None:
            super().__post_init__()
            fits = self.parts >= 1 and self.rank % self.parts == 0
            check(fits, "parts", self.parts, f"a divisor of rank={self.rank}")

    def options(self, backbone: nn.Module) -> dict[str, Any]:
        from peft import BdLoraConfig

        names = {id(layer): name for name, layer in self.named_layers(backbone).items()}
        up, down = ([names[id(layer)] for role, layer in self.tuned(backbone) if role in of] for of in (UP, DOWN))
        parts = BdLoraConfig(nblocks=self.config.parts, target_modules_bd_b=up, target_modules_bd_a=down)
        return {**super().options(backbone), "use_bdlora": parts}

    def expected_parameters(self, backbone: nn.Module) -> int:
        c = self.config
        total = 0
        for role, layer in self.tuned(backbone):
            check_divides("parts", c.parts, layer)
            long, cut = layer.in_features, layer.out_features
            if role in DOWN:
                long, cut = cut, long
            total += c.rank * (long + cut // c.parts)
        return total


class VeLoRA(LoraTuner):
    """LoRA whose gradient sees only one projection of each group of input channels, which saves activations."""

    name = "velora"
    title = "VeLoRA"
    paper = "Miles et al., VeLoRA, NeurIPS 2024, arXiv 2405.17991"

    @dataclass(frozen=True, kw_only=True)
    class Config(LoraTuner.Config):
        groups: Count = 8
        """Number of groups that the input channels are split into."""

    def options(self, backbone: nn.Module) -> dict[str, Any]:
        from peft import VeloraConfig

        velora = VeloraConfig(num_groups=self.config.groups, init_type="random")
        return {**super().options(backbone), "velora_config": velora}


class KaSA(LoraTuner):
    """B diag(s) A beside a weight that lost its r smallest singular triplets, so not the identity at the start:
    r * (in + out) + r. The paper's two regularisers (eq. 9-12) are the penalty."""

    name = "kasa"
    title = "KaSA"
    paper = "Wang et al., KaSA, ICLR 2025, arXiv 2412.06071"
    composition_order = 40
    identity_at_start = False
    recomputed = (".base_layer.weight",)

    @dataclass(frozen=True, kw_only=True)
    class Config(LoraTuner.Config):
        beta: NotNegative = 1e-4
        """Weight of the squared singular values."""

        gamma: NotNegative = 1e-3
        """Weight of the distance of A and B from orthogonality."""

    def options(self, backbone: nn.Module) -> dict[str, Any]:
        from peft import KasaConfig

        kasa = KasaConfig(beta=self.config.beta, gamma=self.config.gamma)
        return {**super().options(backbone), "kasa_config": kasa}

    def per_layer(self, layer: nn.Linear) -> int:
        most = min(layer.in_features, layer.out_features) - 1
        check(self.config.rank <= most, "rank", self.config.rank, f"below the smaller side of a layer: at most {most}")
        return super().per_layer(layer) + int(self.config.rank)

    def inject(self, backbone: nn.Module, config: Any, context: Context) -> Any:
        weights = {name: layer.weight.clone() for name, layer in self.named_layers(backbone).items()}
        rank = self.config.rank
        lost = context.remember("lost", lambda: {name: smallest_part(w, rank) for name, w in weights.items()})
        tuner = super().inject(backbone, config, context)
        with torch.no_grad():
            for name, layer in lora_layers(backbone).items():
                up, down = lost[name]
                layer.get_base_layer().weight.copy_(weights[name] - up @ down)
        return tuner

    def attachment(self, backbone: nn.Module, tuner: Any, context: Context) -> Attachment:
        return replace(super().attachment(backbone, tuner, context), penalty=lambda batch: tuner._get_kasa_loss())


def smallest_part(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors [out, r] and [r, in] of the part of a weight that its r smallest singular values make up, in float32."""
    left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    return (left[:, -rank:] * values[-rank:]).contiguous(), right[-rank:].contiguous()


def lora_layers(backbone: nn.Module) -> dict[str, Any]:
    """peft's LoRA layers in the backbone by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in backbone.named_modules() if isinstance(module, LoraLayer)}
