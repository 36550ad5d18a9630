"""AdaLoRA: an update in singular-value form, whose rank budget moves between layers during training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Attachment, Batch, Context, check
from methods.peft_library.common import (
    ADAPTER,
    LayersConfig,
    NotNegative,
    PeftMethod,
    check_rank,
)
from methods.settings import Count, Positive, Probability

IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What peft's allocator knows of each weight: its importance, and running means of that and of its uncertainty."""


class AdaLoRA(PeftMethod):
    """B diag(e) A with a budget of target_rank per layer on average, reached by pruning the least important triplets:
    init_rank * (in + out + 1) are trained. peft's allocator prunes; the harness's penalty and after-step drive it."""

    name = "adalora"
    title = "AdaLoRA"
    paper = "Zhang et al., AdaLoRA, ICLR 2023, arXiv 2303.10512"
    composition_order = 40
    peft_class = "AdaLoraConfig"
    arguments = {"init_r": "init_rank", "target_r": "target_rank", "lora_alpha": "alpha", "deltaT": "interval"}
    fixed = {"total_step": 1}  # `inject` sets the schedule, when the number of steps is known
    recipe = {"lr": 1e-2}

    @dataclass(frozen=True, kw_only=True)
    class Config(LayersConfig):
        init_rank: int = 12
        """Rank of every layer at the start."""

        target_rank: Count = 8
        """Mean rank of the layers at the end."""

        alpha: Positive = 12.0
        """The update is scaled by alpha / init_rank."""

        orthogonality: NotNegative = 0.1
        """Weight of the penalty |A A' - I| + |B' B - I| (eq. 4)."""

        warmup: Probability = 0.1
        """Share of the steps before the pruning begins."""

        final: float = 0.3
        """Share of the steps that are trained with the final ranks."""

        interval: Count = 10
        """Steps between two prunings."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check(self.init_rank > self.target_rank, "init_rank", self.init_rank, "above target_rank")
            check(0 <= self.final < 1 - self.warmup, "final", self.final, "at least 0 and below 1 - warmup")

    def per_layer(self, layer: nn.Linear) -> int:
        check_rank(self.config.init_rank, layer, "init_rank")
        return int(self.config.init_rank * (layer.in_features + layer.out_features + 1))

    def inject(self, backbone: nn.Module, config: Any, context: Context) -> Any:
        c = self.config
        steps = context.total_steps
        config.total_step, config.tinit, config.tfinal = steps, int(c.warmup * steps), int(c.final * steps)
        # The importance that the last pruning goes by is known from the second step on.
        check(steps - config.tfinal >= 2, "total_steps", steps, "enough for two steps before the final ones")
        return super().inject(backbone, config, context)

    def attachment(self, backbone: nn.Module, tuner: Any, context: Context) -> Attachment:
        down = [p for name, p in backbone.named_parameters() if ".lora_A." in name]
        up = [p for name, p in backbone.named_parameters() if ".lora_B." in name]

        def penalty(batch: Batch) -> Tensor:
            gaps = [orthogonality_gap(a) for a in down] + [orthogonality_gap(b.T) for b in up]
            out: Tensor = torch.stack(gaps).mean() * self.config.orthogonality
            return out

        # peft keeps the importance of every weight, and at the end the pattern of ranks, outside the model.
        allocator, config = tuner.rankallocator, tuner.peft_config[ADAPTER]

        def state() -> dict[str, Any]:
            return {name: getattr(allocator, name) for name in IMPORTANCE} | {"rank_pattern": config.rank_pattern}

        def load_state(values: dict[str, Any]) -> None:
            config.rank_pattern = values["rank_pattern"]
            for name in IMPORTANCE:
                setattr(allocator, name, values[name])

        return replace(
            super().attachment(backbone, tuner, context),
            penalty=penalty,
            after_step=tuner.update_and_allocate,
            state=state,
            load_state=load_state,
        )


def orthogonality_gap(factor: Tensor) -> Tensor:
    """Frobenius norm of P P' - I for a factor P [r, channels]."""
    out: Tensor = torch.linalg.matrix_norm(factor @ factor.T - torch.eye(len(factor), device=factor.device))
    return out
