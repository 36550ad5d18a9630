"""One process at work: `init_worker` once, then `execute_run` for each run, in local workers and SLURM jobs alike."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import torch

from harness import device as devices
from harness import lease, sources
from harness.data.lists import Roots
from harness.errors import HarnessError
from harness.models import backbones
from harness.plans.plan import Selection
from harness.plans.tuning import WorkItem, representative_spec, resolve
from harness.records.stale import is_stale
from harness.records.store import PROGRESS_NAME, Store
from harness.schema import failures
from harness.schema.failures import CLASSES, Failure
from harness.schema.keeping import Keeping
from harness.schema.record import RunRecord, Tuning
from harness.schema.spec import RunSpec
from harness.training.callbacks import Decoding, Progress, Report
from harness.training.checkpointing import SAVE_EVERY_SECONDS, Checkpointer, CheckpointStore, StopRequest
from harness.training.run import Finished, RunContext, attempt, failed_record
from harness.training.trackers import Trackers, import_packages
from methods import registry
from methods.base import PluginWarning
from suites import SUITES, own
from suites.base import Suite

PROGRESS_EVERY_SECONDS = 3.0
"""Time between two writes of a run's progress, for `sctbench status`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a worker process must know."""

    device: str
    root: Path
    """Folder of the results."""

    data: Roots
    """Folders of the user's data."""

    weight_files: dict[str, Path]
    method_files: list[str]
    suites: list[Suite]
    """Suites that were read from the user's own files and folders."""

    curve: bool = False
    """Whether val is scored after every epoch, where it is not trained on."""

    keeping: Keeping = field(default_factory=Keeping)
    track: tuple[str, ...] = ()
    """Trackers that the runs' curves are drawn with, see `harness.training.trackers`."""

    redo_stale: bool = False
    """Whether complete runs are done again whose method's source has changed since, see `harness.records.stale`."""

    save_every: float = SAVE_EVERY_SECONDS
    """Seconds between two training states, see `harness.training.checkpointing`; 0: one after every step."""

    sources: str = field(default_factory=sources.source_digest)
    """Digest of the sources that the process which makes the setup has imported, see `harness.sources`."""


def setup_for(selection: Selection, root: Path, data: Roots, device: str) -> Setup:
    """The setup of a worker that does runs of a selection, with what this process knows of the user's own files."""
    return Setup(
        device=device,
        root=root,
        data=data,
        weight_files=backbones.files(),
        method_files=registry.added_files(),
        suites=[selection.suite] if selection.suite.path or not selection.suite.tasks[0].build else [],
    )


@dataclass(frozen=True, slots=True)
class Busy:
    """Another process holds this run."""

    spec: RunSpec
    holder: str


STOP = StopRequest()
"""Asks the run under way to save its state at the next step boundary and to raise `Interrupted`."""


def stop_on_signals() -> None:
    """From now on SIGTERM, SIGUSR1 and SIGUSR2 request a stop, and do nothing else."""

    def handle(number: int, frame: FrameType | None) -> None:
        STOP.request(f"received {signal.Signals(number).name}")

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, handle)


def init_worker(setup: Setup) -> None:
    """Prepare this process, once: weight files, methods, suites and trackers of the user's choice; one thread on a CPU.

    `HarnessError` if its sources are not those of the process that made the setup, `SuiteError` if the data at a
    suite's path are not those that it found.
    """
    sources.check_sources(setup.sources)
    for suite in setup.suites:
        own.check_unchanged(suite)
    warnings.simplefilter("ignore", PluginWarning)  # the command that started this process has said so
    registry.all_methods()  # imported now: what is edited later must not run under the digest of what was there
    backbones.remember_files(setup.weight_files)
    for reference in setup.method_files:
        registry.add_file(reference)
    SUITES.update({suite.name: suite for suite in setup.suites})
    import_packages(setup.track)
    devices.use(torch.device(setup.device))
    if torch.device(setup.device).type == "cpu":
        torch.set_num_threads(1)


def settled(spec: RunSpec, setup: Setup) -> RunRecord | None:
    """The run's record of success, unless it is a stale one that is to be done again."""
    done = Store(setup.root).complete(spec)
    return None if done is not None and setup.redo_stale and is_stale(done) else done


def execute_run(job: WorkItem, setup: Setup, report: Report | None = None) -> RunRecord | Busy:
    """Do one run: give its record if it is complete, else go on from its state, and write the record.

    A failure is a failed record too; after one that may be gone a moment later the run is tried again, a few times.
    Raises `Interrupted` when a stop was requested; the state is saved then. Raises `HarnessError` for a final run whose
    trials are not all done.
    """
    tries = 0
    while True:
        outcome = _try(job, setup, report)
        if not isinstance(outcome, RunRecord) or not outcome.failure:
            return outcome
        pauses = CLASSES[outcome.failure.kind].pauses
        if tries == len(pauses):
            return outcome
        again = f"tried again in {pauses[tries]:.0f} s"
        print(f"{outcome.spec.task} {outcome.spec.method}: {outcome.reason}; {again}", file=sys.stderr, flush=True)
        _wait(pauses[tries])
        tries += 1


def _wait(seconds: float) -> None:
    """Wait, unless a stop is requested: then `Interrupted`."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        STOP.check()
        time.sleep(min(left, 0.5))


def _try(job: WorkItem, setup: Setup, report: Report | None) -> RunRecord | Busy:
    """`execute_run` once."""
    store, spec = Store(setup.root), representative_spec(job)
    try:
        spec, tuning = resolve(job, store.read)
        if done := settled(spec, setup):
            return done
        STOP.check()
        with lease.acquire(store.folder(spec)) as held:
            return settled(spec, setup) or _do_alone(spec, tuning, setup, store, held, report)
    except lease.Taken as other:
        return Busy(spec, str(other))
    except OSError as error:
        return failed_record(spec, *failures.describe(error))


def _do_alone(
    spec: RunSpec, tuning: Tuning | None, setup: Setup, store: Store, held: lease.Lease, report: Report | None
) -> RunRecord:
    """`execute_run` for the one who holds the lease."""
    try:
        store.clear_place(spec)
    except HarnessError as error:
        return failed_record(spec, *failures.describe(error))
    device, folder = torch.device(setup.device), store.folder(spec)
    states = CheckpointStore(folder)
    trackers = Trackers(setup.track, spec, setup.root, folder)
    ctx = RunContext(
        spec=spec,
        device=device,
        roots=setup.data,
        report=_progress_to(folder, report),
        checkpointer=Checkpointer(states, STOP, held.check, setup.save_every),
        tuning=tuning,
        curve=setup.curve,
        keeping=setup.keeping,
        trackers=trackers,
    )
    record = None
    try:
        record = _write(store, held, attempt(ctx))
    finally:
        trackers.finish(record)
    kind = CLASSES[record.failure.kind] if record.failure else None
    if kind is None or not kind.keeps_state:
        states.remove()
    (folder / PROGRESS_NAME).unlink(missing_ok=True)
    if kind and kind.name.startswith("memory") and device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    return record


def _progress_to(folder: Path, report: Report | None) -> Report:
    """A listener that leaves the progress in the run's folder every few seconds, and hands it on to `report`."""
    written = 0.0

    def listen(progress: Progress | Decoding) -> None:
        nonlocal written
        if report:
            report(progress)
        if isinstance(progress, Progress) and time.monotonic() - written > PROGRESS_EVERY_SECONDS:
            written = time.monotonic()
            text = json.dumps(asdict(progress) | {"time": datetime.now(UTC).isoformat(timespec="seconds")})
            temporary = folder / f".{PROGRESS_NAME}.{os.getpid()}.tmp"
            with suppress(OSError):  # nothing depends on it, so it is not worth a failed run, nor waiting for the disk
                temporary.write_text(text)
                temporary.replace(folder / PROGRESS_NAME)

    return listen


def record_killed(spec: RunSpec, setup: Setup, reason: str) -> RunRecord | Busy:
    """Write the record of a run whose process died, unless somebody else has taken the run over."""
    store = Store(setup.root)
    try:
        with lease.acquire(store.folder(spec)) as held:
            killed = Finished(record=failed_record(spec, reason, Failure(kind="killed")))
            return settled(spec, setup) or _write(store, held, killed)
    except lease.Taken as other:
        return Busy(spec, str(other))
    except OSError as error:
        return failed_record(spec, *failures.describe(error))


def _write(store: Store, held: lease.Lease, done: Finished) -> RunRecord:
    held.check()
    store.write(done.record, done.files)
    return done.record
