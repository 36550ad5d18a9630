"""Live curves of a training in TensorBoard, W&B or MLflow, drawn by accelerate's trackers.

Every tracker has a thread of its own and is told what happens through a queue, so that one which fails or hangs costs
the run a line on the error stream and nothing else.
"""

from __future__ import annotations

import fcntl
import os
import queue
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.errors import HarnessError, did_you_mean
from harness.records.store import TRACKING_NAME
from harness.schema.record import RunRecord
from harness.schema.spec import RunSpec
from harness.training.callbacks import Callback
from harness.training.cost import resident_peak

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from harness.training.trainer import Trainer

PROJECT = "sctbench"
"""What the runs are collected under in W&B and MLflow."""

WAIT_SECONDS = 10.0
"""How long a run that has ended waits for its trackers."""

QUEUE_LENGTH = 256
"""Messages that may wait for a tracker; further ones are dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A run whose curves are drawn."""

    spec: RunSpec
    root: Path
    """Folder of the results."""

    folder: Path
    """Where the run's curves lie."""

    ids: dict[str, str]
    """What each tracker that has begun knows the run by."""

    epochs: int
    """Epochs that were done before."""

    @property
    def name(self) -> str:
        """For people: task, method, seed, run id."""
        spec = self.spec
        return f"{spec.task} {spec.method} seed{spec.seed} {spec.run_id}"


def _started(kind: str, /, **settings: Any) -> GeneralTracker:
    """One of accelerate's trackers, ready to log."""
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # the trackers ask it whether this is the main process
    tracker: GeneralTracker = LOGGER_TYPE_TO_CLASS[kind](**settings)
    tracker.start()
    return tracker


@contextmanager
def _tensorboard(run: Drawn) -> Iterator[GeneralTracker]:
    """Event files. They hide what a process that was killed had drawn of epochs that are now done again."""
    run.ids["tensorboard"] = f"seed{run.spec.seed}"
    place = {"run_name": run.ids["tensorboard"], "logging_dir": run.folder / "tensorboard"}
    yield _started("tensorboard", **place, purge_step=run.epochs + 1)


@contextmanager
def _wandb(run: Drawn) -> Iterator[GeneralTracker]:
    """Files for `wandb sync`, unless the environment says that there is a server."""
    import wandb

    run.folder.mkdir(parents=True, exist_ok=True)
    yield _started(
        "wandb",
        run_name=PROJECT,
        name=run.name,
        group=run.spec.suite,
        id=run.ids.setdefault("wandb", uuid.uuid4().hex),
        resume="allow",
        dir=run.folder,
        mode=None if os.environ.keys() & {"WANDB_MODE", "WANDB_API_KEY"} else "offline",
        settings=wandb.Settings(console="off", silent=True),
    )


@contextmanager
def _mlflow(run: Drawn) -> Iterator[GeneralTracker]:
    """Files below `mlruns` in the results folder, unless a server was named."""
    import mlflow

    named = mlflow.is_tracking_uri_set()
    if not named:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a database on a shared disk has no sound locks
        mlflow.set_tracking_uri(run.root / "mlruns")
    try:
        with (run.root / ".mlflow.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # two processes would each make the project
            tracker = _started("mlflow", experiment_name=PROJECT, run_name=run.name, run_id=run.ids.get("mlflow"))
        run.ids["mlflow"] = tracker.tracker.info.run_id
        yield tracker
    finally:
        if not named:
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


OPEN: dict[str, Callable[[Drawn], AbstractContextManager[GeneralTracker]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
"""What starts a tracker, by its name, which is also that of its package."""


def check_track(names: str | Iterable[str] | None) -> tuple[str, ...]:
    """The trackers that are asked for, as `a,b` or one by one. `HarnessError` for one that is not known, or whose
    package is not there."""
    asked = names.split(",") if isinstance(names, str) else list(names or ())
    trackers = tuple(dict.fromkeys(name.strip() for name in asked))
    for name in trackers:
        if name not in OPEN:
            raise HarnessError(f"--track {name}: no such tracker. {did_you_mean(name, list(OPEN))}")
        for package in ("accelerate", name):
            spec = find_spec(package)
            if spec is None or spec.origin is None:  # a folder of that name is no package
                raise HarnessError(f"--track {name}: {package} is not installed: pip install 'sctbench[track]'")
    return trackers


def import_packages(names: Iterable[str]) -> None:
    """Import now what the trackers need, which takes seconds: later it would slow down the training that they draw."""
    for name in names:
        try:
            import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
        except Exception as error:  # the tracker will say so of every run
            print(f"{name} cannot be imported: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


Call = Callable[["GeneralTracker"], None]

_at_work: dict[str, threading.Thread] = {}
"""The newest thread of each tracker in this process."""


class _Line:
    """A tracker at work on its own thread, which nothing waits for but `close`."""

    def __init__(self, name: str, run: Drawn) -> None:
        self.name, self._run, self._full = name, run, False
        self._calls: queue.Queue[Call | None] = queue.Queue(QUEUE_LENGTH)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        _at_work[name] = self._thread
        self._thread.start()

    def tell(self, call: Call) -> None:
        """Have the tracker do that when it comes to it; it is dropped if too much waits already."""
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            if self._thread.is_alive() and not self._full:
                self._say("is too slow, parts of the curves are left out")
            self._full = True

    def close(self, until: float) -> None:
        """Let the tracker end, and wait for it until that moment of `time.monotonic`."""
        with suppress(queue.Full):
            self._calls.put(None, timeout=max(0.0, until - time.monotonic()) if self._thread.is_alive() else 0)
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._say(f"did not end within {WAIT_SECONDS:g} s, no further run is drawn there until it does")

    def _work(self) -> None:
        try:
            with OPEN[self.name](self._run) as tracker:
                while (call := self._calls.get()) is not None:
                    call(tracker)
                tracker.finish()
        except BaseException as error:  # also what would end the process, or this thread in silence
            self._say(f"draws no more of this run: {type(error).__name__}: {error}")

    def _say(self, what: str) -> None:
        with suppress(OSError):  # nobody may be there to read it
            print(f"{self._run.name}: {self.name} {' '.join(what.split())}", file=sys.stderr, flush=True)


class Trackers(Callback):
    """Tell each tracker a run's settings, then every epoch, then the result. No result depends on them.

    A run that begins anew draws its curves anew; a resumed one goes on with them.
    """

    name = "trackers"

    def __init__(self, names: Iterable[str], spec: RunSpec, root: Path, folder: Path) -> None:
        """`root`: folder of the results; `folder`: the run's."""
        self._names, self._spec, self._root, self._folder = names, spec, root, folder / TRACKING_NAME
        self._lines: list[_Line] = []
        self._ids: dict[str, str] = {}
        self._resumed, self._timed, self._last = False, 0, 0

    def state_dict(self) -> dict[str, Any]:
        return {"ids": dict(self._ids)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._ids, self._resumed = state["ids"], True

    def on_start(self, trainer: Trainer) -> None:
        if not self._resumed:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._last, begun = len(trainer.curve), set(self._ids)
        run = Drawn(spec=self._spec, root=self._root, folder=self._folder, ids=self._ids, epochs=self._last)
        self._lines = [_Line(name, run) for name in self._names if not _is_busy(name)]
        settings = dict(_flat(self._spec.as_dict()))
        for line in self._lines:
            if line.name not in begun:
                line.tell(lambda tracker: tracker.store_init_configuration(settings))

    def on_epoch_end(self, trainer: Trainer) -> None:
        epoch, values = trainer.curve[-1], _memory(trainer.device)
        values |= {"train/loss": epoch.train_loss, "train/accuracy": epoch.train_accuracy, "train/lr": epoch.lr}
        values |= {f"{split}/accuracy": accuracy for split, accuracy in epoch.scores.items()}
        if len(trainer.epoch_seconds) > self._timed:  # no interruption cut the epoch
            self._timed = len(trainer.epoch_seconds)
            values["train/images_per_second"] = trainer.images / trainer.epoch_seconds[-1]
        self._last = epoch.epoch
        self._tell(lambda tracker: tracker.log(values, step=epoch.epoch))

    def finish(self, record: RunRecord | None) -> None:
        """The run has ended, with this record if it has one. Waits for the trackers, `WAIT_SECONDS` at most."""
        if record and record.cost:
            values = {f"final/{split}/{n}": v for split, one in record.metrics.items() for n, v in one.values.items()}
            values["final/seconds"] = record.cost.seconds
            self._tell(lambda tracker: tracker.log(values, step=self._last))
        until = time.monotonic() + WAIT_SECONDS
        for line in self._lines:
            line.close(until)

    def _tell(self, call: Call) -> None:
        for line in self._lines:
            line.tell(call)


def _is_busy(name: str) -> bool:
    """Whether the tracker hangs in an earlier run of this process."""
    return name in _at_work and _at_work[name].is_alive()


def _memory(device: torch.device) -> dict[str, float]:
    """Peak of memory so far, in bytes: of the device's allocator, or of the process."""
    if device.type == "cuda":
        return {"memory/allocated": torch.cuda.max_memory_allocated(device)}
    resident = resident_peak()
    return {} if resident is None else {"memory/resident": resident}


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """Nested settings as `recipe.lr`; what is neither number nor text, as text."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str | int | float) else str(value)
