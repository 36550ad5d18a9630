"""Suites from YAML files: those beside this module, and the user's own in the same form.

A file has the fields of `suites.base.Suite`; `tasks` are mappings with the fields of `suites.base.Task`, where `test`,
`val` and `train` may stand for `sizes`, and `images` for a folder below each of `folders`. `defaults` holds task fields
that all tasks share, `metric` for one. Lists of a task's `targets` default to `val_meta.list`.
"""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from suites.base import NOT_YET, Suite, SuiteError, Target, Task
from suites.yaml_lines import YamlFile, did_you_mean

NOT_DESCRIBED = ("path", "images", "digest", "data_of")
"""Fields of suites that no file describes."""

SUITE_KEYS = ("defaults", *(f.name for f in dataclasses.fields(Suite) if f.name not in NOT_DESCRIBED))
SPLITS = ("train", "val", "test")
ALL_SPLITS = (*SPLITS, "trainval")
FINAL_SPLITS = ("train", "trainval")
PLACEHOLDERS = ("shots", "split_seed")
TASK_KEYS = {f.name for f in dataclasses.fields(Task)} - {"build"} | {*SPLITS, "images"}
TARGET_KEYS = {f.name for f in dataclasses.fields(Target)} - {"corruption"}


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


def _is_name(value: Any) -> bool:
    """Names become names of folders and of metrics."""
    return isinstance(value, str) and bool(re.fullmatch(r"[\w.-]+", value)) and value not in (".", "..")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _are(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(holds, value)) and len(set(value)) == len(value)


def _by_split(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Mapping) and set(value) <= {*ALL_SPLITS} and all(map(holds, value.values()))


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_is_name, "a text of letters, digits, `_`, `-` and `.`"),
    **dict.fromkeys(("title", "about", "group", "images", "list_file", "metric"), (_is(str), "a text")),
    **dict.fromkeys(
        ("folders", "list_folders", "subfolders", "class_names"), (_are(_is(str)), "a list of different texts")
    ),
    **dict.fromkeys(("num_classes", "version", "size", *SPLITS), (_is_count, "a positive whole number")),
    **dict.fromkeys(("tasks", "targets"), (_is(list), "a list")),
    **dict.fromkeys(("defaults", "recipe"), (_is(Mapping), "a mapping")),
    "sizes": (_by_split(_is_count), f"a mapping of {', '.join(ALL_SPLITS)} to positive whole numbers"),
    "lists": (_by_split(_is(str)), f"a mapping of {', '.join(ALL_SPLITS)} to texts"),
    "masked": (_is(bool), "true or false"),
    "final_split": (lambda value: value in FINAL_SPLITS, " or ".join(FINAL_SPLITS)),
    "shots": (_are(_is_count), "a list of different positive whole numbers"),
    "split_seeds": (_are(lambda value: type(value) is int and value >= 0), "a list of different whole numbers"),
}
"""What the value of each key must be: a predicate, and its description."""


def _check(key: str, value: Any) -> None:
    is_valid, description = _KINDS[key]
    if not is_valid(value):
        raise SuiteError(f"{key}={value!r} must be {description}")


def _check_keys(values: Any, known: set[str], needed: set[str], what: str) -> None:
    if not isinstance(values, Mapping):
        raise SuiteError(f"{what} must be a mapping, not {values!r}")
    unknown, missing = set(values) - known, needed - set(values)
    if later := sorted(unknown & NOT_YET.keys()):
        raise SuiteError(f"{what} {values.get('name', '')!r}: {later[0]}: {NOT_YET[later[0]]}")
    if unknown or missing:
        problem = f"unknown key {min(map(str, unknown))!r}" if unknown else f"no {min(missing)!r}"
        raise SuiteError(f"{what} {values.get('name', '')!r} has {problem}; its keys are {', '.join(sorted(known))}")
    for key, value in values.items():
        _check(key, value)


def _target(values: Any) -> Target:
    _check_keys(values, TARGET_KEYS, {"name", "folders"}, "target")
    lists = {key: tuple(values[key]) for key in ("folders", "list_folders") if key in values}
    return Target(**{"list_file": "val_meta.list", **values, **lists})


def _task(values: Any, defaults: Mapping[str, Any]) -> Task:
    _check_keys(values, TASK_KEYS, set(), "task")
    fields = {**defaults, **values}
    _check_keys(fields, TASK_KEYS, {"name", "num_classes"}, "task")
    sizes = {split: fields.pop(split) for split in SPLITS if split in fields}
    fields["sizes"] = {**defaults.get("sizes", {}), **values.get("sizes", {}), **sizes}
    folders = tuple(fields.get("folders", [fields["name"]]))
    images = fields.pop("images", None)
    fields["list_folders"] = tuple(fields.get("list_folders", ())) or (folders if images else ())
    fields["folders"] = tuple(f"{folder}/{images}" for folder in folders) if images else folders
    fields["class_names"] = names = tuple(fields.get("class_names", ()))
    if names and len(names) != fields["num_classes"]:
        raise SuiteError(f"task {fields['name']!r}: {len(names)} class_names for num_classes={fields['num_classes']}")
    fields["subfolders"] = tuple(fields.get("subfolders", [""]))
    fields["targets"] = tuple(_target(target) for target in fields.get("targets", []))
    splits = [*ALL_SPLITS, *(target.name for target in fields["targets"])]
    for name in splits:
        if splits.count(name) > 1:
            raise SuiteError(f"task {fields['name']!r}: a target is named {name!r}, as a split or another target is")
    return Task(**fields)


def _check_lists(task: Task, shots: bool, split_seeds: bool) -> None:
    """The lists' names must have a placeholder for what the suite has several of, and no other."""
    placeholders = set()
    for split, text in task.lists.items():
        try:
            placeholders |= {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
        except ValueError as error:
            raise SuiteError(f"task {task.name!r}: list {split}={text!r}: {error}") from None
    has = dict(zip(PLACEHOLDERS, (shots, split_seeds), strict=True))
    for name in sorted(placeholders | set(PLACEHOLDERS)):
        if name in placeholders and not has.get(name):
            raise SuiteError(f"task {task.name!r}: a list is named by {{{name}}}, of which the suite has none")
        if name not in placeholders and has[name]:
            raise SuiteError(f"task {task.name!r}: no list is named by {{{name}}}, of which the suite has some")


def _check_metric(fields: Mapping[str, Any], metrics: Mapping[str, range]) -> None:
    """The primary metric, where it is given, must be known and defined for the number of classes."""
    name, count = fields.get("metric"), fields.get("num_classes")
    if name is not None and name not in metrics:
        raise SuiteError(f"metric={name!r} is no metric. {did_you_mean(name, list(metrics))}")
    if name is not None and count is not None and count not in metrics[name]:
        raise SuiteError(f"metric={name!r} is not defined for num_classes={count}")


def load_suite(path: Path, metrics: Mapping[str, range] | None = None) -> Suite:
    """The suite in a YAML file. `SuiteError` names file, line and key of what is wrong.

    `metrics`: all there are, with the numbers of classes that they are defined for; not checked if not given.
    """
    file = YamlFile(path, SUITE_KEYS, "a suite")
    values = {"name": path.stem, "title": path.stem, "about": "", **file.values}
    for key, value in values.items():
        with file.blamed(key):
            _check(key, value)
    defaults = values.pop("defaults", {})
    with file.blamed("defaults"):
        _check_keys(defaults, TASK_KEYS, set(), "defaults")
        if metrics is not None:
            _check_metric(defaults, metrics)
    tasks = []
    for index, task in enumerate(values.get("tasks", [])):
        with file.blamed("tasks", index):
            tasks.append(_task(task, defaults))
            if metrics is not None:
                _check_metric({**defaults, **task}, metrics)
            _check_lists(tasks[-1], bool(values.get("shots")), bool(values.get("split_seeds")))
    if not tasks:
        raise SuiteError(f"{file.where('tasks')}: a suite needs a list of tasks")
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise SuiteError(f"{file.where('tasks')}: two tasks are named {name!r}")
    if any(task.group for task in tasks) and (without := [task.name for task in tasks if not task.group]):
        raise SuiteError(f"{file.where('tasks')}: task {without[0]!r} has no group, and others have one")
    values["tasks"] = tuple(tasks)
    for key in ("folders", "shots", "split_seeds"):
        values[key] = tuple(values.get(key, ()))
    return Suite(**values)
