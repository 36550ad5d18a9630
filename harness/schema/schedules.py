"""Learning-rate schedules, by the name that a recipe gives: to add one, write its function here under `@schedule`.

They stand beside the recipe, and not with the trainer, so that a plan refuses an unknown name before anything is run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.schema.spec import Recipe

Schedule = Callable[[int, "Recipe", int], float]
"""From the step (0, 1, ...) of a training, its recipe and the number of steps per epoch to the step's learning rate."""

SCHEDULES: dict[str, Schedule] = {}
"""By the name of the function."""


def schedule(function: Schedule) -> Schedule:
    """Make a schedule known by the name of its function."""
    SCHEDULES[function.__name__] = function
    return function


def learning_rate(step: int, recipe: Recipe, steps_per_epoch: int) -> float:
    """Learning rate of one step under the recipe's schedule."""
    return SCHEDULES[recipe.schedule](step, recipe, steps_per_epoch)


@schedule
def cosine(step: int, recipe: Recipe, steps_per_epoch: int) -> float:
    """Set for every step: linear warm-up from `warmup_lr` to `lr`, then a cosine down to `min_lr`."""
    warmup, total = recipe.warmup_epochs * steps_per_epoch, recipe.epochs * steps_per_epoch
    if step < warmup:
        return _warmup(recipe, step + 1, warmup)
    return _cosine(recipe, (step - warmup) / (total - warmup))


@schedule
def sct_release(step: int, recipe: Recipe, steps_per_epoch: int) -> float:
    """Set for every epoch, as SCT's released code does. timm's CosineLRScheduler learns of an epoch only when it is
    over: the first two epochs run at `warmup_lr`, and the peak is never quite reached."""
    return _told_late(step, recipe, steps_per_epoch, recipe.epochs)


@schedule
def hydra_release(step: int, recipe: Recipe, steps_per_epoch: int) -> float:
    """As `sct_release`, with a cosine of 500 epochs whatever the recipe's number, as Hydra's released code has it."""
    return _told_late(step, recipe, steps_per_epoch, 500)


def _told_late(step: int, recipe: Recipe, steps_per_epoch: int, length: int) -> float:
    """timm's CosineLRScheduler of so many epochs, told of each epoch when it is over."""
    epoch = max(step // steps_per_epoch - 1, 0)
    if epoch < recipe.warmup_epochs:
        return _warmup(recipe, epoch, recipe.warmup_epochs)
    return _cosine(recipe, epoch / length)


def _warmup(recipe: Recipe, done: int, warmup: int) -> float:
    return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * done / warmup


def _cosine(recipe: Recipe, share: float) -> float:
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * 0.5 * (1 + math.cos(math.pi * share))
