"""What an experiment file says that it gives (`expect:`): top-1 accuracies in per cent, each as a range.

expect:
  mean: {linear: [38.5, 40.1]}      # over all tasks of the experiment
  digits: {linear: [27.5, 29.5]}    # on one task
"""

from __future__ import annotations

from typing import Any

from methods.base import did_you_mean
from suites import known
from suites.base import SuiteError
from suites.yaml_lines import YamlFile

EXPECT = "expect"
MEAN = "mean"
"""Stands for the mean over the tasks, where a task's name may stand."""

Expectations = dict[str, dict[str, tuple[float, float]]]
"""Task, or `MEAN`, to method to the lowest and the highest accuracy."""


def take_expectations(file: YamlFile) -> Expectations:
    """Take `expect:` out of the file's values, which then say only what to run. `SuiteError` names the line of a
    mistake."""
    expectations: Expectations = {}
    methods = file.values.get("methods")
    names = [item for item in methods if isinstance(item, str)] if isinstance(methods, list) else []
    with file.blamed(EXPECT):
        for task, by_method in _mapping(EXPECT, file.values.pop(EXPECT, {})).items():
            _check_task(task, file.values.get("suite"))
            ranges = _mapping(task, by_method).items()
            expectations[task] = {method: _range(task, method, value, names) for method, value in ranges}
    return expectations


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SuiteError(f"{name}={value!r} must be a mapping: {EXPECT}: {{{MEAN} or a task: {{method: [from, to]}}}}")
    return value


def _check_task(task: str, suite: Any) -> None:
    there = known(suite) if isinstance(suite, str) else None
    if there is None:  # a file of the user's, or a mistake that is named elsewhere
        return
    names = [MEAN, *(each.name for each in there.tasks)]
    if task not in names:
        raise SuiteError(f"{EXPECT} has a task {task!r}. {did_you_mean(task, names)}")


def _range(task: str, method: str, value: Any, methods: list[str]) -> tuple[float, float]:
    if method not in methods:
        raise SuiteError(
            f"{EXPECT} has a method {method!r} that the experiment does not run. {did_you_mean(method, methods)}"
        )
    match value:
        case [int() | float() as low, int() | float() as high] if 0 <= low <= high <= 100:
            return float(low), float(high)
    raise SuiteError(f"{EXPECT}: {task}: {method}={value!r} must be [from, to] in per cent")
