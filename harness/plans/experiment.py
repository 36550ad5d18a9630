"""What the user asks for: flags, an experiment file, or both, turned into a `Selection` with exact error messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import USER_ERRORS, HarnessError
from harness.models import backbones
from harness.plans import plan, tuning
from harness.schema import protocol
from harness.schema.preprocessing import STATISTICS, Preprocessing
from harness.schema.spec import BackboneSpec
from harness.schema.tasks import chosen_shots, chosen_tasks
from methods.architectures import kind
from methods.base import did_you_mean
from methods.registry import all_methods, parameters_on
from suites import SUITES, load_suite, released_recipes
from suites.base import Suite, SuiteError
from suites.yaml_lines import YamlFile, scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """The same choices as the command line's flags; an experiment file is this as YAML."""

    suite: str
    methods: list[Any]
    """Names, `name:key=value` texts, or mappings with `name` and settings; `all` stands for every registered name."""

    tasks: list[str] = field(default_factory=list)
    """Empty for all tasks of the suite."""

    seeds: int | list[int] = 1
    """How many (0 .. n-1), or which."""

    protocol: str = "fixed"
    backbone: str = backbones.DEFAULT
    weights: str = "pretrained"
    image_size: int | None = None
    shots: list[int] = field(default_factory=list)
    """Of the suite's shots, which; empty for all."""

    statistics: str | None = None
    """Input statistics: `model` (those it was trained with), `imagenet`, `half` or `none`. If not given: `model`, and
    with protocol `published` those of the release."""

    trials: int | None = None
    """Settings that each method may try, with protocol `tuned` alone; `harness.plans.tuning.BUDGET` if not given."""

    fit: str = "squash"
    interpolation: str = "bicubic"
    recipe: dict[str, Any] = field(default_factory=dict)


Blame = Callable[..., str]
"""`file:line: ` of a key (and of an item of its list), where the value came from a file."""

KEYS = tuple(f.name for f in dataclasses.fields(Experiment))


def read_file(path: Path) -> YamlFile:
    """An experiment file. `SuiteError` names file and line of what is wrong."""
    return YamlFile(path, KEYS, "an experiment")


def find_suite(name: str) -> Suite:
    """The suite of that name, or in the YAML file of that name; `HarnessError` if there is none."""
    if name.endswith((".yaml", ".yml")):
        suite = load_suite(Path(name).expanduser())
        with _Blame(f"{name}: "):
            plan.make_recipe(suite.recipe)
        SUITES.setdefault(suite.name, suite)
        if SUITES[suite.name] != suite:
            raise HarnessError(f"{name}: a suite named {suite.name!r} exists already; give yours another name")
        return suite
    if name not in SUITES:
        raise HarnessError(f"unknown suite {name!r}. {did_you_mean(name, list(SUITES))}")
    return SUITES[name]


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """`name` or `file.py:Class`, with any `:key=value` behind; values are YAML scalars, `+` joins a list."""
    parts = text.split(":")
    name = ":".join(part for part in parts if "=" not in part)
    return name, parse_settings([part for part in parts if "=" in part])


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """The settings in `key=value` texts. `HarnessError` for one without `=` and for a key that is given twice."""
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise HarnessError(f"{text!r} is no setting: write key=value, several with commas between them")
        if key in settings:
            raise HarnessError(f"{key!r} is given twice")
        try:
            settings[key] = _scalar(value)
        except SuiteError as error:
            raise HarnessError(f"{key}: {error}") from None
    return settings


def _scalar(text: str) -> Any:
    if "+" in text.lstrip("+") and "e+" not in text.lower():
        return [_scalar(part) for part in text.split("+")]
    return scalar(text)


def _method_choice(item: Any) -> plan.MethodChoice:
    if isinstance(item, str):
        name, settings = parse_method(item)
    elif isinstance(item, Mapping) and isinstance(item.get("name"), str):
        name, settings = item["name"], {key: value for key, value in item.items() if key != "name"}
    else:
        raise HarnessError(f"a method is a name or a mapping with `name`, not {item!r}")
    return plan.choose_method(name, settings)


MOST_SEEDS = 10_000
"""More are a slip of the finger."""


def _seeds(value: int | list[int]) -> tuple[int, ...]:
    seeds = range(min(value, MOST_SEEDS + 1)) if isinstance(value, int) else value
    if not 0 < len(seeds) <= MOST_SEEDS or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise HarnessError(f"seeds={value!r} must be a number of seeds or a list of seeds")
    return tuple(seeds)


def _trials(asked: Experiment) -> int:
    if asked.trials is None:
        return tuning.BUDGET
    if not protocol.get(asked.protocol).tunes:
        raise HarnessError(f"trials={asked.trials} is for protocol 'tuned' alone: {asked.protocol!r} tries nothing")
    if asked.trials < 1:
        raise HarnessError(f"trials={asked.trials} must be at least 1")
    return asked.trials


_TYPES: dict[str, tuple[type, ...]] = {
    "suite": (str,),
    "methods": (list,),
    "tasks": (list,),
    "seeds": (int, list),
    "protocol": (str,),
    "backbone": (str,),
    "weights": (str,),
    "image_size": (int,),
    "shots": (list,),
    "statistics": (str,),
    "trials": (int,),
    "fit": (str,),
    "interpolation": (str,),
    "recipe": (dict,),
}


def select(flags: Mapping[str, Any], file: YamlFile | None = None) -> plan.Selection:
    """Build the selection; a flag beats the file. Errors name file and line where the value came from the file."""
    values = (file.values if file else {}) | dict(flags)

    def blame(key: str, item: int | None = None) -> str:
        return f"{file.where(key, item)}: " if file and key not in flags and key in file.values else ""

    for key in ("suite", "methods"):
        if not values.get(key):
            raise HarnessError(f"say which {key}: --{key} on the command line, or `{key}:` in an experiment file")
    for key, value in values.items():
        if not isinstance(value, _TYPES[key]) or isinstance(value, bool):
            raise HarnessError(f"{blame(key)}{key}={value!r} must be {' or '.join(t.__name__ for t in _TYPES[key])}")
    asked = Experiment(**values)
    with _Blame(blame("suite")):
        suite = find_suite(asked.suite)
    choices = _choices(asked, suite, blame)
    with _Blame(blame("tasks")):
        tasks = chosen_tasks(suite, tuple(asked.tasks))
    with _Blame(blame("seeds")):
        seeds = _seeds(asked.seeds)
    with _Blame(blame("protocol")):
        plan.check_lists(suite, tasks, asked.protocol)
    with _Blame(blame("trials")):
        trials = _trials(asked)
    with _Blame(blame("recipe")):
        plan.make_recipe(suite.recipe, asked.recipe)
    with _Blame(blame("shots")):
        shots = chosen_shots(suite, tuple(asked.shots))
    with _Blame(blame("backbone")):
        backbones.check_name(asked.backbone, list(backbones.EMBEDDED))
    with _Blame(blame("image_size")):
        backbones.fitting_size(asked.backbone, asked.image_size)
    with _Blame(blame("weights" if asked.weights != "pretrained" else "backbone")):
        backbone = backbones.resolve(asked.backbone, asked.weights, asked.image_size)
    preprocessing = _preprocessing(asked, backbone, blame)
    return plan.Selection(
        suite=suite,
        tasks=tasks,
        methods=_fitting(asked, choices, backbone, blame),
        seeds=seeds,
        protocol=asked.protocol,
        backbone=backbone,
        preprocessing=preprocessing,
        shots=shots,
        recipe=asked.recipe,
        trials=trials,
    )


def _choices(asked: Experiment, suite: Suite, blame: Blame) -> list[tuple[int, plan.MethodChoice]]:
    """The methods that were asked for, each with its place in the list."""
    choices = []
    for index, item in enumerate(asked.methods):
        with _Blame(blame("methods", index)):
            for name in all_methods() if item == "all" else [item]:
                choice = _method_choice(name)
                plan.make_recipe(suite.recipe, choice.method.recipe, choice.recipe)
                choices.append((index, choice))
    return choices


def _fitting(
    asked: Experiment, choices: list[tuple[int, plan.MethodChoice]], backbone: BackboneSpec, blame: Blame
) -> tuple[plan.MethodChoice, ...]:
    """The choices, after their settings have been held to the backbone's shapes; of `all`, those that serve it."""
    model, fitting = backbones.skeleton(backbone.name, image_size=backbone.image_size), []
    for index, choice in choices:
        method = choice.method.configure(choice.config)
        if asked.methods[index] == "all" and not method.can_serve(kind(model)):
            continue
        with _Blame(blame("methods", index)):
            parameters_on(method, model)
        fitting.append(choice)
    return tuple(fitting)


def _preprocessing(asked: Experiment, backbone: BackboneSpec, blame: Blame) -> Preprocessing:
    released = protocol.get(asked.protocol).published and released_recipes.table_for(asked.suite).statistics
    statistics = asked.statistics or released or "model"
    with _Blame(blame("statistics") or blame("weights")):
        if statistics == "model":
            mean, std = backbones.statistics(backbone)
        elif statistics in STATISTICS:
            mean, std = STATISTICS[statistics]
        else:
            hint = did_you_mean(statistics, ["model", *STATISTICS])
            raise HarnessError(f"unknown statistics {statistics!r}. {hint}")
    with _Blame(blame("fit") or blame("interpolation")):
        return Preprocessing(
            image_size=backbone.image_size, mean=mean, std=std, fit=asked.fit, interpolation=asked.interpolation
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
