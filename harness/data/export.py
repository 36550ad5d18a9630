"""Write a suite's data in the folders and lists that its definition reads: for VTAB suites, NOAH's layout.

Images are numbered: `images/<split>/000000.png` beside the lists for VTAB, `<split>/000000.png` in the folder of the
images where lists lie elsewhere. An image that several lists name is written once.
"""

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from harness.data.decoding import as_rgb, opened
from harness.data.lists import ListFile, Roots, locate, read_list
from harness.data.splits import build_if_bundled
from harness.errors import HarnessError
from harness.paths import writing
from harness.schema.tasks import chosen_tasks
from harness.terminal import Advance, tracked
from suites.base import Suite, Task

FORMATS = {"png": ("PNG", ".png"), "jpeg": ("JPEG", ".jpg")}
"""Pillow's name of each format, and the file name's ending."""

DEFAULT_QUALITY = 95


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFormat:
    """How images are written."""

    name: str = "png"
    """`png`, which is lossless, or `jpeg`."""

    quality: int | None = None
    """Of JPEG, 1 to 100."""

    def __post_init__(self) -> None:
        if self.name not in FORMATS:
            raise HarnessError(f"format {self.name!r}: it is one of {', '.join(FORMATS)}")
        if self.quality is not None and (self.name != "jpeg" or not 1 <= self.quality <= 100):
            raise HarnessError("--quality is a number from 1 to 100, for --format jpeg")

    def convert(self, path: Path) -> bytes:
        """The image in this format; a file already in it is copied unchanged, unless a quality is asked for."""
        out, (name, _) = io.BytesIO(), FORMATS[self.name]
        with opened(path) as image:
            pixels = as_rgb(image)
            if image.format == name and self.quality is None:
                return path.read_bytes()
            options = {"quality": self.quality or DEFAULT_QUALITY, "subsampling": 0} if name == "JPEG" else {}
            (pixels.convert("L") if image.mode == "L" else pixels).save(out, name, **options)
        return out.getvalue()


class _TaskExport:
    """The files of one task, relative to the new root."""

    def __init__(self, suite: Suite, task: Task, roots: Roots, image_format: ImageFormat) -> None:
        """Read all lists and give every image its new name."""
        self.name, self.format = task.name, image_format
        self.lists: dict[str, list[tuple[str, int]]] = {}
        """List file to names and labels."""

        self.images: dict[str, Path] = {}
        """New image to the old one."""

        self.folders: set[str] = set()
        """Folders that hold all of it."""

        self._names: dict[tuple[str, Path], str] = {}
        """New name of each old image, by the folder that it is relative to."""

        self._counts: Counter[str] = Counter()
        roots = build_if_bundled(suite, task, roots)
        images = (task.folders or (task.name,))[0]
        lists = task.list_folders[0] if task.list_folders else images
        for shots, seed in suite.draws():
            files = locate(suite, task, roots, shots, seed)
            for split in sorted(files, key=lambda split: split == "trainval"):  # its images are those of train and val
                name = f"{lists}/{task.lists[split].format(shots=shots, split_seed=seed)}"
                self._add(name, files[split], task, images, f"images/{split}" if images == lists else split)
        for target in (target for target in task.targets if target.corruption is None):
            (file,) = locate(suite, target, roots).values()
            name = f"{(target.list_folders or target.folders)[0]}/{target.list_file}"
            self._add(name, file, task, target.folders[0], "images")

    def _add(self, name: str, file: ListFile, task: Task, folder: str, prefix: str) -> None:
        """Add a list, its images named `prefix`/number below `folder`."""
        if name in self.lists:
            return
        entries = read_list(file.path, task.num_classes, numbered_with=file.numbered_with)
        for old in (file.folder / entry.name for entry in entries):
            if (folder, old) not in self._names:
                new = f"{prefix}/{self._counts[f'{folder}/{prefix}']:06d}{FORMATS[self.format.name][1]}"
                self._counts[f"{folder}/{prefix}"] += 1
                self._names[folder, old], self.images[f"{folder}/{new}"] = new, old
        self.lists[name] = [(self._names[folder, file.folder / entry.name], entry.label) for entry in entries]
        folders = self.folders | {folder, name.rpartition("/")[0]}
        self.folders = {inner for inner in folders if not any(inner.startswith(f"{outer}/") for outer in folders)}

    def write(self, to: Path) -> Iterator[None]:
        """Fill a folder marked as unfinished, then move its parts into place, those with lists last. Yields after each
        image."""
        new = to / f".{self.name}.unfinished"
        shutil.rmtree(new, ignore_errors=True)
        try:
            for parent in {(new / file).parent for file in (*self.images, *self.lists)}:
                parent.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                jobs = [pool.submit(self._write_image, old, new / name) for name, old in self.images.items()]
                try:
                    for job in jobs:
                        yield job.result()
                finally:
                    pool.shutdown(cancel_futures=True)
            for file, rows in self.lists.items():
                (new / file).write_text(_list_text(file, rows))
            with_lists = {file.rpartition("/")[0] for file in self.lists}
            for folder in sorted(self.folders, key=lambda folder: folder in with_lists):
                (to / folder).parent.mkdir(parents=True, exist_ok=True)
                (new / folder).rename(to / folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _write_image(self, old: Path, new: Path) -> None:
        new.write_bytes(self.format.convert(old))


def export(
    suite: Suite,
    to: Path,
    image_format: ImageFormat | None = None,
    roots: Roots | None = None,
    tasks: tuple[str, ...] = (),
    advance: Advance | None = None,
) -> int:
    """Write the suite below `to`; returns the number of images. Each folder of a task appears complete or not at all.

    `HarnessError` before anything is written if a folder is there already.
    """
    image_format, roots = image_format or ImageFormat(), roots or Roots()
    exports = [_TaskExport(suite, suite.task(name), roots, image_format) for name in chosen_tasks(suite, tasks)]
    with writing(to, "--to"):
        for folder in (to / folder for task in exports for folder in task.folders):
            if folder.exists():
                raise HarnessError(f"{folder} is there already; nothing is overwritten")
        total = sum(len(task.images) for task in exports)
        for _ in tracked((image for task in exports for image in task.write(to)), total, advance):
            pass
    return total


def _list_text(file: str, rows: list[tuple[str, int]]) -> str:
    if file.endswith(".json"):
        return json.dumps(dict(rows), indent=0)
    return "".join(f"{name} {label}\n" for name, label in rows)
