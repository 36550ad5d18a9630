"""Optimisers, by the name that a recipe gives: to add one, write its function here under `@optimizer`.

They stand beside the recipe, and not with the trainer, so that a plan refuses an unknown name before anything is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # so that a command that trains nothing starts without waiting for torch
    import torch
    from torch import nn
    from torch.optim import Optimizer

    from harness.schema.spec import Recipe
    from methods.base import ParameterGroup

Groups = list[dict[str, Any]]
"""Parameter groups, each with its own weight decay and the factor of its learning rate."""

Builder = Callable[[Groups, "Recipe"], "Optimizer"]

OPTIMIZERS: dict[str, Builder] = {}
"""By the name of the function."""


def optimizer(function: Builder) -> Builder:
    """Make an optimiser known by the name of its function."""
    OPTIMIZERS[function.__name__] = function
    return function


def make_optimizer(model: nn.Module, recipe: Recipe, own: Sequence[ParameterGroup] = ()) -> Optimizer:
    """The recipe's optimiser over what requires a gradient; vectors are decayed only if the recipe says so. `own`:
    groups of a method, which may say otherwise."""
    trained = [p for p in model.parameters() if p.requires_grad]
    group_of = {id(p): group for group in own for p in group.parameters}
    groups: dict[tuple[float, float], list[Any]] = {}
    for p in trained:
        decay = recipe.weight_decay if p.ndim >= 2 or recipe.decay_vectors else 0.0
        factor = 1.0
        if group := group_of.get(id(p)):
            decay = decay if group.weight_decay is None else group.weight_decay
            factor = group.lr_factor
        groups.setdefault((decay, factor), []).append(p)
    settings = [
        {"params": members, "weight_decay": decay, "lr_factor": factor} for (decay, factor), members in groups.items()
    ]
    optimizer = OPTIMIZERS[recipe.optimizer](settings, recipe)
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
    """Set the learning rate of the next step, for each group times its factor."""
    for group in optimizer.param_groups:
        own = rate * group["lr_factor"]
        if isinstance(group["lr"], float):
            group["lr"] = own
        else:
            group["lr"].fill_(own)


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
