"""What an execution still has to do, in whichever process, and what a finished run means for the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from harness.execution.worker import Busy
from harness.plans.tuning import TunedRun, WorkItem, representative_spec, resolve
from harness.records.store import Store
from harness.schema.failures import FailureClass
from harness.schema.record import RunRecord
from harness.schema.spec import RunSpec
from harness.training.callbacks import Decoding, Progress

Listener = Callable[[RunSpec, Progress | Decoding | RunRecord | Busy], None]
"""Called with each run's progress, finally with its record, and when another process holds it."""

RETRY_SECONDS = 2.0
"""Time between two looks at a run that another process holds."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How an execution ended, apart from the records."""

    interrupted: bool = False
    """Whether it was asked to stop before all was done."""

    ended_by: FailureClass | None = None
    """The failure that the runs not started would have met too."""

    not_started: int = 0


def shared(item: WorkItem) -> tuple[Any, ...]:
    """What runs must have in common to share decoded data and loaded weights in one process."""
    spec = representative_spec(item)
    return spec.suite, spec.task, spec.shots, spec.split_seed, spec.preprocessing, spec.backbone


class Backlog:
    """The runs that have not been started, and the outcome so far."""

    def __init__(self, ready: Iterable[WorkItem], blocked: Iterable[TunedRun], store: Store) -> None:
        ready = list(ready)
        self.outcome = Outcome()
        self._store = store
        self._groups: dict[Any, deque[WorkItem]] = {}
        """Runs that can start, by what they share."""

        pending = {job.run_id for job in ready if isinstance(job, RunSpec)}
        self._waiting = [(final, pending & set(final.cell[0])) for final in blocked]
        """Finals, each with the ids of its trials that are still to be done."""

        self._held: deque[WorkItem] = deque()
        """Runs that other processes held when they were last looked at."""

        self._add(ready)

    def __len__(self) -> int:
        return self.ready + len(self._waiting) + len(self._held)

    def _add(self, items: Iterable[WorkItem]) -> None:
        for item in items:
            self._groups.setdefault(shared(item), deque()).append(item)

    @property
    def ready(self) -> int:
        """Runs that can start and that no other process is known to hold."""
        return sum(map(len, self._groups.values()))

    @property
    def can_go_on(self) -> bool:
        """Whether `take` has something to give."""
        return bool(self._groups or self._held)

    def take(self, own: Any = None, others: Collection[Any] = ()) -> WorkItem | None:
        """The next run for a process whose last run shared `own`, while others work on what they share: one of its own
        group, else of a group that nobody works on, else of the largest; if none can start, one that was held."""
        if not self._groups:
            return self._held.popleft() if self._held else None
        free = [share for share in self._groups if share not in others]
        largest = max(self._groups, key=lambda share: len(self._groups[share]))
        share = own if own in self._groups else (free or [largest])[0]
        item = self._groups[share].popleft()
        if not self._groups[share]:
            del self._groups[share]
        return item

    def spec_of(self, item: WorkItem) -> RunSpec:
        """The run that an item stands for; of a final whose trials cannot be read now, one that costs as much."""
        with suppress(OSError):
            return resolve(item, self._store.read)[0]
        return representative_spec(item)

    def put_back(self, item: WorkItem) -> None:
        """Another process holds this run."""
        self._held.append(item)

    def settle(self, spec: RunSpec) -> None:
        """The run has a record: add the finals that waited for it alone. One with a trial without a verdict is lost."""
        for _, pending in self._waiting:
            pending.discard(spec.run_id)
        free, ready = [final for final, pending in self._waiting if not pending], []
        self._waiting = [(final, pending) for final, pending in self._waiting if pending]
        for final in free:
            with suppress(OSError):  # a trial whose record cannot be read gives no verdict either
                if final.spec(self._store.read):
                    ready.append(final)
        self._add(ready)
        self.outcome.not_started += len(free) - len(ready)

    def end(self, kind: FailureClass) -> None:
        """Start nothing more: the other runs would meet this failure too."""
        if not self.outcome.interrupted:
            self.outcome.ended_by = kind
            self.outcome.not_started += self.drop()

    def interrupt(self) -> None:
        """Start nothing more: the user asked for it."""
        self.outcome.interrupted = True
        self.outcome.not_started += self.drop()

    def drop(self) -> int:
        """Forget all; returns how many there were."""
        count = len(self)
        self._groups.clear()
        self._waiting.clear()
        self._held.clear()
        return count
