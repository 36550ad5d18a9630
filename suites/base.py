"""What a suite is, and the folder layout in which its images lie.

The layout is the one of the VTAB-1K copies in circulation (as NOAH's scripts write it):

    <root>/<task folder>/{train800,val200,train800val200,test}.txt    lines `images/test/000001.png 7`
    <root>/<task folder>/images/...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class SuiteError(ValueError):
    """A suite's data is absent or wrong. The message is for the user."""


SPLIT_FILES: Mapping[str, str] = {
    "train": "train800.txt",
    "val": "val200.txt",
    "trainval": "train800val200.txt",
    "test": "test.txt",
}
"""List file of each split. `trainval` is `train` followed by `val`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One data set with its splits."""

    name: str
    """Name used in tables, records and on the command line."""

    group: str
    """Group that the task is averaged in, `natural`, `specialized` or `structured` for VTAB."""

    num_classes: int
    """Number of classes; labels are 0 .. num_classes - 1."""

    sizes: Mapping[str, int]
    """Number of images per split where known: `train`, `val`, `test`."""

    build: Callable[[Path], None] | None = None
    """Writes the task's folder out of installed packages; None where the user brings the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Tasks that belong together, with the recipe that all methods share on them."""

    name: str
    title: str
    """Name printed in captions."""

    about: str
    """What the data are and where they come from, in one or two sentences."""

    tasks: tuple[Task, ...]
    version: int = 1
    """Raised when built data change, so that folders built before are not used."""

    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the training recipe in which this suite differs from the common default."""

    def groups(self) -> tuple[str, ...]:
        """Group names in the order in which they first occur."""
        return tuple(dict.fromkeys(task.group for task in self.tasks))
