"""Tasks and shots of a suite that the user chooses, checked."""

from __future__ import annotations

from harness.errors import HarnessError
from methods.base import did_you_mean
from suites.base import Suite


def chosen_tasks(suite: Suite, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """The chosen tasks' names, checked; all of them if none is chosen."""
    known = [task.name for task in suite.tasks]
    for name in tasks:
        if name not in known:
            raise HarnessError(f"suite {suite.name!r} has no task {name!r}. {did_you_mean(str(name), known)}")
    return tasks or tuple(known)


def chosen_shots(suite: Suite, shots: tuple[int, ...]) -> tuple[int, ...]:
    """The chosen numbers of shots, checked; all of the suite's if none is chosen."""
    for count in shots:
        if count not in suite.shots:
            known = ", ".join(map(str, suite.shots)) or "none: it has one training list per task"
            raise HarnessError(f"suite {suite.name!r} has no shots={count!r}; it has {known}")
    return shots or suite.shots
