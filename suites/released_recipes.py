"""Recipes that a paper's code ships, task by task, as data: the YAML files in `recipes/`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suites.base import SuiteError
from suites.yaml_lines import YamlFile

KEYS = ("title", "suite", "backbone", "statistics", "recipe", "methods", "tasks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One method's published settings on one task."""

    config: Mapping[str, Any]
    """The method's own knobs."""

    recipe: Mapping[str, Any]
    """Fields of the training recipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedTable:
    """The settings of one release on one suite."""

    title: str
    suite: str
    backbone: str
    """timm's architecture that the settings were made for."""

    statistics: str
    """Input statistics that the release normalises with."""

    entries: Mapping[tuple[str, str], Published]
    """By method and task."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods that the table has."""
        return tuple(dict.fromkeys(name for name, _ in self.entries))

    def find(self, method: str, task: str) -> Published:
        """The settings of a method on a task; `SuiteError` if there are none."""
        if (method, task) not in self.entries:
            raise SuiteError(f"task {task!r} has no published recipe for method {method!r} in {self.title}")
        return self.entries[method, task]


def load_table(path: Path) -> PublishedTable:
    """The table in a YAML file: fields shared by all in `recipe`, those of each task in the columns of `tasks`, and for
    each method its config and its column, where `config` in a task's fields holds settings of the method."""
    values = YamlFile(path, KEYS, "a table of recipes").values
    entries = {
        (method, task): _published(own["config"], values["recipe"], fields)
        for method, own in values["methods"].items()
        for task, fields in values["tasks"][own["tasks"]].items()
    }
    return PublishedTable(**{key: values[key] for key in KEYS[:4]}, entries=entries)


def _published(config: Mapping[str, Any], recipe: Mapping[str, Any], of_task: Mapping[str, Any]) -> Published:
    fields = dict(of_task)
    return Published(config={**config, **fields.pop("config", {})}, recipe={**recipe, **fields})


TABLES = tuple(map(load_table, sorted((Path(__file__).parent / "recipes").glob("*.yaml"))))
"""All tables. On a suite, a method is in one of them at most."""


def table_with(method: str, suite: str) -> PublishedTable:
    """The table that has a method's settings on a suite; `SuiteError` says which methods are known if none has."""
    here = [table for table in TABLES if table.suite == suite]
    if not here:
        suites = ", ".join(dict.fromkeys(table.suite for table in TABLES))
        raise SuiteError(f"suite {suite!r} has no published recipes; there are some for {suites}")
    for table in here:
        if method in table.methods:
            return table
    known = "; ".join(f"{table.title}: {', '.join(table.methods)}" for table in here)
    raise SuiteError(f"method {method!r} has no published recipe on {suite!r}. There are those of {known}")
