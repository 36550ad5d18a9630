"""What is wrong with data, and how it is reported: errors first, a few of each kind, and one hint per cause."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from harness.data import hints
from harness.data.hints import Hint
from harness.data.lists import Entries, ImageList, ListFile, Roots, locate, read_list
from harness.errors import HarnessError
from suites.base import Suite, Target, Task

SHOWN = 3
"""Problems of a kind that are printed."""

Absent = tuple[Task | Target, str]
"""A task or further test set without a folder, and the message that says what was tried."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with the data."""

    text: str
    """`file:line: what is wrong`."""

    severity: str = "error"
    """`error`, or `warning` for what known copies have too."""

    kind: str = ""
    """The same for problems reported together; if empty, the words of `text` without names and numbers."""

    hint: Hint = field(default_factory=Hint)
    count: int = 1
    """How many there are; `text` names the first."""


_NAMES = re.compile(r"'[^']*'|\S*[\d/.]\S*")


def told(problems: Iterable[Problem], most: int = SHOWN) -> Iterator[str]:
    """Lines about problems, errors first: of each kind with the same hint the first `most`, and how many more."""
    groups: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in sorted(problems, key=lambda problem: problem.severity != "error"):
        kind = problem.kind or _NAMES.sub("", problem.text)
        groups.setdefault((problem.severity, kind, problem.hint.cause), []).append(problem)
    for (severity, _, _), group in groups.items():
        shown = group[:most]
        yield from (f"{severity}: {problem.text}" for problem in shown)
        if more := sum(problem.count for problem in group) - len(shown):
            yield f"  ... and {more} more like {'it' if len(shown) == 1 else 'these'}"
        if group[0].hint.text:
            yield f"  {group[0].hint.text}"


def read_with_problems(list_file: ListFile, num_classes: int) -> tuple[ImageList, list[Problem]]:
    """The entries of a list that can be read, and what is wrong with it."""
    texts: list[str] = []
    images = ImageList(list_file, Entries())
    try:
        images = ImageList(list_file, read_list(list_file.path, num_classes, texts, list_file.numbered_with))
    except HarnessError as error:
        texts.append(str(error))
    if texts and not list_file.path.is_file():
        return images, [Problem(text, kind="no list", hint=hints.other_list(list_file.path)) for text in texts]
    hint = hints.one_based(list_file, num_classes) if texts else Hint()
    return images, [Problem(text, kind="bad line" if hint.text else "", hint=hint) for text in texts]


def locate_existing(
    suite: Suite, task: Task, roots: Roots, shots: int | None, split_seed: int | None
) -> tuple[dict[str, ListFile], list[Absent]]:
    """The lists of a task and of its further test sets, and those of them that have no folder."""
    lists: dict[str, ListFile] = {}
    absent: list[Absent] = []
    for owner in task.listed:
        try:
            lists |= locate(suite, owner, roots, shots, split_seed)
        except HarnessError as error:
            absent.append((owner, str(error)))
    return lists, absent


def no_folder(suite: Suite, absent: Iterable[Absent], roots: Roots) -> list[Problem]:
    """The problems of tasks and further test sets that have no folder, with one hint for all of them."""
    absent = list(absent)
    owners: Mapping[str, Task | Target] = {owner.name: owner for owner, _ in absent}
    hint = hints.other_root(suite, list(owners.values()), roots)
    return [Problem(text, kind="no folder", hint=hint) for text in dict.fromkeys(text for _, text in absent)]
