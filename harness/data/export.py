"""Write a suite's data anew, in the folders and lists that its definition reads: for VTAB suites, NOAH's layout.

Images are numbered: `images/<split>/000000.png` beside the lists for VTAB, `<split>/000000.png` below the folder of
the images where lists lie apart. An image that several lists name is written once.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from harness.data.decoding import UNREADABLE, as_rgb
from harness.data.lists import Entry, ListFile, Roots, locate_lists, locate_target, read_list
from harness.data.splits import build_if_bundled
from harness.errors import HarnessError
from harness.paths import writing
from harness.schema.tasks import chosen_tasks
from suites.base import Suite, Task

FORMATS = {"png": "PNG", "jpeg": "JPEG"}
ENDINGS = {"png": ".png", "jpeg": ".jpg"}
DEFAULT_QUALITY = 95

Advance = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFormat:
    """How images are written."""

    name: str = "png"
    """`png`, which loses nothing, or `jpeg`."""

    quality: int | None = None
    """Of JPEG, 1 to 100."""

    def __post_init__(self) -> None:
        if self.name not in FORMATS:
            raise HarnessError(f"format {self.name!r}: it is one of {', '.join(FORMATS)}")
        if self.quality is not None and (self.name != "jpeg" or not 1 <= self.quality <= 100):
            raise HarnessError("--quality is a number from 1 to 100, for --format jpeg")

    def convert(self, path: Path) -> bytes:
        """The image in this format; a file that has it already is taken as it is, unless a quality is asked for."""
        try:
            with Image.open(path) as image:
                pixels, out = as_rgb(image), io.BytesIO()
                if image.format == FORMATS[self.name] and self.quality is None:
                    return path.read_bytes()
                pixels = pixels.convert("L") if image.mode == "L" else pixels
                if self.name == "jpeg":
                    pixels.save(out, "JPEG", quality=self.quality or DEFAULT_QUALITY, subsampling=0)
                else:
                    pixels.save(out, "PNG")
                return out.getvalue()
        except FileNotFoundError:
            raise HarnessError(f"{path}: listed, but there is no such file") from None
        except UNREADABLE as error:
            raise HarnessError(f"{path}: cannot be decoded ({error})") from None


@dataclass(slots=True, kw_only=True)
class _Plan:
    """Files of one task, relative to the new root."""

    lists: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """List file to names and labels."""

    images: dict[str, Path] = field(default_factory=dict)
    """New image to the old one."""

    folders: set[str] = field(default_factory=set)
    """Folders that hold all of it."""


def export(
    suite: Suite,
    to: Path,
    image_format: ImageFormat | None = None,
    roots: Roots | None = None,
    tasks: tuple[str, ...] = (),
    advance: Advance | None = None,
) -> int:
    """Write the suite below `to`; returns the number of images. Each folder of a task appears whole or not at all.

    `HarnessError` before anything is written if a folder is there already.
    """
    chosen, new = image_format or ImageFormat(), {}
    for name in chosen_tasks(suite, tasks):
        new[name] = _plan(suite, suite.task(name), roots or Roots(), chosen)
    for folder in (folder for plan in new.values() for folder in plan.folders):
        with writing(to, "--to"):
            if (to / folder).exists():
                raise HarnessError(f"{to / folder} is there already; nothing is overwritten")
    total, counter = sum(len(plan.images) for plan in new.values()), itertools.count(1)

    def one_more() -> None:
        done = next(counter)
        if advance and (done % 100 == 0 or done == total):
            advance(done, total)

    with writing(to, "--to"):
        for name, plan in new.items():
            _write(to, name, plan, chosen, one_more)
    return total


def _plan(suite: Suite, task: Task, roots: Roots, chosen: ImageFormat) -> _Plan:
    """Read all lists and give every image its new name."""
    roots = build_if_bundled(suite, task, roots)
    images = (task.folders or (task.name,))[0]
    lists = task.list_folders[0] if task.list_folders else images
    plan, beside = _Plan(folders=_outermost({images, lists})), images == lists
    names: dict[Path, str] = {}
    for shots, seed in itertools.product(suite.shots or (None,), suite.split_seeds or (None,)):
        sources = locate_lists(suite, task, roots, shots, seed)
        for split in sorted(sources, key=lambda split: split == "trainval"):  # its images are those of train and val
            file = f"{lists}/{task.lists[split].format(shots=shots, split_seed=seed)}"
            prefix = f"images/{split}" if beside else split
            if file not in plan.lists:
                numbered = sources[split].numbered_with
                entries = read_list(sources[split].path, task.num_classes, numbered_with=numbered)
                plan.lists[file] = _rename(plan, sources[split], entries, images, prefix, names, chosen)
    for target in task.targets:
        source, folder = locate_target(suite, target, roots), target.folders[0]
        file = f"{(target.list_folders or target.folders)[0]}/{target.list_file}"
        entries = read_list(source.path, task.num_classes)
        plan.lists[file] = _rename(plan, source, entries, folder, "images", {}, chosen)
        plan.folders = _outermost(plan.folders | {folder, file.rpartition("/")[0]})
    return plan


def _rename(
    plan: _Plan,
    source: ListFile,
    entries: list[Entry],
    folder: str,
    prefix: str,
    names: dict[Path, str],
    chosen: ImageFormat,
) -> list[tuple[str, int]]:
    """The list's lines with new names, relative to `folder`; `names` holds those given already."""
    start = sum(name.startswith(f"{prefix}/") for name in names.values())
    for entry in entries:
        old = source.folder / entry.name
        if old not in names:
            names[old] = f"{prefix}/{start:06d}{ENDINGS[chosen.name]}"
            start += 1
            plan.images[f"{folder}/{names[old]}"] = old
    return [(names[source.folder / entry.name], entry.label) for entry in entries]


def _outermost(folders: set[str]) -> set[str]:
    """Those that lie below no other one."""
    return {one for one in folders if not any(one.startswith(f"{other}/") for other in folders)}


def _write(to: Path, name: str, plan: _Plan, chosen: ImageFormat, one_more: Callable[[], None]) -> None:
    """Fill a folder that shows as unfinished, then put its parts in place, those with lists last."""
    new = to / f".{name}.unfinished"
    shutil.rmtree(new, ignore_errors=True)
    try:
        for parent in {(new / image).parent for image in plan.images}:
            parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            jobs = [pool.submit(_write_image, old, new / name, chosen) for name, old in plan.images.items()]
            try:
                for job in jobs:
                    job.result()
                    one_more()
            finally:
                pool.shutdown(cancel_futures=True)
        for file, rows in plan.lists.items():
            (new / file).parent.mkdir(parents=True, exist_ok=True)
            (new / file).write_text(_list_text(file, rows))
        with_lists = {file.rpartition("/")[0] for file in plan.lists}
        for folder in sorted(plan.folders, key=lambda folder: folder in with_lists):
            (to / folder).parent.mkdir(parents=True, exist_ok=True)
            (new / folder).rename(to / folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write_image(old: Path, new: Path, chosen: ImageFormat) -> None:
    new.write_bytes(chosen.convert(old))


def _list_text(file: str, rows: list[tuple[str, int]]) -> str:
    if file.endswith(".json"):
        classes: Mapping[str, int] = dict(rows)
        return json.dumps(classes, indent=0)
    return "".join(f"{name} {label}\n" for name, label in rows)
