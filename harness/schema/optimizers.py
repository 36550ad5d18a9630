"""Optimisers, by the name that a recipe gives: to add one, write its function here under `@optimizer`.

They stand beside the recipe, and not with the trainer, so that a plan refuses an unknown name before anything is run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # so that a command that trains nothing starts without waiting for torch
    import torch
    from torch import nn
    from torch.optim import Optimizer

    from harness.schema.spec import Recipe

Groups = list[dict[str, Any]]
"""Parameter groups, each with its own weight decay."""

Builder = Callable[[Groups, "Recipe"], "Optimizer"]

OPTIMIZERS: dict[str, Builder] = {}
"""By the name of the function."""


def optimizer(function: Builder) -> Builder:
    """Make an optimiser known by the name of its function."""
    OPTIMIZERS[function.__name__] = function
    return function


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's optimiser over what requires a gradient; vectors are decayed only if the recipe says so."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2 or recipe.decay_vectors]
    undecayed = [p for p in trained if p.ndim < 2 and not recipe.decay_vectors]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    optimizer = OPTIMIZERS[recipe.optimizer]([group for group in groups if group["params"]], recipe)
    if trained and trained[0].is_cuda:
        _keep_on_device(optimizer, trained[0].device)
    return optimizer


def _keep_on_device(optimizer: Optimizer, device: torch.device) -> None:
    """Let every step read what changes from step to step, the learning rate and the step's number, from tensors on the
    device, as a CUDA graph must."""
    import torch

    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], device=device)
        if "capturable" in group:
            group["capturable"] = True


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], float):
            group["lr"] = rate
        else:
            group["lr"].fill_(rate)


@optimizer
def adamw(groups: Groups, recipe: Recipe) -> Optimizer:
    """AdamW (arXiv 1711.05101) with torch's betas."""
    from torch.optim import AdamW

    return AdamW(groups, lr=recipe.lr, fused=True)


@optimizer
def sgd(groups: Groups, recipe: Recipe) -> Optimizer:
    """SGD with momentum 0.9."""
    from torch.optim import SGD

    return SGD(groups, lr=recipe.lr, momentum=0.9, fused=True)
