"""The one trainer: every method on every task goes through `Trainer.fit`."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness import device as devices
from harness.data import Split
from harness.preprocessing import Preprocessing
from harness.spec import Recipe
from methods.base import Attachment


class Diverged(RuntimeError):
    """The training loss is not a finite number any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One point of the learning curve."""

    epoch: int
    """Counted from 1."""

    train_loss: float
    """Mean loss over the epoch's images, with label smoothing if the recipe has it."""

    train_accuracy: float
    """Per cent of the epoch's images classified right, as seen in training (augmented, before each update)."""

    lr: float
    """Learning rate of the epoch's last step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where training stands, for whoever shows it."""

    epoch: int
    epochs: int
    step: int
    """Steps done in all."""

    steps: int
    loss: float
    """Mean over the epoch so far."""

    accuracy: float
    """Per cent, over the epoch so far."""

    images_per_second: float


Report = Callable[[Progress], None]
REPORT_EVERY_SECONDS = 0.2


def learning_rate(step: int, *, peak: float, warmup: int, total: int) -> float:
    """Rate of step 0 .. total-1: linear over the `warmup` first steps up to `peak`, then a cosine towards zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Optimiser over what requires a gradient; only tensors of two or more dimensions are decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=recipe.lr)


def derived_seed(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose, so that one random choice more does not shift the others."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:6], "big")


def total_steps(images: int, recipe: Recipe) -> int:
    """Number of optimiser steps of a whole training on so many images."""
    return math.ceil(images / recipe.batch_size) * recipe.epochs


class Trainer:
    """Trains what requires a gradient in `model` on `data`, which lies on the model's device."""

    def __init__(
        self,
        model: nn.Module,
        attachment: Attachment,
        data: Split,
        preprocessing: Preprocessing,
        recipe: Recipe,
        seed: int,
    ) -> None:
        self.model, self.attachment, self.data = model, attachment, data
        self.preprocessing, self.recipe, self.seed = preprocessing, recipe, seed
        self.device = data.labels.device
        self.precision = devices.precision_in_use(recipe.precision, self.device)
        self.optimizer = make_optimizer(model, recipe)
        self.steps = total_steps(len(data), recipe)
        self.step = 0

    def fit(self, report: Report | None = None) -> list[Epoch]:
        """Run the whole recipe; returns the learning curve. Raises `Diverged` if the loss is not finite."""
        self.model.train()
        curve = [self._epoch(epoch, report) for epoch in range(1, self.recipe.epochs + 1)]
        self.model.eval()
        return curve

    def _epoch(self, epoch: int, report: Report | None) -> Epoch:
        # Seeding here makes an epoch's random choices a function of (seed, epoch) alone.
        torch.manual_seed(derived_seed(self.seed, f"epoch {epoch}"))
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device)
        seen, start, shown = 0, time.perf_counter(), 0.0
        for images, labels in self._batches(epoch):
            loss, hits = self._train_step(images, labels)
            loss_sum += loss * len(labels)
            correct += hits
            seen += len(labels)
            now = time.perf_counter()
            if report and now - shown > REPORT_EVERY_SECONDS:  # reading the sums waits for the device
                shown = now
                report(self._progress(epoch, float(loss_sum) / seen, 100 * float(correct) / seen, seen / (now - start)))
        mean_loss = float(loss_sum) / seen
        if not math.isfinite(mean_loss):
            raise Diverged(f"the training loss became {mean_loss} in epoch {epoch} (step {self.step} at the latest)")
        lr = self.optimizer.param_groups[0]["lr"]
        return Epoch(epoch=epoch, train_loss=mean_loss, train_accuracy=100 * float(correct) / seen, lr=lr)

    def _progress(self, epoch: int, loss: float, accuracy: float, speed: float) -> Progress:
        return Progress(
            epoch=epoch,
            epochs=self.recipe.epochs,
            step=self.step,
            steps=self.steps,
            loss=loss,
            accuracy=accuracy,
            images_per_second=speed,
        )

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, f"order {epoch}"))
        order = torch.randperm(len(self.data), generator=generator)
        flip = torch.rand(len(self.data), generator=generator) < 0.5
        for index in order.split(self.recipe.batch_size):
            on_device = index.to(self.device)
            images = self.data.images[on_device]
            if self.recipe.augmentation == "flip":
                images = torch.where(flip[index].to(self.device)[:, None, None, None], images.flip(2), images)
            yield self.preprocessing.normalise(images), self.data.labels[on_device]

    def _train_step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One update. Returns the mean loss and the number of right answers, both on the device."""
        warmup = self.steps // self.recipe.epochs * self.recipe.warmup_epochs
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, peak=self.recipe.lr, warmup=warmup, total=self.steps)
        with devices.autocast(self.precision, self.device):
            logits = self.model(images)
            loss = cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)
        penalty = self.attachment.penalty
        (loss + penalty() if penalty else loss).backward()
        self.optimizer.step()
        self.step += 1
        if self.attachment.after_step:
            self.attachment.after_step(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach(), (logits.detach().argmax(dim=1) == labels).sum()
