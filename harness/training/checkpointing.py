"""Exact resumption: the state of a training on disk, so that a run killed anywhere ends as an undisturbed one would.

A state is one file, `state/<step>.safetensors` in the run's folder, put in place by a rename. The two newest are kept;
one that is torn, altered, or made by another run, on other data or with other code is not used, and the one before it
is. With none, the run starts from the beginning. What cannot be read is neither skipped nor deleted: it may be sound.
"""

import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from harness import tensor_files
from harness.errors import Interrupted
from harness.paths import write_atomically
from harness.training.callbacks import Callback
from harness.training.trainer import Trainer

FORMAT = 2
"""Version of the state's layout; a state of another one is not used."""

KEPT = 2

SAVE_EVERY_SECONDS = 20.0
"""A younger state is kept at the end of an epoch: a run of seconds is repeated faster than saved. Within an epoch a
state is replaced when it is ten times as old."""

SHARE = 0.02
"""Share of the time that saving may take: large states (full fine-tuning) are saved less often."""


class StopRequest:
    """A request to stop, seen by the training at its next step boundary."""

    def __init__(self) -> None:
        self.reason = ""

    def request(self, reason: str) -> None:
        """Ask for a stop; the first reason stays."""
        self.reason = self.reason or reason

    def check(self) -> None:
        """Raise `Interrupted` if a stop was requested."""
        if self.reason:
            raise Interrupted(self.reason)


class CheckpointStore:
    """The training states in one run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "state"
        self.identity: dict[str, Any] = {"format": FORMAT}
        """What a state must have been made with to be of use."""

    def must_match(self, identity: dict[str, Any]) -> None:
        """From now on only states made with exactly this are used: run, device, data, code."""
        self.identity = {"format": FORMAT, **identity}

    def _files(self) -> list[Path]:
        """Newest last."""
        try:
            return sorted(path for path in self.folder.iterdir() if path.suffix == ".safetensors")
        except FileNotFoundError:
            return []

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a state and drop all but the `KEPT` newest."""
        content = tensor_files.encode({"identity": self.identity, **state})
        write_atomically(self.folder / f"{step:09d}.safetensors", lambda file: file.write(content))
        for old in self._files()[:-KEPT]:
            old.unlink(missing_ok=True)

    def newest(self, device: torch.device) -> dict[str, Any] | None:
        """The newest usable state, on `device`; newer ones that were read and are not usable are removed. `OSError` if
        one cannot be read."""
        for path in reversed(self._files()):
            with suppress(tensor_files.BadTensorFile):
                state: dict[str, Any] = tensor_files.decode(path, device)
                differences = self._differences(state)
                if not differences:
                    return state
                print(f"{path}: not used, made with other {', '.join(differences)}", file=sys.stderr, flush=True)
            path.unlink(missing_ok=True)
        return None

    def _differences(self, state: dict[str, Any]) -> list[str]:
        """What the state was made with that is different now."""
        theirs = state.get("identity", {})
        return [key for key in {**theirs, **self.identity} if theirs.get(key) != self.identity.get(key)]

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Checkpointer(Callback):
    """Decides at step boundaries whether to save, and stops the training when that was requested."""

    name = "checkpointer"

    def __init__(
        self,
        states: CheckpointStore,
        stop: StopRequest,
        check: Callable[[], None] = lambda: None,
        every: float = SAVE_EVERY_SECONDS,
    ) -> None:
        self.states, self.stop, self.check, self.every = states, stop, check, every
        self.resumed_at: list[int] = []
        """Steps at which the training was resumed."""

        self._step = 0
        self._saved_at = time.monotonic()

    def on_step(self, trainer: Trainer) -> None:
        if trainer.batch < trainer.batches:  # else the epoch's end follows at once
            self._at_boundary(trainer, 10 * self.every)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self._at_boundary(trainer, self.every)

    def state_dict(self) -> dict[str, Any]:
        return {"resumed_at": [*self.resumed_at, self._step]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.resumed_at = state["resumed_at"]

    def _at_boundary(self, trainer: Trainer, oldest: float) -> None:
        """Save if the last state is `oldest` seconds old. Raises `Interrupted`, after saving, if a stop was requested,
        and what `check` raises."""
        self.check()
        age, reason = time.monotonic() - self._saved_at, self.stop.reason
        if reason or age >= oldest:
            self._save(trainer)
        if reason:
            raise Interrupted(reason)

    def _save(self, trainer: Trainer) -> None:
        self._step = trainer.step
        state, start = trainer.state_dict(), time.monotonic()
        self.states.save(trainer.step, state)
        self._saved_at = time.monotonic()
        if self.every:  # 0, as tests have it: at every step
            self.every = max(self.every, (self._saved_at - start) / SHARE)
