"""What may follow a training step by step: one protocol for progress, checkpoints and scores of every epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.training.trainer import Trainer

REPORT_EVERY_SECONDS = 0.2


class Callback:
    """Something that follows a training. All methods do nothing until a class overrides them.

    Callbacks are called in the order in which the trainer holds them; what one raises stops the training.
    """

    name = ""
    """Its state's name among those of the other callbacks."""

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step in this process; of a resumed training `trainer.curve` has what was done."""

    def on_step(self, trainer: Trainer) -> None:
        """After every optimiser step; after the last of an epoch `trainer.batch` is `trainer.batches`."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        """After every epoch, which is `trainer.curve[-1]` by then, and `trainer.batch` 0."""

    def state_dict(self) -> dict[str, Any]:
        """What it needs to go on in another process: plain values and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where training stands, for a display."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    """Mean over the epoch so far."""

    accuracy: float
    """Per cent, over the epoch so far."""

    images_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How far the images are decoded that a run waits for."""

    done: int
    total: int
    images_per_second: float


Report = Callable[[Progress | Decoding], None]


class DecodingReporter:
    """An `Advance` that tells `report` every now and then how far images are decoded, list after list; nothing of
    lists that are done at once."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self._start, self._done = time.perf_counter(), 0
        self._reported = self._start

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if done < self._done:
            self._start = now
        self._done = done
        if now - self._reported > REPORT_EVERY_SECONDS:
            self._reported = now
            rate = done / max(now - self._start, 1e-6)
            self.report(Decoding(done=done, total=total, images_per_second=rate))


class ProgressReporter(Callback):
    """Tells `report` every now and then where training stands."""

    name = "progress"

    def __init__(self, report: Report) -> None:
        self.report = report
        self._reported = 0.0

    def on_step(self, trainer: Trainer) -> None:
        now = time.perf_counter()
        if now - self._reported > REPORT_EVERY_SECONDS:  # reading the loss waits for the device
            self._reported = now
            self.report(trainer.progress())

    def on_epoch_end(self, trainer: Trainer) -> None:
        self._reported = 0.0  # the first step of every epoch is reported
