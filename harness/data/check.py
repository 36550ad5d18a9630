"""Is a copy of a suite's data whole? Every list and every picture is looked at; all problems come in one report."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from PIL import Image

from harness.data import hints
from harness.data.lists import Entry, ListFile, Roots, by_file, disjoint, locate_lists, locate_target
from harness.data.preprocessing import UNREADABLE
from harness.data.problems import NO_FILE, Problem, no_folder, read_with_problems
from harness.data.splits import build_if_bundled
from harness.errors import HarnessError
from harness.plans.plan import check_shots, task_names
from suites.base import Suite, Target, Task

Advance = Callable[[int, int], None]
"""Told how many pictures of how many are done."""

END_MARKS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
"""What stands in the last bytes of a file that is whole. A file without it is decoded to see whether it is cut off."""

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
    """Number of pictures that the suite states."""

    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def found(self) -> int:
        """Number of pictures: of lines, or where a number of shots is asked for, of different pictures."""
        return len({entry.name for entry in self.entries}) if self._few_shot else len(self.entries)

    @property
    def _few_shot(self) -> bool:
        return self.shots is not None and self.split == "train"

    def where(self, entry: Entry) -> str:
        """`file:line` of an entry."""
        return f"{self.source.path}:{entry.line}"

    def read(self) -> None:
        """Read the list and hold it to what is known of it."""
        self.entries, problems = read_with_problems(self.source, self.task.num_classes)
        self.problems += problems
        if self.entries:
            self.problems += [*self._counts(), *self._repeats(), *self._classes()]

    def _counts(self) -> Iterator[Problem]:
        if self.known is not None and self.found != self.known:
            yield Problem(f"{self.source.path}: {self.found} pictures, where {self.known} are known")
        if self._few_shot:
            counts = Counter(label for _, label in {(entry.name, entry.label) for entry in self.entries})
            for label in range(self.task.num_classes):
                if counts[label] != self.shots:
                    yield Problem(f"{self.source.path}: class {label} has {counts[label]} pictures, not {self.shots}")

    def _repeats(self) -> Iterator[Problem]:
        first: dict[str, Entry] = {}
        for entry in self.entries:
            other = first.setdefault(entry.name, entry)
            if other.label != entry.label:
                what = f"{entry.name} has label {entry.label} here and {other.label} in line {other.line}"
                yield Problem(f"{self.where(entry)}: {what}")
            elif other is not entry:
                yield Problem(f"{self.where(entry)}: {entry.name} stands in line {other.line} already", "warning")

    def _classes(self) -> Iterator[Problem]:
        """Classes that a list should hold and does not."""
        absent = sorted(set(range(self.task.num_classes)) - {entry.label for entry in self.entries})
        few = self.split == "val" or self.split in {target.name for target in self.task.targets if target.masked}
        if absent and not few:
            number = f"{len(absent)} of {self.task.num_classes} classes, first class {absent[0]}"
            yield Problem(f"{self.source.path}: no picture of {number}", "warning")


@dataclass(slots=True, kw_only=True)
class Report:
    """What a check found."""

    rows: list[CheckedList] = field(default_factory=list)
    missing: list[Problem] = field(default_factory=list)
    """Folders that are not there."""

    pictures: int = 0
    """Files looked at."""

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
    """Check lists and pictures; `deep` decodes every picture, else its header and end are looked at."""
    report, absent = Report(), list[tuple[Task | Target, str]]()
    shots = check_shots(suite, shots)
    for name in task_names(suite, tasks):
        rows = _locate(suite, suite.task(name), roots, shots, absent)
        for row in rows:
            row.read()
        _find_overlaps(rows)
        report.rows += rows
    report.missing = no_folder(suite, absent, roots)
    _check_pictures(report, deep, advance)
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


def known_size(task: Task, split: str, shots: int | None = None) -> int | None:
    """Pictures of a split or further test set as the suite states them, None where it does not."""
    if split == "train" and shots is not None:
        return shots * task.num_classes
    if split == "trainval" and {"train", "val"} <= set(task.sizes):
        return task.sizes["train"] + task.sizes["val"]
    targets: dict[str, Target] = {target.name: target for target in task.targets}
    return targets[split].size if split in targets else task.sizes.get(split)


def _find_overlaps(rows: list[CheckedList]) -> None:
    """No picture may stand in two of train, val and what is tested on; trainval may hold val."""
    pairs = disjoint({row.split for row in rows})
    files = [(row, by_file(row.source, row.entries)) for row in rows]
    for (one, mine), (other, theirs) in product(files, files):
        if (one.split, other.split) in pairs:
            for path in [path for path in mine if path in theirs]:
                text = f"{one.where(mine[path])}: {mine[path].name} is also in {other.where(theirs[path])}"
                one.problems.append(Problem(text))


def _check_pictures(report: Report, deep: bool, advance: Advance | None) -> None:
    """Look at each file once, and blame the first line that names it."""
    first: dict[Path, tuple[CheckedList, Entry]] = {}
    for row in report.rows:
        for entry in row.entries:
            first.setdefault(row.source.folder / entry.name, (row, entry))
    report.pictures = len(first)
    for done, (path, problem) in enumerate(_look_at(first, deep), start=1):
        if problem:
            row, entry = first[path]
            row.problems.append(Problem(f"{row.where(entry)}: {path}: {problem}"))
        if advance and (done % 100 == 0 or done == len(first)):
            advance(done, len(first))


def _offer_names(row: CheckedList) -> None:
    """Say of a list's missing pictures, where it can be guessed, where they are."""
    if any(problem.text.endswith(NO_FILE) for problem in row.problems):
        names = [entry.name for entry in row.entries if hints.file(row.source.folder / entry.name) is None]
        hint = hints.renamed(row.source, names)
        row.problems = [replace(one, hint=hint) if one.text.endswith(NO_FILE) else one for one in row.problems]


def _look_at(paths: Iterable[Path], deep: bool) -> Iterator[tuple[Path, str | None]]:
    with ThreadPoolExecutor(2 * len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(lambda path: (path, picture_problem(path, deep)), paths)


def picture_problem(path: Path, deep: bool = False) -> str | None:
    """What is wrong with a picture file; None if nothing is."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if not size:
                return "the file is empty"
            file.seek(max(0, size - TAIL))
            tail = file.read()
            file.seek(0)
            with Image.open(file) as image:
                if deep or END_MARKS.get(image.format or "", b"") not in tail:
                    image.load()
    except FileNotFoundError:
        return NO_FILE
    except UNREADABLE as error:
        return f"cannot be decoded ({error})"
    return None
