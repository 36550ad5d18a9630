"""What is wrong with data, and how it is told: errors first, of each kind a few, with one hint for one cause."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from harness.data import hints
from harness.data.hints import Hint
from harness.data.lists import Entry, ListFile, Roots, read_list
from harness.errors import HarnessError
from suites.base import Suite, Target, Task

SHOWN = 3
"""Problems of a kind that are printed."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with the data."""

    text: str
    """`file:line: what is wrong`."""

    severity: str = "error"
    """`error`, or `warning` for what known copies have too."""

    kind: str = ""
    """The same for problems that are told together; the words of `text` without names and numbers if empty."""

    hint: Hint = field(default_factory=Hint)
    count: int = 1
    """How many there are, of which `text` names the first."""


_NAMES = re.compile(r"'[^']*'|\S*[\d/.]\S*")


def told(problems: Iterable[Problem], most: int = SHOWN) -> Iterator[str]:
    """Lines about problems, errors first: of each kind with the same hint the first `most`, and how many more."""
    groups: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in sorted(problems, key=lambda problem: problem.severity != "error"):
        kind = problem.kind or _NAMES.sub("", problem.text)
        groups.setdefault((problem.severity, kind, problem.hint.way), []).append(problem)
    for (severity, _, _), group in groups.items():
        shown = group[:most]
        yield from (f"{severity}: {problem.text}" for problem in shown)
        if more := sum(problem.count for problem in group) - len(shown):
            yield f"  ... and {more} more like {'it' if len(shown) == 1 else 'these'}"
        if group[0].hint.text:
            yield f"  {group[0].hint.text}"


def read_with_problems(source: ListFile, num_classes: int) -> tuple[list[Entry], list[Problem]]:
    """The entries of a list that can be read, and what is wrong with it."""
    texts: list[str] = []
    entries: list[Entry] = []
    try:
        entries = read_list(source.path, num_classes, texts, source.numbered_with)
    except HarnessError as error:
        texts.append(str(error))
    if not texts:
        return entries, []
    if source.path.is_file():
        hint = hints.one_based(source, num_classes)
        return entries, [Problem(text, kind="bad line" if hint.text else "", hint=hint) for text in texts]
    return entries, [Problem(text, kind="no list", hint=hints.other_list(source.path)) for text in texts]


def no_folder(suite: Suite, absent: Iterable[tuple[Task | Target, str]], roots: Roots) -> list[Problem]:
    """The problems of tasks and further test sets that have no folder, each with the message that says what was tried;
    one hint for all of them."""
    absent = list(absent)
    owners: Mapping[str, Task | Target] = {owner.name: owner for owner, _ in absent}
    hint = hints.other_root(suite, list(owners.values()), roots)
    return [Problem(text, kind="no folder", hint=hint) for text in dict.fromkeys(text for _, text in absent)]
