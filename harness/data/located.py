"""Before any run: are the data there that a selection needs? All tasks are looked at, and one error names all causes.

Lists are read and every image is looked for, a folder at a time; none is opened. What is built from packages is left
to the run that needs it first.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from harness.data import hints
from harness.data.files import NO_FILE
from harness.data.lists import Entry, ListFile, Roots, check_roots, locate_lists, locate_target
from harness.data.problems import Problem, no_folder, read_with_problems, told
from harness.data.splits import TaskData, build_if_bundled, is_there
from harness.errors import USER_ERRORS, DataError, HarnessError
from harness.plans.tuning import WorkItem
from harness.schema import protocol
from harness.schema.preprocessing import Preprocessing
from harness.schema.spec import RunSpec
from harness.terminal import Advance
from suites.base import Suite, Target, Task

Cell = tuple[str, int | None, int | None, str]
"""Task, shots, split seed and preprocessing id: what decides the images of a run."""


def refuse_unusable(
    suite: Suite, jobs: Iterable[WorkItem], roots: Roots, curve: bool = False, advance: Advance | None = None
) -> None:
    """`DataError` that names what is wrong with the data of `jobs`, of all their tasks, and what was probably meant."""
    cells: dict[Cell, bool] = {}
    for job in jobs:
        spec = job if isinstance(job, RunSpec) else job.trials[0]
        cell = spec.task, spec.shots, spec.split_seed, spec.preprocessing
        cells[cell] = cells.get(cell, curve) or protocol.get(spec.protocol).report_split == "val"
    tasks = list(dict.fromkeys(name for name, *_ in cells))
    check_roots(suite, tasks, roots)
    found = _Findings()
    for done, (cell, val_is_scored) in enumerate(cells.items(), start=1):
        if is_there(suite, suite.task(cell[0]), roots):
            _look(suite, cell, roots, val_is_scored, found)
        if advance:
            advance(done, len(cells))
    problems = [*no_folder(suite, found.absent, roots), *found.problems]
    if problems:
        raise DataError("\n".join(_message(problems, tasks, found.tasks)))


@dataclass(slots=True, kw_only=True)
class _Findings:
    """What was found so far."""

    absent: list[tuple[Task | Target, str]] = field(default_factory=list)
    """What has no folder, with what was tried."""

    problems: list[Problem] = field(default_factory=list)
    tasks: set[str] = field(default_factory=set)
    """Those with a problem."""

    seen: dict[ListFile, bool] = field(default_factory=dict)
    """Lists, and whether all is well with them: several draws share some."""


def _message(problems: list[Problem], tasks: Sequence[str], unusable: set[str]) -> Iterator[str]:
    yield f"the data of {len(unusable)} of {len(tasks)} tasks cannot be used; nothing was started"
    for line in told(problems):
        yield f"  {line.removeprefix('error: ')}"
    if usable := [task for task in tasks if task not in unusable]:
        yield f"`--tasks {','.join(usable)}` leaves them out"


def _look(suite: Suite, cell: Cell, roots: Roots, val_is_scored: bool, found: _Findings) -> None:
    """Add what is wrong with the data of one cell."""
    name, shots, split_seed, preprocessing_id = cell
    task, owned = suite.task(name), build_if_bundled(suite, suite.task(name), roots)
    sources: list[ListFile] = []
    well = True
    owners: tuple[Task | Target, ...] = (task, *task.targets)
    for owner in owners:
        try:
            if isinstance(owner, Target):
                sources.append(locate_target(suite, owner, owned))
            else:
                sources += locate_lists(suite, owner, owned, shots, split_seed).values()
        except HarnessError as error:
            found.absent.append((owner, str(error)))
            well = False
    for source in sources:
        if source not in found.seen:
            problems = _list_problems(source, task.num_classes)
            found.problems += problems
            found.seen[source] = not problems
        well = well and found.seen[source]
    if well:  # else the first of what is known already would be told again
        try:
            preprocessing = Preprocessing.from_id(preprocessing_id)
            TaskData(suite, task, preprocessing, roots, shots, split_seed, val_is_scored=val_is_scored)
        except USER_ERRORS as error:
            found.problems.append(Problem(str(error)))
            well = False
    if not well:
        found.tasks.add(name)


def _list_problems(source: ListFile, num_classes: int) -> list[Problem]:
    """What is wrong with a list and the images that it names; one for all that lack their file."""
    entries, problems = read_with_problems(source, num_classes)
    folders: dict[str, dict[str, bool] | OSError] = {}
    reasons: dict[str, list[Entry]] = {}
    for entry in entries:
        head, tail = os.path.split(os.path.join(source.folder, entry.name))  # noqa: PTH118 (twice as fast)
        if head not in folders:
            folders[head] = _files(head)
        if reason := _reason(folders[head], tail):
            reasons.setdefault(reason, []).append(entry)
    for reason, lacking in reasons.items():
        hint = hints.renamed(source, [entry.name for entry in lacking]) if reason == NO_FILE else hints.Hint()
        first = lacking[0]
        text = f"{source.path}:{first.line}: {source.folder / first.name}: {reason}"
        problems.append(Problem(text, kind=reason, hint=hint, count=len(lacking)))
    return problems


def _files(folder: str) -> dict[str, bool] | OSError:
    """What lies in a folder, and whether it is a file; else why that is not known."""
    try:
        with os.scandir(folder) as found:
            return {one.name: _is_file(one) for one in found}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        return error


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself, say
        return False


def _reason(folder: dict[str, bool] | OSError, name: str) -> str:
    """Why an image cannot be read; empty if it is there."""
    if isinstance(folder, OSError):
        return f"cannot be looked for ({folder.strerror})"
    if name not in folder:
        return NO_FILE
    return "" if folder[name] else "not a file, or a link to nothing"
