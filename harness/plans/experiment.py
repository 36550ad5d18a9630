"""What the user asks for: flags, an experiment file, or both, turned into a `Selection` with exact error messages."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import USER_ERRORS, HarnessError
from harness.models import backbones
from harness.models.names import check_name
from harness.plans import plan, tuning
from harness.plans.expectations import EXPECT, Expectations, take_expectations
from harness.schema import protocol
from harness.schema.metrics import METRICS
from harness.schema.preprocessing import STATISTICS, Preprocessing
from harness.schema.spec import BackboneSpec, RunSpec
from harness.schema.tasks import chosen_shots, chosen_tasks
from methods.architectures import kind
from methods.base import did_you_mean, typed
from methods.registry import all_methods, parameters_on
from suites import SUITES, known, load_suite, own, released_recipes
from suites.base import Suite, SuiteError
from suites.corruptions import SUFFIX, corrupted
from suites.yaml_lines import YamlFile, scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """The same choices as the command line's flags; an experiment file is this as YAML."""

    suite: str
    """A name, a YAML file, or the path of own data, see `suites.own`."""

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


KEYS = tuple(f.name for f in dataclasses.fields(Experiment))


def read_file(path: Path) -> YamlFile:
    """An experiment file. `SuiteError` names file and line of what is wrong."""
    return _read(path)[0]


def read_expectations(path: Path) -> Expectations:
    """What the experiment in a file should give; empty if the file does not say. Errors are those of `read_file`."""
    return _read(path)[1]


def _read(path: Path) -> tuple[YamlFile, Expectations]:
    file = YamlFile(path, (*KEYS, EXPECT), "an experiment")
    return file, take_expectations(file)


def find_suite(name: str, shots: tuple[int, ...] = ()) -> Suite:
    """The suite of that name, in the YAML file of that name, or of the data at that path, corrupted where
    `+corruptions` follows; `HarnessError` if there is none. `shots`: numbers of images per class that a suite of a path
    is to have, see `suites.own`."""
    if name.endswith(SUFFIX) and not (base := name.removesuffix(SUFFIX)).endswith(SUFFIX):
        return corrupted(find_suite(base, shots))
    if name.endswith((".yaml", ".yml")):
        suite = load_suite(Path(name).expanduser(), {metric.name: metric.classes for metric in METRICS.values()})
        with _prefixed(f"{name}: "):
            plan.make_recipe(suite.recipe)
        SUITES.setdefault(suite.name, suite)
        if SUITES[suite.name] != suite:
            raise HarnessError(f"{name}: a suite named {suite.name!r} exists already; give yours another name")
        return suite
    if (there := SUITES.get(name)) and there.path is None:
        return there
    if own.is_place(name):
        return _own_suite(name, shots)
    if there is None:
        if os.sep in name:
            raise HarnessError(f"suite {name!r}: there is no such folder or table")
        hint = did_you_mean(name, list(SUITES))
        raise HarnessError(f"unknown suite {name!r}. {hint} There is no folder or table of that name either.")
    return there


def _own_suite(name: str, shots: tuple[int, ...]) -> Suite:
    """The suite of the data at a path, which takes the place of what was there before. `HarnessError` if its name is
    that of another suite."""
    suite = own.read_suite(Path(name), shots)
    there = SUITES.get(suite.name)
    if there and there.path is None:
        raise HarnessError(
            f"{name}: a suite named {suite.name!r} exists already: rename the folder or file, or give a link to it "
            f"under another name, as by `ln -s {suite.path} my-{suite.name}`"
        )
    SUITES[suite.name] = suite
    return suite


def suite_of_run(spec: RunSpec, file: str | None) -> Suite:
    """The suite of a run, which is in `file` where it is one of the user's own. `HarnessError` if it is not that."""
    shots = () if spec.shots is None else (spec.shots,)
    if file is not None and (name := find_suite(file, shots).name) != spec.suite:
        raise HarnessError(f"--suite {file} is {name!r}, and the run's suite is {spec.suite!r}")
    if (suite := known(spec.suite)) is None:
        raise HarnessError(f"suite {spec.suite!r} is not known here: give its file or folder with --suite")
    return suite


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """`name` or `file.py:Class`, followed by any `:key=value`; values are YAML scalars, `+` joins a list."""
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
"""More than this is a typo."""


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


@dataclass(frozen=True, slots=True)
class _Given:
    """What the user gave, and where each value came from."""

    flags: Mapping[str, Any]
    file: YamlFile | None

    @property
    def values(self) -> dict[str, Any]:
        """All values by key: a flag beats the file."""
        return {**(self.file.values if self.file else {}), **self.flags}

    @contextmanager
    def blaming(self, *keys: str, item: int | None = None) -> Iterator[None]:
        """Put `file:line: ` in front of a user error's message: of the first of `keys` that the file gave, and there of
        an item of its list."""
        from_file = [key for key in keys if self.file and key in self.file.values and key not in self.flags]
        with _prefixed(f"{self.file.where(from_file[0], item)}: " if self.file and from_file else ""):
            yield


@contextmanager
def _prefixed(prefix: str) -> Iterator[None]:
    """Put `prefix` in front of a user error's message."""
    try:
        yield
    except USER_ERRORS as error:
        if not prefix:
            raise
        raise HarnessError(f"{prefix}{error}") from None


_HINTS = typing.get_type_hints(Experiment)

CHECKS: Mapping[str, Callable[[Experiment, Suite], Any]] = {
    "tasks": lambda asked, suite: chosen_tasks(suite, tuple(asked.tasks)),
    "seeds": lambda asked, suite: _seeds(asked.seeds),
    "protocol": lambda asked, suite: plan.check_lists(suite, chosen_tasks(suite, tuple(asked.tasks)), asked.protocol),
    "trials": lambda asked, suite: _trials(asked),
    "recipe": lambda asked, suite: plan.make_recipe(suite.recipe, asked.recipe),
    "shots": lambda asked, suite: chosen_shots(suite, tuple(asked.shots)),
    "backbone": lambda asked, suite: check_name(asked.backbone, list(backbones.EMBEDDED)),
    "image_size": lambda asked, suite: backbones.fitting_size(asked.backbone, asked.image_size),
}
"""Checks of single values, in their order. Each raises a user error, or returns the value as a selection holds it."""


def select(flags: Mapping[str, Any], file: YamlFile | None = None) -> plan.Selection:
    """Build the selection; a flag beats the file. Errors name file and line where the value came from the file."""
    given = _Given(flags, file)
    asked = _asked(given)
    with given.blaming("suite"):
        suite = find_suite(asked.suite, tuple(asked.shots))
    choices = _choices(asked, suite, given)
    checked = {}
    for key, check in CHECKS.items():
        with given.blaming(key):
            checked[key] = check(asked, suite)
    with given.blaming("weights" if asked.weights != "pretrained" else "backbone"):
        backbone = backbones.resolve(asked.backbone, asked.weights, asked.image_size)
    fitting = _fitting(asked, choices, backbone, given)
    preprocessing = _preprocessing(asked, suite, fitting, backbone, given)
    return plan.Selection(
        suite=suite,
        methods=fitting,
        protocol=asked.protocol,
        backbone=backbone,
        preprocessing=preprocessing,
        recipe=asked.recipe,
        **{key: checked[key] for key in ("tasks", "seeds", "shots", "trials")},
    )


def _asked(given: _Given) -> Experiment:
    values = given.values
    for key in ("suite", "methods"):
        if not values.get(key):
            raise HarnessError(f"say which {key}: --{key} on the command line, or `{key}:` in an experiment file")
    for key, value in values.items():
        with given.blaming(key):
            values[key] = typed(key, value, _HINTS[key])
    return Experiment(**values)


def _choices(asked: Experiment, suite: Suite, given: _Given) -> list[tuple[int, plan.MethodChoice]]:
    """The methods that were asked for, each with its place in the list."""
    choices = []
    for index, item in enumerate(asked.methods):
        with given.blaming("methods", item=index):
            for name in all_methods() if item == "all" else [item]:
                choice = _method_choice(name)
                plan.make_recipe(suite.recipe, choice.method.recipe, choice.recipe)
                choices.append((index, choice))
    return choices


def _fitting(
    asked: Experiment, choices: list[tuple[int, plan.MethodChoice]], backbone: BackboneSpec, given: _Given
) -> tuple[plan.MethodChoice, ...]:
    """The choices, after their settings have been held to the backbone's shapes; of `all`, those that serve it."""
    model, fitting = backbones.skeleton(backbone.name, image_size=backbone.image_size), []
    for index, choice in choices:
        method = choice.method.configure(choice.config)
        if asked.methods[index] == "all" and not method.can_serve(kind(model)):
            continue
        with given.blaming("methods", item=index):
            parameters_on(method, model)
        fitting.append(choice)
    return tuple(fitting)


def _released_statistics(suite: Suite, choices: tuple[plan.MethodChoice, ...]) -> str:
    """Input statistics of the releases that the methods' recipes come from. `HarnessError` if they differ."""
    tables = [released_recipes.table_with(choice.method.name, suite.data_name) for choice in choices]
    used = {table.statistics: table.title for table in tables}
    if len(used) > 1:
        how = ", ".join(f"{title} with {statistics}" for statistics, title in used.items())
        raise HarnessError(f"the releases normalise images differently ({how}): run their methods apart")
    return next(iter(used))


def _preprocessing(
    asked: Experiment, suite: Suite, choices: tuple[plan.MethodChoice, ...], backbone: BackboneSpec, given: _Given
) -> Preprocessing:
    with given.blaming("methods"):
        released = _released_statistics(suite, choices) if protocol.get(asked.protocol).published else ""
    statistics = asked.statistics or released or "model"
    with given.blaming("statistics", "weights"):
        if statistics != "model" and statistics not in STATISTICS:
            hint = did_you_mean(statistics, ["model", *STATISTICS])
            raise HarnessError(f"unknown statistics {statistics!r}. {hint}")
        mean, std = backbones.statistics(backbone) if statistics == "model" else STATISTICS[statistics]
    with given.blaming("fit", "interpolation"):
        return Preprocessing(
            image_size=backbone.image_size, mean=mean, std=std, fit=asked.fit, interpolation=asked.interpolation
        )
