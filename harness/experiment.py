"""What the user asks for: flags, an experiment file, or both, turned into a `Selection` with exact error messages."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from harness import backbones, plan, protocol
from harness.errors import USER_ERRORS, HarnessError
from methods.base import did_you_mean
from suites import SUITES
from suites.base import Suite


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """The same choices as the command line's flags; an experiment file is this as YAML."""

    suite: str
    methods: list[Any]
    """Names, `name:key=value` texts, or mappings with `name` and settings."""

    tasks: list[str] = field(default_factory=list)
    """Empty for all tasks of the suite."""

    seeds: int | list[int] = 1
    """How many (0 .. n-1), or which."""

    protocol: str = "fixed"
    backbone: str = backbones.DEFAULT
    weights: str = "pretrained"
    image_size: int | None = None
    recipe: dict[str, Any] = field(default_factory=dict)


KEYS = tuple(f.name for f in dataclasses.fields(Experiment))


def find_suite(name: str) -> Suite:
    """The suite of that name; `HarnessError` if there is none."""
    if name not in SUITES:
        raise HarnessError(f"unknown suite {name!r}. {did_you_mean(name, list(SUITES))}")
    return SUITES[name]


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """`name` or `file.py:Class`, with any `:key=value` behind; values are YAML scalars, `+` joins a list."""
    parts = text.split(":")
    settings = dict(part.partition("=")[::2] for part in parts if "=" in part)
    name = ":".join(part for part in parts if "=" not in part)
    return name, {key: _scalar(value) for key, value in settings.items()}


def _scalar(text: str) -> Any:
    if "+" in text.lstrip("+") and "e+" not in text.lower():
        return [_scalar(part) for part in text.split("+")]
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)
    except ValueError:
        return yaml.safe_load(text)


def _method_choice(item: Any) -> plan.MethodChoice:
    if isinstance(item, str):
        name, settings = parse_method(item)
    elif isinstance(item, Mapping) and isinstance(item.get("name"), str):
        name, settings = item["name"], {key: value for key, value in item.items() if key != "name"}
    else:
        raise HarnessError(f"a method is a name or a mapping with `name`, not {item!r}")
    return plan.choose_method(name, settings)


def _seeds(value: int | list[int]) -> tuple[int, ...]:
    seeds = range(value) if isinstance(value, int) else value
    if not seeds or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise HarnessError(f"seeds={value!r} must be a number of seeds or a list of seeds")
    return tuple(seeds)


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 as the number it is (YAML 1.1 wants 1.0e-3) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                line = node.value[index][0].start_mark.line + 1
                raise HarnessError(f"{node.start_mark.name}:{line}: key {key!r} is given twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class ExperimentFile:
    """A YAML experiment with the line of every key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            loader = _Loader(path.read_text())
        except OSError as error:
            raise HarnessError(f"{path}: cannot be read ({error.strerror})") from None
        loader.name = str(path)
        try:
            node = loader.get_single_node()
            if not isinstance(node, yaml.MappingNode):
                raise HarnessError(f"{path}:1: an experiment is a mapping with the keys {', '.join(KEYS)}")
            self.values: dict[str, Any] = loader.construct_document(node)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise HarnessError(f"{path}:{line}: not valid YAML: {error.problem}") from None
        self._nodes = {key.value: (key, value) for key, value in node.value}
        for key in self.values:
            if key not in KEYS:
                raise HarnessError(f"{self.where(key)}: unknown key {key!r}. {did_you_mean(str(key), KEYS)}")

    def where(self, key: str, item: int | None = None) -> str:
        """`file:line` of a key, or of the item of the list under it."""
        if key not in self._nodes:
            return str(self.path)
        node, value = self._nodes[key]
        if item is not None and isinstance(value, yaml.SequenceNode) and item < len(value.value):
            node = value.value[item]
        return f"{self.path}:{node.start_mark.line + 1}"


_TYPES: dict[str, tuple[type, ...]] = {
    "suite": (str,),
    "methods": (list,),
    "tasks": (list,),
    "seeds": (int, list),
    "protocol": (str,),
    "backbone": (str,),
    "weights": (str,),
    "image_size": (int,),
    "recipe": (dict,),
}


def select(flags: Mapping[str, Any], file: ExperimentFile | None = None) -> plan.Selection:
    """Build the selection; a flag beats the file. Errors name file and line where the value came from the file."""
    values = (file.values if file else {}) | dict(flags)

    def blame(key: str, item: int | None = None) -> str:
        return f"{file.where(key, item)}: " if file and key not in flags and key in file.values else ""

    for key in ("suite", "methods"):
        if not values.get(key):
            raise HarnessError(f"say which {key}: --{key} on the command line, or `{key}:` in an experiment file")
    for key, value in values.items():
        if not isinstance(value, _TYPES[key]):
            raise HarnessError(f"{blame(key)}{key}={value!r} must be {' or '.join(t.__name__ for t in _TYPES[key])}")
    asked = Experiment(**values)
    with _Blame(blame("suite")):
        suite = find_suite(asked.suite)
    choices = []
    for index, item in enumerate(asked.methods):
        with _Blame(blame("methods", index)):
            choice = _method_choice(item)
            plan.make_recipe(suite.recipe, choice.method.recipe, choice.recipe)
            choices.append(choice)
    with _Blame(blame("tasks")):
        tasks = plan.task_names(suite, tuple(asked.tasks))
    with _Blame(blame("seeds")):
        seeds = _seeds(asked.seeds)
    with _Blame(blame("protocol")):
        protocol.get(asked.protocol)
    with _Blame(blame("recipe")):
        plan.make_recipe(suite.recipe, asked.recipe)
    with _Blame(blame("weights" if asked.weights != "pretrained" else "backbone")):
        backbone = backbones.resolve(asked.backbone, asked.weights, asked.image_size)
    return plan.Selection(
        suite=suite,
        tasks=tasks,
        methods=tuple(choices),
        seeds=seeds,
        protocol=asked.protocol,
        backbone=backbone,
        recipe=asked.recipe,
    )


class _Blame:
    """Puts `file:line: ` in front of a user error's message."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.prefix and isinstance(error, USER_ERRORS):
            raise HarnessError(f"{self.prefix}{error}") from None
