"""The one trainer: every method on every task goes through `Trainer.fit`."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness import device as devices
from harness.data import augmentation
from harness.data.splits import Split
from harness.errors import HarnessError
from harness.schema.failures import Diverged
from harness.schema.preprocessing import Preprocessing
from harness.schema.record import Epoch
from harness.schema.spec import Recipe
from harness.training import fast_path
from methods.base import Attachment


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
Boundary = Callable[[bool], None]
"""Called after every step, with whether an epoch ended: it may take `Trainer.state()`, and raise to stop."""

Look = Callable[[], dict[str, float]]
"""Called at the end of every epoch: scores the model on other splits, in per cent, and leaves it as it was."""

REPORT_EVERY_SECONDS = 0.2


def learning_rate(step: int, recipe: Recipe, steps_per_epoch: int) -> float:
    """Rate of step 0, 1, ... of a training: linear warm-up from `warmup_lr` to `lr`, then a cosine towards `min_lr`."""
    if recipe.schedule == "sct_release":
        # timm's CosineLRScheduler, told of epoch e only when it is over: epochs 0 and 1 both run at the first rate.
        epoch = max(step // steps_per_epoch - 1, 0)
        if epoch < recipe.warmup_epochs:
            return _warm(recipe, epoch, recipe.warmup_epochs)
        return _cosine(recipe, epoch / recipe.epochs)
    warmup, total = recipe.warmup_epochs * steps_per_epoch, recipe.epochs * steps_per_epoch
    if step < warmup:
        return _warm(recipe, step + 1, warmup)
    return _cosine(recipe, (step - warmup) / (total - warmup))


def _warm(recipe: Recipe, done: int, warmup: int) -> float:
    return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * done / warmup


def _cosine(recipe: Recipe, share: float) -> float:
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * 0.5 * (1 + math.cos(math.pi * share))


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Optimiser over what requires a gradient; tensors of one dimension are decayed only if the recipe says so."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2 or recipe.decay_vectors]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2 and not recipe.decay_vectors], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, fused=True)
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=True)


def derived_seed(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose, so that one random choice more does not shift the others."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:6], "big")


def images_per_epoch(images: int, recipe: Recipe) -> int:
    """How many of a split's images an epoch uses. `HarnessError` if `drop_last` would leave none."""
    used = images - images % recipe.batch_size if recipe.drop_last else images
    if not used:
        raise HarnessError(f"drop_last leaves no batch of {recipe.batch_size} from {images} training images")
    return used


def total_steps(images: int, recipe: Recipe) -> int:
    """Number of optimiser steps of a whole training on so many images."""
    return math.ceil(images_per_epoch(images, recipe) / recipe.batch_size) * recipe.epochs


class Trainer:
    """Trains what requires a gradient in `model` on `data`, which lies on the model's device."""

    def __init__(
        self,
        model: Any,
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
        self.batches = self.steps // recipe.epochs
        self.augment = augmentation.make(
            recipe.augmentation, preprocessing, int(self.model.num_classes), recipe.label_smoothing
        )
        workers = augmentation.workers_for(self.device, self.augment)
        self.ahead = (
            augmentation.PrefetchLoader(data.images, data.labels, self.augment, workers) if workers > 0 else None
        )
        self.path = fast_path.ForwardPlan(forward=model)
        self.step = 0
        self.batch = 0
        """Batches done of the epoch that is under way."""

        self.curve: list[Epoch] = []
        self.seconds = 0.0
        """Time spent in `fit`, in earlier processes too."""

        self.epoch_seconds: list[float] = []
        """Time of each epoch that this process did from its start to its end."""

        self._clock = time.perf_counter()
        self._sums = self._no_sums()

    def _no_sums(self) -> dict[str, Tensor]:
        """Over the epoch so far, on the device: loss times images, right answers, steps with a finite loss."""
        return {name: torch.zeros((), device=self.device) for name in ("loss", "correct", "finite")}

    def fit(
        self, report: Report | None = None, boundary: Boundary | None = None, look: Look | None = None
    ) -> list[Epoch]:
        """Run the recipe from where it stands to its end; returns the learning curve. Raises `Diverged` if the loss is
        not finite, and whatever `boundary` raises."""
        self.model.train()
        self._clock = time.perf_counter() - self.seconds
        shortest = fast_path.open_plan(
            self.model, self.attachment, self.data.images, self.preprocessing, self.recipe, self.precision
        )
        with shortest as path:
            self.follow(path, report, boundary, look)
        self.seconds = time.perf_counter() - self._clock
        self.ahead = None  # ends its processes
        self.model.eval()
        return self.curve

    def follow(
        self,
        path: fast_path.ForwardPlan,
        report: Report | None = None,
        boundary: Boundary | None = None,
        look: Look | None = None,
    ) -> None:
        """The epochs of `fit`, along a path that is open."""
        self.path = path
        while len(self.curve) < self.recipe.epochs:
            self._epoch(len(self.curve) + 1, report, boundary, look)
        self.path = replace(path, inputs=None)  # a GPU needs the memory for other things

    @property
    def step_seconds(self) -> float | None:
        """Median over whole epochs of an epoch's time by its steps; None if no epoch was whole."""
        return median(self.epoch_seconds) / self.batches if self.epoch_seconds else None

    def state(self) -> dict[str, Any]:
        """Where training stands at a step boundary, beside the model's tensors. Raises `Diverged` as `fit` does."""
        self._check_finite(len(self.curve) + 1)
        return {
            "step": self.step,
            "batch": self.batch,
            "curve": [asdict(epoch) for epoch in self.curve],
            "seconds": time.perf_counter() - self._clock,
            "sums": self._sums,
            "optimizer": self.optimizer.state_dict(),
            "generators": devices.random_states(self.device),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave; the model's tensors have been put back already."""
        self.step, self.batch, self.seconds = state["step"], state["batch"], state["seconds"]
        self.curve = [Epoch(**epoch) for epoch in state["curve"]]
        self._sums = state["sums"]
        self.optimizer.load_state_dict(state["optimizer"])
        devices.set_random_states(state["generators"], self.device)

    def _epoch(self, epoch: int, report: Report | None, boundary: Boundary | None, look: Look | None) -> None:
        if self.batch == 0:
            # Seeding here makes an epoch's random choices a function of (seed, epoch) alone.
            torch.manual_seed(derived_seed(self.seed, f"epoch {epoch}"))
            self._sums = self._no_sums()
        first, seen, start, shown = self.batch, 0, time.perf_counter(), 0.0
        for inputs, labels in self._batches(epoch, self.batch):
            loss, hits = self._train_step(inputs, labels)
            self._sums["loss"] += loss * len(labels)
            self._sums["correct"] += hits
            self._sums["finite"] += self._sums["loss"].abs() < math.inf
            self.batch += 1
            seen += len(labels)
            now = time.perf_counter()
            if report and now - shown > REPORT_EVERY_SECONDS:  # reading the sums waits for the device
                shown = now
                report(self._progress(epoch, seen / (now - start)))
            if boundary and self.batch < self.batches:
                boundary(False)
        self._check_finite(epoch)
        if first == 0:
            self.epoch_seconds.append(time.perf_counter() - start)
        mean, accuracy = self._means()
        lr = self.optimizer.param_groups[0]["lr"]
        scores = self._look(look) if look else {}
        self.curve.append(Epoch(epoch=epoch, train_loss=mean, train_accuracy=accuracy, lr=lr, scores=scores))
        self.batch = 0
        if boundary:
            boundary(True)

    def _look(self, look: Look) -> dict[str, float]:
        """What `look` gives; its time is not training time."""
        start = time.perf_counter()
        scores = look()
        self.model.train()
        self._clock += time.perf_counter() - start
        return scores

    def _means(self) -> tuple[float, float]:
        """Mean loss, and per cent right, over the epoch so far."""
        size = self.recipe.batch_size
        seen = min(self.batch * size, images_per_epoch(len(self.data), self.recipe))
        return float(self._sums["loss"]) / seen, 100 * float(self._sums["correct"]) / seen

    def _check_finite(self, epoch: int) -> None:
        if not math.isfinite(float(self._sums["loss"])):
            raise Diverged(self.step - self.batch + int(self._sums["finite"]) + 1, epoch)

    def _progress(self, epoch: int, speed: float) -> Progress:
        loss, accuracy = self._means()
        return Progress(
            epoch=epoch,
            epochs=self.recipe.epochs,
            step=self.step,
            steps=self.steps,
            loss=loss,
            accuracy=accuracy,
            images_per_second=speed,
        )

    def _batches(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """What the path takes (normalised images [B, 3, H, W], or what is computed once) and targets, labels [B] or
        probabilities [B, C], from batch `first` on."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, f"order {epoch}"))
        order = torch.randperm(len(self.data), generator=generator)[: images_per_epoch(len(self.data), self.recipe)]
        size = self.recipe.batch_size
        seeds = [derived_seed(self.seed, f"augment {epoch} {number}") for number in range(self.batches)]
        if self.ahead is not None:
            places = [index.tolist() for index in order.split(size)]
            yield from self.ahead.batches(list(zip(places, seeds, strict=True))[first:])
            return
        for index, seed in list(zip(order.to(self.device).split(size), seeds, strict=True))[first:]:
            if self.path.inputs is not None:
                yield self.path.inputs[index], self.data.labels[index]
            else:
                yield self.augment(self.data.images[index], self.data.labels[index], seed)

    def _train_step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """One update. Returns the mean loss and the number of right answers, both on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.recipe, self.batches)
        soft = targets.ndim == 2
        with devices.autocast(self.precision, self.device):
            logits = self.path.forward(inputs)
            smoothing = 0.0 if soft else self.recipe.label_smoothing  # soft targets are smoothed already
            loss = cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        penalty = self.attachment.penalty
        (loss + penalty() if penalty else loss).backward()
        self.optimizer.step()
        self.step += 1
        if self.attachment.after_step:
            self.attachment.after_step(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        labels = targets.argmax(dim=1) if soft else targets
        return loss.detach(), (logits.detach().argmax(dim=1) == labels).sum()
