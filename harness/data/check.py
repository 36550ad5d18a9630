"""Is a copy of a suite's data complete? Every list and every image is checked; all problems are reported together."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count, product
from pathlib import Path

import numpy as np

from harness.data import copies, hints
from harness.data.agreement import disagreements, shared_images
from harness.data.files import NO_FILE, is_file
from harness.data.lists import Entry, ListFile, Roots, disjoint, known_size
from harness.data.looks import look_at
from harness.data.problems import Absent, Problem, locate_existing, no_folder, read_with_problems
from harness.data.splits import build_if_bundled
from harness.schema.tasks import chosen_shots, chosen_tasks
from harness.terminal import Advance
from suites.base import Suite, Task


class CheckedList:
    """One list, with what the suite states about it and what is wrong with it."""

    def __init__(self, task: Task, split: str, draw: tuple[int | None, int | None], file: ListFile) -> None:
        """`split` may be a further test set; `draw` is shots and split seed, None where all draws share the list."""
        self.task, self.split, (self.shots, self.split_seed) = task, split, draw
        self.known = known_size(task, split, self.shots)
        """Number of images that the suite states."""

        self.images, self.problems = read_with_problems(file, task.num_classes)
        self.whole = not self.problems
        """Whether every line could be read."""

        if len(self.images.entries):
            self.problems += [*self._counts(), *self._repeats(), *self._classes()]

    @property
    def size(self) -> int:
        """Number of images: of lines or, with shots, of different images."""
        entries = self.images.entries
        return len({entry.name for entry in entries}) if self._few_shot else len(entries)

    @property
    def _few_shot(self) -> bool:
        return self.shots is not None and self.split == "train"

    def _counts(self) -> Iterator[Problem]:
        where = self.images.file.where()
        if self.known is not None and self.size != self.known:
            yield Problem(f"{where}: {self.size} images, where {self.known} are expected")
        if self._few_shot:
            counts = Counter(label for _, label in {(entry.name, entry.label) for entry in self.images.entries})
            for label in sorted(counts):
                if counts[label] != self.shots:
                    yield Problem(f"{where}: class {label} has {counts[label]} images, not {self.shots}")

    def _repeats(self) -> Iterator[Problem]:
        first: dict[str, Entry] = {}
        _, number, counts = np.unique(self.images.keys, return_inverse=True, return_counts=True)
        for path, entry in self.images.at(counts[number] > 1):
            earlier = first.setdefault(path, entry)
            if earlier.label != entry.label:
                what = f"has label {entry.label} here and {earlier.label} in line {earlier.line}"
                yield Problem(self.images.says(entry, what))
            elif earlier is not entry:
                yield Problem(self.images.says(entry, f"is already in line {earlier.line}"), "warning")

    def _classes(self) -> Iterator[Problem]:
        """Classes that a list should hold and does not."""
        labels = set(np.unique(self.images.entries.labels).tolist())
        absent = self.task.num_classes - len(labels)
        few = self.split == "val" or self.split in {target.name for target in self.task.targets if target.masked}
        if absent and not few:
            first = next(label for label in count() if label not in labels)
            text = f"no image of {absent} of {self.task.num_classes} classes, first class {first}"
            yield Problem(f"{self.images.file.where()}: {text}", "error" if self._few_shot else "warning")


@dataclass(slots=True, kw_only=True)
class DataCheck:
    """The result of a check."""

    lists: list[CheckedList] = field(default_factory=list)
    missing: list[Problem] = field(default_factory=list)
    """Folders that are missing."""

    images: int = 0
    """How many image files were checked."""

    @property
    def choices(self) -> list[str]:
        """Which folders were used where several have the suite's names."""
        return [line for line in dict.fromkeys(row.images.file.choice for row in self.lists) if line]

    @property
    def problems(self) -> list[Problem]:
        return [*self.missing, *(problem for row in self.lists for problem in row.problems)]

    @property
    def errors(self) -> int:
        return sum(problem.severity == "error" for problem in self.problems)


def check(
    suite: Suite,
    roots: Roots,
    tasks: tuple[str, ...] = (),
    shots: tuple[int, ...] = (),
    deep: bool = False,
    advance: Advance | None = None,
) -> DataCheck:
    """Check lists and images; with `deep` every image is decoded, else only its header and end are read."""
    result, absent = DataCheck(), list[Absent]()
    by_task: list[list[CheckedList]] = []
    shots = chosen_shots(suite, shots)
    for name in chosen_tasks(suite, tasks):
        rows, without = _read_lists(suite, suite.task(name), roots, shots)
        by_task.append(rows)
        absent += without
        _find_overlaps(rows)
        _find_disagreements(rows)
        result.lists += rows
    result.missing = no_folder(suite, absent, roots)
    identity = _check_images(result, deep, advance)
    for rows in by_task:
        _find_copies(rows, identity)
    for row in result.lists:
        _offer_names(row)
    return result


def _read_lists(
    suite: Suite, task: Task, roots: Roots, shots: tuple[int, ...]
) -> tuple[list[CheckedList], list[Absent]]:
    """All lists of a task, those that several training lists share only once; and what has no folder."""
    roots = build_if_bundled(suite, task, roots)
    rows: dict[tuple[str, Path], CheckedList] = {}
    absent: list[Absent] = []
    for draw in suite.draws(shots):
        lists, without = locate_existing(suite, task, roots, *draw)
        absent += without
        for split, file in lists.items():
            if (split, file.path) not in rows:
                own = draw if "{" in task.lists.get(split, "") else (None, None)
                rows[split, file.path] = CheckedList(task, split, own, file)
    return list(rows.values()), absent


def _find_overlaps(rows: list[CheckedList]) -> None:
    """No image may be in two of train, val and what is tested on; trainval may hold val."""
    pairs = disjoint({row.split for row in rows})
    for row, other in product(rows, rows):
        if (row.split, other.split) in pairs:
            row.problems += map(Problem, shared_images(row.images, other.images))


def _find_disagreements(rows: list[CheckedList]) -> None:
    """`trainval` must be `train` and `val`, and an image have the same label in all draws."""
    lists = {row.split: row for row in rows}
    for problem in disagreements({split: row.images for split, row in lists.items() if row.whole}):
        lists["trainval"].problems.append(problem)
    first: dict[str, tuple[CheckedList, Entry]] = {}
    draws = [row for row in rows if row.split == "train"]
    for row in draws if len(draws) > 1 else []:
        lines = row.images.at(np.ones(len(row.images.entries), bool))
        seen = [(entry, *first.setdefault(path, (row, entry))) for path, entry in lines]
        if wrong := [line for line in seen if line[1] is not row and line[0].label != line[2].label]:
            entry, earlier, twin = wrong[0]
            what = f"has label {entry.label} here and {twin.label} in {earlier.images.where(twin)}{copies.more(wrong)}"
            row.problems.append(Problem(row.images.says(entry, what)))


def _find_copies(rows: list[CheckedList], identity: Mapping[str, bytes]) -> None:
    """Copies between splits that must share no image, and copies in one list under two labels."""
    pairs = disjoint({row.split for row in rows})
    if any(first == "trainval" for first, _ in pairs):  # it holds what train and val hold
        pairs = [pair for pair in pairs if pair[0] == "trainval" or pair == ("train", "val")]
    for row, other in product(rows, rows):
        if (row.split, other.split) in pairs:
            row.problems += copies.between((row.split, other.split), row.images, other.images, identity)
    for row in rows:
        row.problems += copies.two_labels(row.images, identity)


def _check_images(result: DataCheck, deep: bool, advance: Advance | None) -> dict[str, bytes]:
    """Look at each file once, and report it at the first line that names it; `copies.identities` of all of them."""
    looks = look_at([row.images for row in result.lists], deep, advance)
    result.images = looks.images
    for which, number, problem in looks.problems:
        row = result.lists[which]
        entry = row.images.entries[number]
        row.problems.append(Problem(f"{row.images.where(entry)}: {row.images.file.folder / entry.name}: {problem}"))
    return looks.identity


def _offer_names(row: CheckedList) -> None:
    """Add a guess of where a list's missing images are, if there is one."""
    if any(problem.text.endswith(NO_FILE) for problem in row.problems):
        lines = zip(row.images.paths, row.images.entries, strict=True)
        hint = hints.renamed(row.images.file, [entry.name for path, entry in lines if not is_file(path)])
        row.problems = [replace(p, hint=hint) if p.text.endswith(NO_FILE) else p for p in row.problems]
