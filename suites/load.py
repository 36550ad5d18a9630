"""Suites from YAML files: those beside this module, and any file of the user's in the same form.

A file has the fields of `suites.base.Suite`; `tasks` are mappings with the fields of `suites.base.Task`, where `test`,
`val` and `train` may stand for `sizes`, and `images` for a folder below each of `folders`. `defaults` holds task fields
that all tasks share. Lists of a task's `targets` default to `val_meta.list`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suites.base import Suite, SuiteError, Target, Task
from suites.yaml_lines import YamlFile

SUITE_KEYS = ("defaults", *(f.name for f in dataclasses.fields(Suite)))
SPLITS = ("train", "val", "test")
TASK_KEYS = {f.name for f in dataclasses.fields(Task)} - {"build"} | {*SPLITS, "images"}
TARGET_KEYS = {f.name for f in dataclasses.fields(Target)}


def _texts(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise SuiteError(f"{key}={value!r} must be a list of texts")
    return tuple(value)


def _check_keys(values: Any, known: set[str], needed: set[str], what: str) -> None:
    if not isinstance(values, Mapping):
        raise SuiteError(f"{what} must be a mapping, not {values!r}")
    unknown, missing = set(values) - known, needed - set(values)
    if unknown or missing:
        problem = f"unknown key {sorted(unknown)[0]!r}" if unknown else f"no {sorted(missing)[0]!r}"
        raise SuiteError(f"{what} {values.get('name', '')!r} has {problem}; its keys are {', '.join(sorted(known))}")


def _target(values: Any) -> Target:
    _check_keys(values, TARGET_KEYS, {"name", "folders"}, "target")
    fields = {"list_file": "val_meta.list", **values}
    for key in ("folders", "list_folders"):
        if key in fields:
            fields[key] = _texts(fields[key], key)
    return Target(**fields)


def _task(values: Any, defaults: Mapping[str, Any]) -> Task:
    _check_keys(values, TASK_KEYS, set(), "task")
    fields = {**defaults, **values}
    _check_keys(fields, TASK_KEYS, {"name", "group", "num_classes"}, "task")
    short = {split: fields.pop(split) for split in SPLITS if split in fields}
    sizes = {**defaults.get("sizes", {}), **values.get("sizes", {}), **short}
    counts = {"num_classes": fields["num_classes"], **sizes}
    for key, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise SuiteError(f"task {fields['name']!r}: {key}={count!r} must be a positive whole number")
    folders = _texts(fields.get("folders", [fields["name"]]), "folders")
    images = fields.pop("images", None)
    lists = _texts(fields["list_folders"], "list_folders") if "list_folders" in fields else ()
    fields |= {"sizes": sizes, "list_folders": lists or (folders if images else ())}
    fields["folders"] = tuple(f"{folder}/{images}" for folder in folders) if images else folders
    fields["subfolders"] = _texts(fields.get("subfolders", [""]), "subfolders")
    fields["targets"] = tuple(_target(target) for target in fields.get("targets", []))
    return Task(**fields)


def load_suite(path: Path) -> Suite:
    """The suite in a YAML file. `SuiteError` names file, line and key of what is wrong."""
    file = YamlFile(path, SUITE_KEYS, "a suite")
    values = dict(file.values)
    defaults = values.pop("defaults", {})
    tasks = []
    for index, task in enumerate(values.get("tasks") or []):
        try:
            tasks.append(_task(task, defaults))
        except SuiteError as error:
            raise SuiteError(f"{file.where('tasks', index)}: {error}") from None
    if not tasks:
        raise SuiteError(f"{file.where('tasks')}: a suite needs a list of tasks")
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise SuiteError(f"{file.where('tasks')}: two tasks are named {name!r}")
    values["tasks"] = tuple(tasks)
    for key in ("folders", "shots", "split_seeds"):
        values[key] = tuple(values.get(key, ()))
    for key in ("name", "title"):
        values.setdefault(key, path.stem)
    values.setdefault("about", "")
    return Suite(**values)
