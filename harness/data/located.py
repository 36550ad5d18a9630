"""Before any run: are the data there that a selection needs? All tasks are checked, and one error names all causes.

Lists are read and every image is looked for, one folder at a time, without opening any. What is built from packages is
left to the first run that needs it. Of a suite of the user's own path, which nobody else has checked, images that were
never decoded are opened too.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from harness.data import copies, hints
from harness.data.files import NO_FILE, is_file
from harness.data.lists import Entry, ImageList, ListFile, Roots, check_roots
from harness.data.looks import look_at
from harness.data.problems import Absent, Problem, locate_existing, no_folder, read_with_problems, told
from harness.data.splits import TaskData, build_if_bundled, is_there
from harness.errors import USER_ERRORS, DataError
from harness.plans.tuning import WorkItem
from harness.schema import protocol
from harness.schema.preprocessing import Preprocessing
from harness.schema.spec import RunSpec
from harness.terminal import Advance, tracked
from suites.base import Suite

Draw = tuple[str, int | None, int | None, str]
"""Task, shots, split seed and preprocessing id: what decides the images of a run."""


def refuse_unusable(
    suite: Suite, items: Iterable[WorkItem], roots: Roots, curve: bool = False, advance: Advance | None = None
) -> list[str]:
    """`DataError` that names what is wrong with the data of `items`, for all tasks, and what was probably meant; else
    what should be known of them, as sentences."""
    val_is_scored: dict[Draw, bool] = {}
    for item in items:
        spec = item if isinstance(item, RunSpec) else item.trials[0]
        draw = spec.task, spec.shots, spec.split_seed, spec.preprocessing
        val_is_scored[draw] = val_is_scored.get(draw, curve) or protocol.get(spec.protocol).report_split == "val"
    tasks = list(dict.fromkeys(name for name, *_ in val_is_scored))
    check_roots(suite, tasks, roots)
    search = _Search(suite, roots, advance)
    for draw in tracked(val_is_scored, len(val_is_scored), advance, every=1):
        if is_there(suite, suite.task(draw[0]), roots) and not search.is_usable(draw, val_is_scored[draw]):
            search.unusable.add(draw[0])
    problems = [*no_folder(suite, search.absent, roots), *chain.from_iterable(search.problems.values())]
    if any(problem.severity == "error" for problem in problems):
        raise DataError("\n".join(_message(problems, tasks, search.unusable)))
    return [problem.text for problem in problems]


def _message(problems: list[Problem], tasks: Sequence[str], unusable: set[str]) -> Iterator[str]:
    yield f"the data of {len(unusable)} of {len(tasks)} tasks cannot be used; nothing was started"
    for line in told(problems):
        yield f"  {line.removeprefix('error: ')}"
    if usable := [task for task in tasks if task not in unusable]:
        yield f"`--tasks {','.join(usable)}` leaves them out"


class _Search:
    """Looks for the data of a suite, and collects what is wrong with them."""

    def __init__(self, suite: Suite, roots: Roots, advance: Advance | None = None) -> None:
        """`advance` is told of images that are opened."""
        self._suite, self._roots, self._advance = suite, roots, advance
        self.absent: list[Absent] = []
        self.problems: dict[ListFile | Draw, list[Problem]] = {}
        """Of lists, which several draws may share, and of draws."""

        self.unusable: set[str] = set()
        """Tasks with a problem."""

    def is_usable(self, draw: Draw, val_is_scored: bool) -> bool:
        """Whether the data of one draw have no problem."""
        suite, roots, (name, shots, split_seed, preprocessing_id) = self._suite, self._roots, draw
        task = suite.task(name)
        lists, absent = locate_existing(suite, task, build_if_bundled(suite, task, roots), shots, split_seed)
        self.absent += absent
        for file in lists.values():
            if file not in self.problems:
                self.problems[file] = _list_problems(file, task.num_classes)
        if absent or any(self.problems[file] for file in lists.values()):  # opening the data would report one again
            return False
        try:
            preprocessing = Preprocessing.from_id(preprocessing_id)
            data = TaskData(suite, task, preprocessing, roots, shots, split_seed, val_is_scored=val_is_scored)
            if suite.path is not None:
                self.problems[draw] = list(_opened(suite.path, data.undecoded(), self._advance))
        except USER_ERRORS as error:
            self.problems[draw] = [Problem(str(error))]
            return False
        return not any(problem.severity == "error" for problem in self.problems.get(draw, ()))


def _opened(place: Path, lists: Mapping[str, ImageList], advance: Advance | None) -> Iterator[Problem]:
    """What is wrong with images of `place` that have to be opened to see it, and whether images of one split are copies
    of another's."""
    read = list(lists.values())
    looks = look_at(read, advance=advance)
    for which, number, problem in looks.problems:
        yield Problem(f"{read[which].file.folder / read[which].entries.name(number)}: {problem}", kind="unreadable")
    identity = looks.identity
    for split, others in (("val", ("train",)), ("test", ("train", "val"))):
        own = list(lists[split].paths) if split in lists else []
        seen_before = [path for other in others if other in lists for path in lists[other].paths]
        first = {identity[path]: path for path in seen_before if path in identity}
        if same := [path for path in own if identity.get(path) in first]:
            names = [os.path.relpath(path, place) for path in (same[0], first[identity[same[0]]])]
            counts = f"{len(same)} of {len(own)} images of {split} are copies of images of {' and '.join(others)}"
            is_whole = len(same) >= copies.WHOLE * len(own)
            text = f"{place}: {counts}, as {names[0]} of {names[1]}: a model has seen what it is tested on"
            yield Problem(text, "error" if is_whole else "warning")


def _list_problems(file: ListFile, num_classes: int) -> list[Problem]:
    """What is wrong with a list and the images that it names; one problem for all whose file is missing."""
    images, problems = read_with_problems(file, num_classes)
    reasons: dict[str, list[Entry]] = {}
    for number, reason in sorted(_unreadable(images)):
        reasons.setdefault(reason, []).append(images.entries[number])
    for reason, missing in reasons.items():
        hint = hints.renamed(file, [entry.name for entry in missing]) if reason == NO_FILE else hints.Hint()
        text = f"{images.where(missing[0])}: {file.folder / missing[0].name}: {reason}"
        problems.append(Problem(text, kind=reason, hint=hint, count=len(missing)))
    return problems


def _unreadable(images: ImageList) -> Iterator[tuple[int, str]]:
    """Number and reason of each entry whose image cannot be read as a file, folder by folder: what one of them holds is
    in memory at a time."""
    folders: dict[str, int] = {}
    heads = (os.path.dirname(path) for path in images.paths)  # noqa: PTH120 (of millions of paths)
    places = np.fromiter((folders.setdefault(head, len(folders)) for head in heads), np.int64)
    members = np.split(np.argsort(places, kind="stable"), np.cumsum(np.bincount(places)))
    for folder, numbers in zip(folders, members, strict=False):
        of_names, of_others = _reasons(folder)
        for number in numbers.tolist():
            if reason := of_names.get(os.path.basename(images.entries.name(number)), of_others):  # noqa: PTH119
                yield number, reason


def _reasons(folder: str) -> tuple[dict[str, str], str]:
    """Why each of the names in a folder cannot be read as a file, empty if it can; and why any other name cannot."""
    try:
        with os.scandir(folder) as entries:  # tells files from folders without a look at each
            is_one = {entry.name: entry.is_file(follow_symlinks=False) or is_file(entry) for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return {}, NO_FILE
    except OSError as error:
        return {}, f"cannot be accessed ({error.strerror})"
    return {name: "" if is_one[name] else "not a file, or a link to nothing" for name in is_one}, NO_FILE
