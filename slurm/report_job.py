"""The job after all runs of a submission: it writes the tables, and does without torch."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.children import SAFE
from harness.sources import ALL_ROOMS, check_sources, source_digest


def wait_for(processes: tuple[int, ...], check: Callable[[], None] = lambda: None) -> None:
    """Wait until processes of this machine have ended, or until `check` raises."""
    while any(_lives(pid) for pid in processes):
        check()
        time.sleep(1)


def _lives(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # a zombie has none
    except OSError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportJob:
    """Writes tables and figures from whatever records there are."""

    root: Path
    """Folder of the results."""

    suite: str
    after_processes: tuple[int, ...] = ()
    sources: str = field(default_factory=lambda: source_digest(ALL_ROOMS))
    """Of the process that submits."""

    def __call__(self) -> None:
        """Run `sctbench report` in a process of its own. Raises `CalledProcessError` if it fails."""
        wait_for(self.after_processes)
        check_sources(self.sources, ALL_ROOMS)
        command = "from harness.commands.main import main; main()"
        arguments = ["report", "--out", str(self.root), "--suite", self.suite]
        subprocess.run([sys.executable, SAFE, "-c", command, *arguments], check=True)
