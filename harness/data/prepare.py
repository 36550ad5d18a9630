"""VTAB-1K's folders made from original archives, with splits of our own.

VTAB's 800 + 200 training images are the first in the order in which TensorFlow Datasets stores a set, which an archive
does not reveal. The splits drawn here have VTAB's sizes, a fixed seed and a note in each folder; results on them do not
compare with published ones. The exact splits come with the VTAB-1K copies in circulation, which are read as they are.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from harness.data.archives import ARCHIVES, IMPOSSIBLE, Pool, Pools, datasets_copy, is_datasets_copy
from harness.data.lists import NOTE_FILE
from harness.errors import USER_ERRORS, HarnessError
from harness.paths import writing
from harness.schema.tasks import chosen_tasks
from suites import SUITES
from suites.base import Task
from suites.demo import task_rng
from suites.folders import write_vtab

NOTE = "own split, not VTAB's: training images are a seeded random draw"
LABELS_COMPUTED = {task for task in ARCHIVES if task.startswith(("clevr", "dsprites", "smallnorb"))}
"""Tasks whose labels, as VTAB defines them, no copy of the package `datasets` holds."""


def archive_rows() -> list[dict[str, str]]:
    """A row per task: what it is made from, or why it cannot be made."""
    rows = []
    for task in SUITES["vtab1k"].tasks:
        archive = ARCHIVES.get(task.name)
        needs = archive.needs if archive else f"not possible: {IMPOSSIBLE[task.name]}"
        train, test = ("own draw", archive.test) if archive else ("", "")
        rows.append({"task": task.name, "train": train, "test": test, "needs": needs})
    return rows


def prepare(source: Path, to: Path, tasks: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Write tasks of VTAB-1K below `to`; yields each one's name and a note on its split.

    A task is read from `source`/<its name or an alias>, or from `source` itself if it is the only one asked for.
    Without `tasks`, those that have such a folder are made. `HarnessError` if nothing can be done.
    """
    suite = SUITES["vtab1k"]
    by_task = {name: _folder(source, suite.task(name), alone=len(tasks) == 1) for name in chosen_tasks(suite, tasks)}
    folders = {name: folder for name, folder in by_task.items() if folder}
    if tasks and len(folders) < len(tasks):
        raise HarnessError(f"{source}: no folder for {', '.join(name for name in by_task if name not in folders)}")
    if not folders:
        raise HarnessError(f"{source}: no folder named like a task ({', '.join(list(by_task)[:4])}, ...)")
    for name in folders:
        with writing(to, "--to"):
            if (to / name).exists():
                raise HarnessError(f"{to / name} is there already; nothing is overwritten")
    for name, folder in folders.items():
        try:
            with writing(to, "--to"):
                note = _prepare_task(folder, to / name, suite.task(name))
        except USER_ERRORS:
            raise
        except Exception as error:  # readers of a dozen formats meet a damaged archive
            raise HarnessError(f"{folder}: {name} cannot be made from it ({type(error).__name__}: {error})") from None
        yield name, note


def _folder(source: Path, task: Task, alone: bool) -> Path | None:
    """The folder of one task. `HarnessError` if several have its names, as it is unclear which is meant."""
    named = [source / folder for folder in (task.folders or (task.name,)) if (source / folder).is_dir()]
    if len({path.resolve() for path in named}) > 1:
        places = ", ".join(map(str, named))
        raise HarnessError(f"{task.name}: several folders have its names, move all but one away: {places}")
    return named[0] if named else source if alone and source.is_dir() else None


def _prepare_task(archive: Path, folder: Path, task: Task) -> str:
    pools, test = _read(archive, task)
    note = f"{NOTE}, the test set is {test}"

    def splits() -> dict[str, tuple[Iterable[Image.Image], np.ndarray]]:
        parts = draw(pools, task)
        return {name: (pool.read(index), pool.labels[index]) for name, (pool, index) in parts.items()}

    write_vtab(splits, folder, {NOTE_FILE: note + "\n"})
    return note


def _read(folder: Path, task: Task) -> tuple[Pools, str]:
    """The pools of a task, labels checked, and whose test set it is."""
    if is_datasets_copy(folder):
        if task.name in LABELS_COMPUTED:
            raise HarnessError(f"{task.name}: labels are computed from the original archive, not from {folder}")
        pools, test = datasets_copy(folder), "that of the copy, or an own draw from it"
    elif task.name in ARCHIVES:
        pools, test = ARCHIVES[task.name].read(folder), ARCHIVES[task.name].test
    else:
        raise HarnessError(f"{task.name} cannot be prepared: {IMPOSSIBLE[task.name]}")
    labels = np.unique(np.concatenate([pool.labels for pool in pools.values()]))
    if labels.tolist() != list(range(task.num_classes)):
        raise HarnessError(f"{folder}: {len(labels)} classes, where {task.name} has {task.num_classes}")
    return pools, test


def draw(pools: Pools, task: Task) -> dict[str, tuple[Pool, np.ndarray]]:
    """Disjoint random splits of the task's sizes; a test pool of exactly that size is used whole, in its order."""
    order = {
        name: task_rng(f"prepare/{task.name}/{name}").permutation(len(pool.labels)) for name, pool in pools.items()
    }
    used, parts = dict.fromkeys(pools, 0), {}
    for split, size in task.sizes.items():
        candidates = [split, "all"] if split == "test" else [split, "train", "all"]
        name = next((name for name in candidates if name in pools), None)
        if name is None:
            raise HarnessError(f"{task.name}: there is no {split} part, only {', '.join(pools)}")
        index = order[name][used[name] : used[name] + size]
        used[name] += size
        if len(index) < size:
            raise HarnessError(f"{task.name}: {split} needs {size} images, {len(index)} are left of {name!r}")
        parts[split] = (pools[name], np.sort(index) if split == "test" else index)
    return parts
