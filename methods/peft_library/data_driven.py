"""LoRA started from the training data (`context.calibration`): EVA, LoRA-GA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.base import Context, check
from methods.peft_library.common import ADAPTER
from methods.peft_library.lora import LoraTuner, ResidualStart, lora_layers
from methods.sparse import gradient_sums

BATCH = 32
"""Images per calibration batch."""

BATCHES = 8
"""Calibration batches that are used at most: the starts converge long before."""


def random_batches(context: Context) -> list[tuple[Tensor, Tensor]]:
    """Images [B, 3, H, W] and labels [B] drawn from the whole training split, whose lists may go class by class."""
    total = sum(len(labels) for _, labels in context.calibration(BATCH))
    order = torch.randperm(total, generator=context.generator)[: BATCH * BATCHES]
    drawn = torch.zeros(total, dtype=torch.bool).index_fill(0, order, True).split(BATCH)
    parts = [(x[mask], y[mask]) for (x, y), mask in zip(context.calibration(BATCH), drawn, strict=True)]
    places = order.argsort().argsort()  # in the order of the draw, of what `parts` holds in the split's order
    images, labels = (torch.cat(tensors)[places] for tensors in zip(*parts, strict=True))
    return list(zip(images.split(BATCH), labels.split(BATCH), strict=True))


class EVA(LoraTuner):
    """LoRA with A started at the principal directions of the layer's input on training images.

    Every layer keeps rank r (rho = 1), so that the number of parameters is known in advance; the paper's rho = 2 moves
    ranks between layers. The principal directions of peft's incremental PCA stop when they have converged.
    """

    name = "eva"
    title = "EVA"
    paper = "Paischer et al., One Initialization to Rule them All (EVA), 2024, arXiv 2410.07170"
    fixed = {"init_lora_weights": "eva"}

    def options(self, backbone: nn.Module) -> dict[str, Any]:
        from peft import EvaConfig

        return {**super().options(backbone), "eva_config": EvaConfig(rho=1.0)}

    def inject(self, backbone: nn.Module, config: Any, context: Context) -> Any:
        from peft import get_eva_state_dict

        def directions() -> dict[str, Tensor]:
            return get_eva_state_dict(
                backbone,
                [images for images, _ in random_batches(context)],
                config,
                forward_fn=lambda model, batch: model.forward_features(batch),
                prepare_model_inputs_fn=None,
                prepare_layer_inputs_fn=lambda inputs, *_: inputs[0].flatten(0, -2),
                show_progress_bar=False,
            )

        start = context.remember("directions", directions)
        tuner = super().inject(backbone, config, context)
        with torch.no_grad():
            for name, layer in lora_layers(backbone).items():
                layer.lora_A[ADAPTER].weight.copy_(start[name])
        return tuner


class LoRAGA(ResidualStart):
    """LoRA started at singular vectors of the loss gradient on training images, which the frozen weight loses: same
    function. The gradient is that of the cross-entropy under the fresh head."""

    name = "lora_ga"
    title = "LoRA-GA"
    paper = "Wang et al., LoRA-GA, NeurIPS 2024, arXiv 2407.05000"
    fixed = {"init_lora_weights": "lora_ga"}
    recipe = {"lr": 2e-3}

    def per_layer(self, layer: nn.Linear) -> int:
        most = min(layer.in_features, layer.out_features) // 2  # A and B take different singular vectors
        check(self.config.rank <= most, "rank", self.config.rank, f"at most half the smaller side of a layer, {most}")
        return super().per_layer(layer)

    def options(self, backbone: nn.Module) -> dict[str, Any]:
        from peft import LoraGAConfig

        return {**super().options(backbone), "lora_ga_config": LoraGAConfig()}

    def inject(self, backbone: nn.Module, config: Any, context: Context) -> Any:
        training = backbone.training
        if "start" not in context.memory:
            self.note_gradients(backbone.train(), context)
        tuner = super().inject(backbone.train(training), config, context)
        backbone.train(training)
        return tuner

    def note_gradients(self, backbone: nn.Module, context: Context) -> None:
        """Leave the mean gradient of each tuned weight where peft looks for it, as its `preprocess_loraga` does, whose
        hooks do not go with layers whose output is changed in place."""
        layers, batches = self.layers(backbone), random_batches(context)
        weights: list[Any] = [layer.weight for layer in layers]
        sums = gradient_sums(weights, batches, lambda x, y: cross_entropy(backbone(x), y), torch.clone)
        for layer, total in zip(layers, sums, strict=True):
            layer._peft_loraga_grad = total / len(batches)
