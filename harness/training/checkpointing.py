"""Exact resumption: the state of a training on disk, so that a run killed anywhere ends as an undisturbed one would.

A state is one file, `state/<step>.safetensors` in the run's folder, put in place by a rename. The two newest are kept;
one that is torn, altered, or made by another run, on other data or with other code is not used, and the one before it
is. With none, the run starts anew. What cannot be read is neither passed over nor deleted: it may be sound.
"""

from __future__ import annotations

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

FORMAT = 1
"""Version of the state's layout."""

KEPT = 2
"""How many states are kept."""

SAVE_EVERY_SECONDS = 20.0
"""A state younger than this is not replaced at the end of an epoch: a run that takes seconds is done again sooner than
saved. Inside an epoch a state is replaced when it is ten times as old."""

SHARE = 0.02
"""Share of the time that saving may take: large states (full fine-tuning) are saved more seldom."""


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
        """From now on only states are used that were made with just this: run, device, data, code."""
        self.identity = {"format": FORMAT, **identity}

    def _files(self) -> list[Path]:
        """Newest last."""
        try:
            return sorted(path for path in self.folder.iterdir() if path.suffix == ".safetensors")
        except FileNotFoundError:
            return []

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Put a state in its place and drop what is older than the one before it."""
        content = tensor_files.encode({"identity": self.identity, **state})
        write_atomically(self.folder / f"{step:09d}.safetensors", lambda file: file.write(content))
        for old in self._files()[:-KEPT]:
            old.unlink(missing_ok=True)

    def newest(self, device: torch.device) -> dict[str, Any] | None:
        """The newest state that can be used; newer ones that were read and cannot be used are removed. `OSError` if
        one cannot be read."""
        for path in reversed(self._files()):
            with suppress(tensor_files.BadTensorFile):
                state = tensor_files.decode(path, device)
                other = self._differences(state)
                if not other:
                    return state
                print(f"{path}: not used, made with other {', '.join(other)}", file=sys.stderr, flush=True)
            path.unlink(missing_ok=True)
        return None

    def _differences(self, state: dict[str, Any]) -> list[str]:
        """What a state was made with that is not so now."""
        found = state.get("identity", {})
        return [key for key in {**found, **self.identity} if found.get(key) != self.identity.get(key)]

    def remove(self) -> None:
        """Delete all states."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Checkpointer:
    """Decides at step boundaries whether to save, and stops the training when that was requested."""

    def __init__(
        self,
        states: CheckpointStore,
        stop: StopRequest,
        check: Callable[[], None] = lambda: None,
        every: float = SAVE_EVERY_SECONDS,
    ) -> None:
        self.states, self.stop, self.check, self.every = states, stop, check, every
        self._saved_at = time.monotonic()

    def __call__(self, step: int, epoch_ends: bool, take: Callable[[], dict[str, Any]]) -> None:
        """Save `take()` if it is time. Raises `Interrupted`, after saving, if a stop was requested, and what `check`
        raises."""
        self.check()
        age, reason = time.monotonic() - self._saved_at, self.stop.reason
        if reason or age >= (self.every if epoch_ends else 10 * self.every):
            self._save(step, take())
        if reason:
            raise Interrupted(reason)

    def _save(self, step: int, state: dict[str, Any]) -> None:
        start = time.monotonic()
        self.states.save(step, state)
        self._saved_at = time.monotonic()
        if self.every:  # 0, as tests have it: at every step
            self.every = max(self.every, (self._saved_at - start) / SHARE)
