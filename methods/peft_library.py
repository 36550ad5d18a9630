"""Tuners of the `peft` package, injected into timm's modules; each class here builds a peft config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from methods.base import Attachment, Context, Method, MethodError, check
from methods.blocks import blocks

TARGETS = ("qkv", "proj", "fc1", "fc2")
"""Linear layers of a timm block, as one may name them in `targets`."""


def merge_into_base(backbone: nn.Module) -> None:
    """Fold every peft layer into the timm layer it wraps, and put that layer back in its place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            backbone.set_submodule(name, module.get_base_layer())


class PeftMethod(Method):
    """Common part: turn the method's config into a peft config and inject it. Subclasses implement `peft_config`."""

    def peft_config(self) -> Any:
        """The peft config to inject."""
        raise MethodError(f"method {self.name!r} does not say which peft config it uses")

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        import peft

        blocks(backbone)  # refuses what is neither ViT nor Swin
        peft.inject_adapter_in_model(self.peft_config(), backbone)
        return Attachment(merge=lambda: merge_into_base(backbone))


class LoRA(PeftMethod):
    """Low-rank update alpha/r * B A of timm's fused qkv: r * (d + 3d) parameters per block, as in NOAH's LoRA row."""

    name = "lora"
    title = "LoRA"
    paper = "Hu et al., LoRA, ICLR 2022, arXiv 2106.09685"
    family = "reparameterisation"
    recipe = {"lr": 5e-3}

    @dataclass(frozen=True, kw_only=True)
    class Config:
        rank: int = 8
        """Rank r of the update."""

        alpha: float = 8.0
        """The update is scaled by alpha / rank."""

        dropout: float = 0.0
        """Dropout on the input of the update."""

        targets: tuple[str, ...] = ("qkv",)
        """Which linear layers of each block are updated: any of qkv, proj, fc1, fc2."""

        def __post_init__(self) -> None:
            check(self.rank >= 1, "rank", self.rank, "at least 1")
            check(self.alpha > 0, "alpha", self.alpha, "positive")
            check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
            check(
                bool(self.targets) and set(self.targets) <= set(TARGETS), "targets", self.targets, f"some of {TARGETS}"
            )

    def expected_parameters(self, backbone: nn.Module) -> int:
        layers = [layer for block in blocks(backbone) for layer in linear_layers(block, self.config.targets)]
        return sum(self.config.rank * (layer.in_features + layer.out_features) for layer in layers)

    def peft_config(self) -> Any:
        from peft import LoraConfig

        c = self.config
        return LoraConfig(r=c.rank, lora_alpha=c.alpha, lora_dropout=c.dropout, target_modules=block_layers(c.targets))


def linear_layers(block: Any, targets: tuple[str, ...]) -> list[nn.Linear]:
    """The linear layers of a block that `targets` names."""
    where = {"qkv": block.attn, "proj": block.attn, "fc1": block.mlp, "fc2": block.mlp}
    return [getattr(where[target], target) for target in targets]


def block_layers(targets: tuple[str, ...]) -> str:
    """A regular expression for peft: these layers of every block, and nothing outside the blocks."""
    return rf".*blocks\.\d+\.(attn|mlp)\.({'|'.join(targets)})"
