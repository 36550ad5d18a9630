"""What a suite is: tasks, their folders and lists, and what is known of them.

A suite is data. Those of the field are YAML files beside this one; `suites.load` reads them, and yours in the same
form. The default layout is that of the VTAB-1K copies in circulation (as NOAH's scripts write it):

    <root>/<task folder>/{train800,val200,train800val200,test}.txt    lines `images/test/000001.png 7`
    <root>/<task folder>/images/...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any


class SuiteError(ValueError):
    """A suite or its data is missing or wrong. The message is for the user."""


NOT_YET = {
    **dict.fromkeys(
        ("class_weights", "class_weight", "weights", "weight", "pos_weight", "sample_weights"),
        "class-weighted training is not supported yet: all images count alike",
    ),
    **dict.fromkeys(
        ("multi_label", "multilabel", "loss", "num_labels"),
        "multi-label training is not supported yet: an image has one label, and the loss is cross-entropy",
    ),
}
"""What is out for now, by the keys under which it may be asked for."""


VTAB_LISTS: Mapping[str, str] = {
    "train": "train800.txt",
    "val": "val200.txt",
    "trainval": "train800val200.txt",
    "test": "test.txt",
}
"""List file of each split. `trainval` is `train` followed by `val`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A further test set that a trained model is scored on (domain generalisation, corruptions)."""

    name: str
    folders: tuple[str, ...] = ()
    """Folder of the images below the data root; the first that exists is taken."""

    list_folders: tuple[str, ...] = ()
    """Folder of the list, likewise; that of the images if empty."""

    list_file: str = ""
    masked: bool = False
    """Score also among the classes that occur in the list alone, stored as `<name>/masked`."""

    size: int | None = None
    """Number of images, where known."""

    corruption: tuple[str, int] | None = None
    """Kind and strength in `suites.corruptions`: the set is the task's test split, corrupted as it is read, and has no
    list of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One data set with its splits."""

    name: str
    """Name used in tables, records and on the command line."""

    group: str = ""
    """Group that the task is averaged in, `natural`, `specialized` or `structured` for VTAB; empty in a suite without
    groups."""

    num_classes: int
    """Number of classes; labels are 0 .. num_classes - 1."""

    class_names: tuple[str, ...] = ()
    """Name of each class, by label; empty where they have none."""

    sizes: Mapping[str, int] = field(default_factory=dict)
    """Number of images per split where known: `train`, `val`, `test`."""

    folders: tuple[str, ...] = ()
    """Folder of the images below the data root: the names in circulation; the first that exists is taken. The task's
    own name if empty."""

    list_folders: tuple[str, ...] = ()
    """Folder of the lists, likewise; that of the images if empty."""

    subfolders: tuple[str, ...] = ("",)
    """Folders below that of the images which the names of a list may be relative to: that under which most
    of its images exist (ImageNet's lists leave out `train/` and `val/`)."""

    lists: Mapping[str, str] = field(default_factory=lambda: dict(VTAB_LISTS))
    """List file of each split; `{shots}` and `{split_seed}` in it are filled in."""

    targets: tuple[Target, ...] = ()
    metric: str = "accuracy"
    """Name of its primary metric (`harness.schema.metrics`): what tables show it by, and what settings and epochs are
    chosen by under the protocols that choose."""

    build: Callable[[Path], None] | None = None
    """Writes the task's folder out of installed packages; None where the user brings the data."""

    @property
    def listed(self) -> tuple[Task | Target, ...]:
        """What has lists and images of its own: the task, and its further test sets that are no corruptions."""
        return self, *(target for target in self.targets if target.corruption is None)

    @property
    def corruptions(self) -> dict[str, tuple[str, int]]:
        """The further test sets that are corruptions of the test split: name to kind and strength."""
        return {target.name: target.corruption for target in self.targets if target.corruption is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Tasks that belong together, with the recipe that all methods share on them."""

    name: str
    title: str
    """Name printed in captions."""

    about: str
    """What the data are and where they come from, in one or two sentences."""

    tasks: tuple[Task, ...]
    folders: tuple[str, ...] = ()
    """Names of a folder between the data root and the tasks' folders, which may be there or not."""

    shots: tuple[int, ...] = ()
    """Images per class of the training lists, each a run of its own; empty where there is one training list."""

    split_seeds: tuple[int, ...] = ()
    """Seeds of the training lists, each a run of its own; empty where there is one training list."""

    final_split: str = "trainval"
    """Split that the final model is trained on: `trainval`, or `train` where val is not meant for training."""

    version: int = 1
    """Raised when built data change, so that folders built before are not used."""

    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the training recipe in which this suite differs from the common default."""

    path: Path | None = None
    """What a suite of the user's own data was read from (`suites.own`); None for any other."""

    images: Path | None = None
    """Folder of such a suite's images; None where they are written beside the lists."""

    digest: str = ""
    """sha256 over such a suite's lists."""

    data_of: str = ""
    """Name of the suite whose data these are, where this one is derived from it (`suites.corruptions`)."""

    @property
    def data_name(self) -> str:
        """Name of the suite that the data belong to."""
        return self.data_of or self.name

    def groups(self) -> tuple[str, ...]:
        """Group names in the order in which they first occur."""
        return tuple(dict.fromkeys(task.group for task in self.tasks))

    def draws(self, shots: tuple[int, ...] = ()) -> Iterator[tuple[int | None, int | None]]:
        """Number of shots (all, or those of `shots`) and split seed of each training list; None where there is one."""
        return product(shots or self.shots or (None,), self.split_seeds or (None,))

    def task(self, name: str) -> Task:
        """The task of that name; `KeyError` if there is none."""
        return {task.name: task for task in self.tasks}[name]
