"""What is submitted: a callable that submitit can pickle, start, and queue up again.

This module imports nothing heavy. submitit unpickles before it installs its signal handlers, and a signal that comes
while torch is being imported would end the job for good.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass

from submitit.core.utils import DelayedSubmission


@dataclass(frozen=True, slots=True)
class Payload:
    """A job of `slurm.job_runner`, unpickled when it starts. Submit this object itself: submitit looks for `checkpoint`
    on what it was given, and a function around it would hide it."""

    content: bytes
    """A pickled callable without arguments."""

    def __call__(self) -> None:
        pickle.loads(self.content)()

    def checkpoint(self) -> DelayedSubmission:
        """What goes on after a requeue: the same, for all state lies in the run folders."""
        return DelayedSubmission(self)
