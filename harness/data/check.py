"""Is a copy of a suite's data whole? Every list and every image is looked at; all problems come in one report."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count, product
from pathlib import Path

from PIL import Image

from harness.data import copies, hints
from harness.data.agreement import disagreements
from harness.data.copies import Listed, Look
from harness.data.decoding import MAY_BE_REFUSED, UNREADABLE, as_rgb
from harness.data.files import NO_FILE, file_problem
from harness.data.lists import (
    Entry,
    ListFile,
    Roots,
    by_file,
    disjoint,
    known_size,
    locate_lists,
    locate_target,
    real_paths,
)
from harness.data.problems import Problem, no_folder, read_with_problems
from harness.data.splits import build_if_bundled
from harness.errors import HarnessError
from harness.schema.tasks import chosen_shots, chosen_tasks
from suites.base import Suite, Target, Task

Advance = Callable[[int, int], None]
"""Told how many images of how many are done."""

END_MARKS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
"""What stands in the last bytes of a file that is whole. A file without it, and one of any other format, is decoded to
see whether it is cut off: Pillow finds that in all formats."""

TAIL = 64


@dataclass(slots=True, kw_only=True)
class CheckedList:
    """One list, with what is known and what was found."""

    task: Task
    split: str
    """Split, or name of the further test set."""

    shots: int | None
    split_seed: int | None
    source: ListFile
    known: int | None
    """Number of images that the suite states."""

    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    whole: bool = False
    """Whether every line could be read."""

    @property
    def found(self) -> int:
        """Number of images: of lines, or where a number of shots is asked for, of different images."""
        return len({entry.name for entry in self.entries}) if self._few_shot else len(self.entries)

    @property
    def _few_shot(self) -> bool:
        return self.shots is not None and self.split == "train"

    @property
    def listed(self) -> Listed:
        """The list and what is in it."""
        return self.source, self.entries

    def where(self, entry: Entry) -> str:
        """`file:line` of an entry."""
        return f"{self.source.path}:{entry.line}"

    def read(self) -> None:
        """Read the list and hold it to what is known of it."""
        self.entries, problems = read_with_problems(self.source, self.task.num_classes)
        self.problems += problems
        self.whole = not problems
        if self.entries:
            self.problems += [*self._counts(), *self._repeats(), *self._classes()]

    def _counts(self) -> Iterator[Problem]:
        if self.known is not None and self.found != self.known:
            yield Problem(f"{self.source.path}: {self.found} images, where {self.known} are known")
        if self._few_shot:
            counts = Counter(label for _, label in {(entry.name, entry.label) for entry in self.entries})
            for label in sorted(counts):
                if counts[label] != self.shots:
                    yield Problem(f"{self.source.path}: class {label} has {counts[label]} images, not {self.shots}")

    def _repeats(self) -> Iterator[Problem]:
        first: dict[str, Entry] = {}
        for path, entry in zip(real_paths(*self.listed), self.entries, strict=True):
            other = first.setdefault(path, entry)
            if other.label != entry.label:
                what = f"{entry.name} has label {entry.label} here and {other.label} in line {other.line}"
                yield Problem(f"{self.where(entry)}: {what}")
            elif other is not entry:
                yield Problem(f"{self.where(entry)}: {entry.name} stands in line {other.line} already", "warning")

    def _classes(self) -> Iterator[Problem]:
        """Classes that a list should hold and does not."""
        labels = {entry.label for entry in self.entries}
        absent = self.task.num_classes - len(labels)
        few = self.split == "val" or self.split in {target.name for target in self.task.targets if target.masked}
        if absent and not few:
            first = next(label for label in count() if label not in labels)
            text = f"{self.source.path}: no image of {absent} of {self.task.num_classes} classes, first class {first}"
            yield Problem(text, "error" if self._few_shot else "warning")


@dataclass(slots=True, kw_only=True)
class Report:
    """What a check found."""

    rows: list[CheckedList] = field(default_factory=list)
    missing: list[Problem] = field(default_factory=list)
    """Folders that are not there."""

    images: int = 0
    """Files looked at."""

    @property
    def taken(self) -> list[str]:
        """Which folders were taken where several bear the suite's names."""
        return [line for line in dict.fromkeys(row.source.choice for row in self.rows) if line]

    @property
    def problems(self) -> list[Problem]:
        """All of them, in the order of the lists."""
        return [*self.missing, *(problem for row in self.rows for problem in row.problems)]

    @property
    def errors(self) -> int:
        """How many problems are errors."""
        return sum(problem.severity == "error" for problem in self.problems)


def check(
    suite: Suite,
    roots: Roots,
    tasks: tuple[str, ...] = (),
    shots: tuple[int, ...] = (),
    deep: bool = False,
    advance: Advance | None = None,
) -> Report:
    """Check lists and images; `deep` decodes every image, else its header and end are looked at."""
    report, absent = Report(), list[tuple[Task | Target, str]]()
    shots = chosen_shots(suite, shots)
    for name in chosen_tasks(suite, tasks):
        rows = _locate(suite, suite.task(name), roots, shots, absent)
        for row in rows:
            row.read()
        _find_overlaps(rows)
        _find_disagreements(rows)
        report.rows += rows
    report.missing = no_folder(suite, absent, roots)
    looks = _check_images(report, deep, advance)
    identity = copies.identities(looks, deep)
    for task in dict.fromkeys(row.task.name for row in report.rows):
        _find_copies([row for row in report.rows if row.task.name == task], identity)
    for row in report.rows:
        _offer_names(row)
    return report


def _locate(
    suite: Suite, task: Task, roots: Roots, shots: tuple[int, ...], absent: list[tuple[Task | Target, str]]
) -> list[CheckedList]:
    """All lists of a task, those that several training lists share once; what has no folder is put into `absent`."""
    roots = build_if_bundled(suite, task, roots)
    rows: dict[tuple[str, Path], CheckedList] = {}
    try:
        for count, seed in product(shots or (None,), suite.split_seeds or (None,)):
            for split, source in locate_lists(suite, task, roots, count, seed).items():
                own = (count, seed) if "{" in task.lists[split] else (None, None)
                row = _row(task, split, source, own, known_size(task, split, own[0]))
                rows.setdefault((split, source.path), row)
    except HarnessError as error:
        absent.append((task, str(error)))
    for target in task.targets:
        try:
            source = locate_target(suite, target, roots)
            rows[target.name, source.path] = _row(task, target.name, source, (None, None), target.size)
        except HarnessError as error:
            absent.append((target, str(error)))
    return list(rows.values())


def _row(
    task: Task, split: str, source: ListFile, own: tuple[int | None, int | None], known: int | None
) -> CheckedList:
    return CheckedList(task=task, split=split, shots=own[0], split_seed=own[1], source=source, known=known)


def _find_overlaps(rows: list[CheckedList]) -> None:
    """No image may stand in two of train, val and what is tested on; trainval may hold val."""
    pairs = disjoint({row.split for row in rows})
    files = [(row, by_file(row.source, row.entries)) for row in rows]
    for (one, mine), (other, theirs) in product(files, files):
        if (one.split, other.split) in pairs:
            for path in [path for path in mine if path in theirs]:
                text = f"{one.where(mine[path])}: {mine[path].name} is also in {other.where(theirs[path])}"
                one.problems.append(Problem(text))


def _find_disagreements(rows: list[CheckedList]) -> None:
    """`trainval` must be `train` and `val`, and an image have the same label in all draws."""
    lists = {row.split: row for row in rows}
    for found in disagreements({split: row.listed for split, row in lists.items() if row.whole}):
        lists["trainval"].problems.append(Problem(found.text, "error" if found.certain else "warning"))
    first: dict[str, tuple[CheckedList, Entry]] = {}
    for row in (row for row in rows if row.split == "train"):
        images = zip(real_paths(*row.listed), row.entries, strict=True)
        seen = [(entry, *first.setdefault(path, (row, entry))) for path, entry in images]
        if wrong := [one for one in seen if one[1] is not row and one[0].label != one[2].label]:
            entry, other, twin = wrong[0]
            what = f"{entry.name} has label {entry.label} here and {twin.label} in {other.where(twin)}"
            row.problems.append(Problem(f"{row.where(entry)}: {what}{copies.more(wrong)}"))


def _find_copies(rows: list[CheckedList], identity: Mapping[Path, bytes]) -> None:
    """Copies between splits that may have no image in common, and copies in one list under two labels."""
    pairs = disjoint({row.split for row in rows})
    if any(one == "trainval" for one, _ in pairs):  # it holds what train and val hold
        pairs = [pair for pair in pairs if pair[0] == "trainval" or pair == ("train", "val")]
    for one, other in product(rows, rows):
        if (one.split, other.split) in pairs and (found := copies.between(one.listed, other.listed, identity)):
            entry, twin = found.pairs[0]
            what = f"{entry.name} is a copy of {twin.name} in {other.where(twin)}"
            what += f"; {found.words(one.split, other.split)}"
            one.problems.append(Problem(f"{one.where(entry)}: {what}", "error" if found.whole else "warning"))
    for row in rows:
        if found_twice := copies.two_labels(row.listed, identity):
            entry, twin = found_twice[0]
            what = f"{entry.name} has label {entry.label}, and its copy {twin.name} in line {twin.line} {twin.label}"
            row.problems.append(Problem(f"{row.where(entry)}: {what}{copies.more(found_twice)}", "warning"))


def _check_images(report: Report, deep: bool, advance: Advance | None) -> dict[Path, Look]:
    """Look at each file once, and blame the first line that names it."""
    first: dict[Path, tuple[CheckedList, Entry]] = {}
    for row in report.rows:
        for entry in row.entries:
            first.setdefault(row.source.folder / entry.name, (row, entry))
    report.images, looks = len(first), {}
    for done, (path, seen) in enumerate(_look_at(first, deep), start=1):
        looks[path] = seen
        if seen.problem:
            row, entry = first[path]
            row.problems.append(Problem(f"{row.where(entry)}: {path}: {seen.problem}"))
        if advance and (done % 100 == 0 or done == len(first)):
            advance(done, len(first))
    return looks


def _offer_names(row: CheckedList) -> None:
    """Say of a list's missing images, where it can be guessed, where they are."""
    if any(problem.text.endswith(NO_FILE) for problem in row.problems):
        names = [entry.name for entry in row.entries if hints.file(row.source.folder / entry.name) is None]
        hint = hints.renamed(row.source, names)
        row.problems = [replace(one, hint=hint) if one.text.endswith(NO_FILE) else one for one in row.problems]


def _look_at(paths: Iterable[Path], deep: bool) -> Iterator[tuple[Path, Look]]:
    with ThreadPoolExecutor(2 * len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(lambda path: (path, look(path, deep)), paths)


def image_problem(path: Path, deep: bool = False) -> str | None:
    """What is wrong with an image file; None if nothing is."""
    return look(path, deep).problem


def look(path: Path, deep: bool = False) -> Look:
    """What is wrong with an image file, and else what it shares with its copies."""
    if problem := file_problem(path):
        return Look(problem=problem)
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            tail = file.read()
            file.seek(0)
            with Image.open(file) as image:
                if deep:
                    pixels = as_rgb(image)
                    return Look(likeness=hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).digest())
                whole = image.format in END_MARKS and END_MARKS[image.format] in tail
                if not whole or image.mode in MAY_BE_REFUSED:
                    as_rgb(image)
    except UNREADABLE as error:
        return Look(problem=f"cannot be decoded ({error})")
    return Look(likeness=copies.end_digest(path))
