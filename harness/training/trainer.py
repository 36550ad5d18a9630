"""The one trainer: every method on every task goes through `Trainer.fit`."""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness import device as devices
from harness.data import augmentation
from harness.data.splits import Split
from harness.errors import HarnessError
from harness.schema.failures import Diverged
from harness.schema.optimizers import make_optimizer, set_rate
from harness.schema.preprocessing import Preprocessing
from harness.schema.record import Epoch
from harness.schema.schedules import learning_rate
from harness.schema.spec import Recipe
from harness.training import fast_path
from harness.training.callbacks import Callback, Progress
from harness.training.fast_path import ForwardPlan
from harness.training.step_graphs import Step, StepGraphs, can_replay
from methods.base import Attachment
from methods.objective import Objective


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
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.model, self.attachment, self.data = model, attachment, data
        self.preprocessing, self.recipe, self.seed, self.callbacks = preprocessing, recipe, seed, callbacks
        self.device = data.labels.device
        self.precision = devices.precision_in_use(recipe.precision, self.device)
        self.optimizer = make_optimizer(model, recipe, attachment.groups)
        self.images = images_per_epoch(len(data), recipe)
        """Images of an epoch."""

        self.steps = total_steps(len(data), recipe)
        self.batches = self.steps // recipe.epochs
        """Batches of an epoch."""

        self.augment = augmentation.make(
            recipe.augmentation, preprocessing, int(self.model.num_classes), recipe.label_smoothing
        )
        workers = augmentation.workers_for(self.device, self.augment)
        self.loader = (
            augmentation.PrefetchLoader(data.images, data.labels, self.augment, workers) if workers > 0 else None
        )
        self.plan = ForwardPlan(forward=model)
        self.objective = Objective(
            model=model,
            attachment=attachment,
            loss=self._loss,
            precision=lambda: devices.autocast(self.precision, self.device),
        )
        self.update: Step = self._update
        self.step_mode = "eager"
        """How the steps were run; after a reason, why no `CUDA graph` was recorded of them."""

        self.step = 0
        self.batch = 0
        """Batches done of the epoch that is under way."""

        self.curve: list[Epoch] = []
        self.seconds = 0.0
        """Time spent in `fit`, in earlier processes too."""

        self.epoch_seconds: list[float] = []
        """Time of each epoch that this process did from its start to its end."""

        self._fit_began = self._epoch_began = time.perf_counter()
        self._first_batch = 0
        self._sums = self._zero_sums()

    def fit(self, plan: ForwardPlan | None = None) -> list[Epoch]:
        """Run the recipe from where it stands to its end; returns the learning curve.

        `plan`: how to get from images to logits, the shortest way if None. Raises `Diverged` if the loss is not finite,
        and what a callback raises.
        """
        self.model.train()
        self._fit_began = time.perf_counter() - self.seconds
        if can_replay(self.model, self.attachment, self.device):
            self.update = StepGraphs(self._update)
        shortest = fast_path.open_plan(
            self.model, self.attachment, self.data.images, self.preprocessing, self.recipe, self.precision
        )
        for callback in self.callbacks:
            callback.on_start(self)
        with nullcontext(plan) if plan else shortest as self.plan:
            while len(self.curve) < self.recipe.epochs:
                self._train_epoch(len(self.curve) + 1)
        self.seconds = time.perf_counter() - self._fit_began
        self.plan = replace(self.plan, inputs=None)  # a GPU needs the memory for other things
        self.loader = None  # ends its processes
        if isinstance(self.update, StepGraphs):
            self.step_mode = self.update.mode
        self.update = self._update  # frees the memory of what was recorded
        self.model.eval()
        return self.curve

    def _train_epoch(self, epoch: int) -> None:
        if self.batch == 0:
            # Seeding here makes an epoch's random choices a function of (seed, epoch) alone.
            torch.manual_seed(derived_seed(self.seed, f"epoch {epoch}"))
            self._sums = self._zero_sums()
        self._first_batch, self._epoch_began = self.batch, time.perf_counter()
        for inputs, targets in self._batches(epoch, self.batch):
            loss, correct = self._train_step(inputs, targets)
            self._count(loss, correct, len(targets))
            for callback in self.callbacks:
                callback.on_step(self)
        self._finish_epoch(epoch)
        for callback in self.callbacks:
            callback.on_epoch_end(self)

    def _train_step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """One update. Returns the mean loss and the number of correct answers, both on the device."""
        set_rate(self.optimizer, learning_rate(self.step, self.recipe, self.batches))
        loss, correct = self.update(inputs, targets)
        self.step += 1
        return loss, correct

    def _update(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What a step does on the device."""
        losses = self.objective(self.plan.forward, inputs, targets)
        losses.total.backward()
        self.optimizer.step()
        if self.attachment.after_step:
            self.attachment.after_step(self.step + 1)
        self.optimizer.zero_grad(set_to_none=True)
        labels = targets.argmax(dim=1) if targets.ndim == 2 else targets
        return losses.own.detach(), (losses.logits.detach().argmax(dim=1) == labels).sum()

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy with the recipe's smoothing; targets that are probabilities are smoothed already."""
        smoothing = 0.0 if targets.ndim == 2 else self.recipe.label_smoothing
        return cross_entropy(logits, targets, label_smoothing=smoothing)

    def _batches(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """What the plan takes (normalised images [B, 3, H, W], or cached features) and targets, labels [B] or
        probabilities [B, C], from batch `first` on."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, f"order {epoch}"))
        order = torch.randperm(len(self.data), generator=generator)[: self.images]
        size = self.recipe.batch_size
        seeds = [derived_seed(self.seed, f"augment {epoch} {number}") for number in range(self.batches)]
        if self.loader is not None:
            indices = [index.tolist() for index in order.split(size)]
            yield from self.loader.batches(list(zip(indices, seeds, strict=True))[first:])
            return
        for index, seed in list(zip(order.to(self.device).split(size), seeds, strict=True))[first:]:
            if self.plan.inputs is not None:
                yield self.plan.inputs[index], self.data.labels[index]
            else:
                yield self.augment(self.data.images[index], self.data.labels[index], seed)

    def _zero_sums(self) -> dict[str, Tensor]:
        """Over the epoch so far, on the device: loss times images, correct answers, steps with a finite loss."""
        return {name: torch.zeros((), device=self.device) for name in ("loss", "correct", "finite")}

    def _count(self, loss: Tensor, correct: Tensor, images: int) -> None:
        self._sums["loss"] += loss * images
        self._sums["correct"] += correct
        self._sums["finite"] += self._sums["loss"].abs() < math.inf
        self.batch += 1

    def _finish_epoch(self, epoch: int) -> None:
        self._check_finite(epoch)
        if self._first_batch == 0:
            self.epoch_seconds.append(time.perf_counter() - self._epoch_began)
        loss, accuracy = self._means()
        lr = learning_rate(self.step - 1, self.recipe, self.batches)
        self.curve.append(Epoch(epoch=epoch, train_loss=loss, train_accuracy=accuracy, lr=lr, scores={}))
        self.batch = 0

    def _check_finite(self, epoch: int) -> None:
        if not math.isfinite(float(self._sums["loss"])):
            raise Diverged(self.step - self.batch + int(self._sums["finite"]) + 1, epoch)

    def _means(self) -> tuple[float, float]:
        """Mean loss, and per cent correct, over the epoch so far."""
        seen = self._seen(self.batch)
        return float(self._sums["loss"]) / seen, 100 * float(self._sums["correct"]) / seen

    def _seen(self, batches: int) -> int:
        """Images in the first batches of an epoch."""
        return min(batches * self.recipe.batch_size, self.images)

    def progress(self) -> Progress:
        """Where training stands, within an epoch. Waits for the device."""
        loss, accuracy = self._means()
        seen = self._seen(self.batch) - self._seen(self._first_batch)
        return Progress(
            epoch=len(self.curve) + 1,
            epochs=self.recipe.epochs,
            step=self.step,
            steps=self.steps,
            loss=loss,
            accuracy=accuracy,
            images_per_second=seen / (time.perf_counter() - self._epoch_began),
        )

    @property
    def step_seconds(self) -> float | None:
        """Median over whole epochs of an epoch's time by its steps; None if no epoch was whole."""
        return median(self.epoch_seconds) / self.batches if self.epoch_seconds else None

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within, a callback may evaluate the model; the time does not count as training time."""
        start = time.perf_counter()
        yield
        self.model.train()
        self._fit_began += time.perf_counter() - start

    def state_dict(self) -> dict[str, Any]:
        """Where training stands at a step boundary, the callbacks included. Raises `Diverged` as `fit` does."""
        self._check_finite(len(self.curve) + 1)
        return {
            "precision": self.precision,
            "step": self.step,
            "batch": self.batch,
            "curve": [asdict(epoch) for epoch in self.curve],
            "seconds": time.perf_counter() - self._fit_began,
            "sums": self._sums,
            "optimizer": self.optimizer.state_dict(),
            "generators": devices.random_states(self.device),
            "callbacks": {callback.name: callback.state_dict() for callback in self.callbacks},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave; a callback that was not there starts from its beginning."""
        for callback in self.callbacks:
            if callback.name in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][callback.name])
        self.step, self.batch, self.seconds = state["step"], state["batch"], state["seconds"]
        self.curve = [Epoch(**epoch) for epoch in state["curve"]]
        self._sums = state["sums"]
        self.optimizer.load_state_dict(state["optimizer"])
        devices.set_random_states(state["generators"], self.device)
