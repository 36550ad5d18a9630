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

    def find(self, method: str, task: str) -> Published:
        """The settings of a method on a task; `SuiteError` says which are known if there are none."""
        methods = list(dict.fromkeys(name for name, _ in self.entries))
        if method not in methods:
            raise SuiteError(f"method {method!r} has no published recipe; {self.title} has {', '.join(methods)}")
        if (method, task) not in self.entries:
            raise SuiteError(f"task {task!r} has no published recipe for method {method!r} in {self.title}")
        return self.entries[method, task]


def load_table(path: Path) -> PublishedTable:
    """The table in a YAML file: fields shared by all in `recipe`, those of each task in the columns of `tasks`, and for
    each method its config and its column."""
    values = YamlFile(path, KEYS, "a table of recipes").values
    entries = {
        (method, task): Published(config=own["config"], recipe={**values["recipe"], **fields})
        for method, own in values["methods"].items()
        for task, fields in values["tasks"][own["tasks"]].items()
    }
    return PublishedTable(**{key: values[key] for key in KEYS[:4]}, entries=entries)


TABLES = {table.suite: table for table in map(load_table, sorted((Path(__file__).parent / "recipes").glob("*.yaml")))}
"""Tables by suite."""


def table_for(suite: str) -> PublishedTable:
    """The table of a suite; `SuiteError` if nothing was published for it."""
    if suite not in TABLES:
        raise SuiteError(f"suite {suite!r} has no published recipes; there are some for {', '.join(TABLES)}")
    return TABLES[suite]
