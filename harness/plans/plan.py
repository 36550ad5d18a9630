"""The plan: a selection of suite, methods, protocol and seeds, expanded to a list of RunSpec. Pure: of the backbone
it takes the shapes alone.

Under `tuned` the list holds the trials, and `finals` the runs that they decide; `harness.plans.stages` puts both in
order.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from harness.errors import HarnessError
from harness.models import backbones
from harness.plans import tuning
from harness.schema import protocol as protocols
from harness.schema.metrics import ACCURACY
from harness.schema.preprocessing import Preprocessing
from harness.schema.spec import RECIPE_KEYS, BackboneSpec, Recipe, RunSpec, canonical_json
from harness.schema.tasks import chosen_shots, chosen_tasks
from methods import registry
from methods.base import Method, MethodError, did_you_mean, identifying, require_fields, typed_values
from suites import released_recipes
from suites.base import NOT_YET, Suite


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodChoice:
    """A method with the settings that the user gave it."""

    method: type[Method]
    config: Mapping[str, Any] = field(default_factory=dict)
    """The method's own knobs."""

    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the training recipe, for this method alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What to run."""

    suite: Suite
    tasks: tuple[str, ...]
    """Names of tasks of the suite; empty for all."""

    methods: tuple[MethodChoice, ...]
    seeds: tuple[int, ...]
    protocol: str
    backbone: BackboneSpec
    preprocessing: Preprocessing
    shots: tuple[int, ...] = ()
    """Of the suite's shots, which; empty for all."""

    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the training recipe, for all methods."""

    trials: int = tuning.BUDGET
    """Settings that each method may try where the protocol tunes."""

    precision: str = "auto"
    """What `auto` of a recipe stands for: `bf16` or `float32` where the device is known."""


def choose_method(name: str, settings: Mapping[str, Any]) -> MethodChoice:
    """Split `settings` into the method's knobs and recipe fields, and check that the method takes them."""
    method = registry.get(name)
    registry.require_declared(method)
    own = {f.name for f in dataclasses.fields(method.Config)}
    for key in settings:
        if key in NOT_YET and key not in own:
            raise HarnessError(f"{key}: {NOT_YET[key]}")
        if key not in own | RECIPE_KEYS:
            known = [*own, *RECIPE_KEYS]
            raise HarnessError(f"method {method.name!r} has no setting {key!r}. {did_you_mean(str(key), known)}")
    configured = method.configure({key: value for key, value in settings.items() if key in own}).config
    config = {key: getattr(configured, key) for key in settings if key in own}
    return MethodChoice(method=method, config=config, recipe={k: v for k, v in settings.items() if k not in own})


def make_recipe(*layers: Mapping[str, Any]) -> Recipe:
    """A recipe out of layers of fields, later ones winning. `MethodError` for an unknown field or a wrong type,
    `HarnessError` for a value out of its range."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key in NOT_YET.keys() & layer:
            raise HarnessError(f"{key}: {NOT_YET[key]}")
        require_fields(Recipe, layer, "the recipe has no field")
        merged |= typed_values(Recipe, layer, "recipe ")
    if "epochs" in merged and "warmup_epochs" not in merged:  # a short training keeps the default share of warm-up
        merged["warmup_epochs"] = merged["epochs"] // 10
    return Recipe(**merged)


def check_lists(suite: Suite, tasks: tuple[str, ...], protocol: str) -> None:
    """`HarnessError` if the protocol is unknown, or needs a list that one of the tasks does not have."""
    rule = protocols.get(protocol)
    trained_on = suite.final_split if rule.final else "train"
    for task in (suite.task(name) for name in tasks):
        for split in (*(("train", "val") if rule.tunes else ()), trained_on, rule.report_split):
            if split not in task.lists:
                what = f"task {task.name!r} of suite {suite.name!r} has no {split} split"
                raise HarnessError(f"{what}, which protocol {protocol!r} needs")


def check_curve(selection: Selection) -> None:
    """`HarnessError` if no run of the selection scores val after every epoch, which `--curve` asks for."""
    rule, suite = protocols.get(selection.protocol), selection.suite
    if rule.every_epoch:
        why = "every epoch is scored on the test split already"
    elif rule.final and not rule.tunes and suite.final_split == "trainval":
        why = "val is trained on"
    elif not any("val" in suite.task(name).lists for name in selection.tasks):
        why = "there is no val split"
    else:
        return
    raise HarnessError(f"--curve: under protocol {rule.name!r} on suite {suite.name!r} {why}; leave it out")


def published_settings(selection: Selection, choice: MethodChoice, task: str) -> released_recipes.Published:
    """The release's settings of `choice` on `task`. `SuiteError` if they are not known, `HarnessError` for settings of
    the user's own or another backbone: with these it would not be the published recipe."""
    table = released_recipes.table_with(choice.method.name, selection.suite.data_name)
    architecture = selection.backbone.name.partition(".")[0]
    if architecture != table.backbone:
        raise HarnessError(f"the published recipes ({table.title}) are for {table.backbone!r}, not {architecture!r}")
    own = [*choice.config, *choice.recipe, *selection.recipe]
    if own:
        raise HarnessError(f"protocol 'published' takes all settings from {table.title}: leave out {', '.join(own)}")
    return table.find(choice.method.name, task)


def _settings(selection: Selection, choice: MethodChoice, task: str) -> tuple[dict[str, Any], Recipe]:
    """Config, defaults included, and recipe of a method on a task."""
    if protocols.get(selection.protocol).published:
        released = published_settings(selection, choice, task)
        config, recipe = released.config, make_recipe(released.recipe)
    else:
        config = choice.config
        recipe = make_recipe(selection.suite.recipe, choice.method.recipe, selection.recipe, choice.recipe)
    if recipe.precision == "auto":
        recipe = dataclasses.replace(recipe, precision=selection.precision)
    return resolved(choice.method, config, selection.backbone), recipe


@lru_cache(maxsize=64)
def _shapes(backbone: BackboneSpec) -> Any:
    """The untouched model without weights. Nothing changes it."""
    return backbones.skeleton(backbone.name, image_size=backbone.image_size)


def resolved(method: type[Method], config: Mapping[str, Any], backbone: BackboneSpec) -> dict[str, Any]:
    """The configuration of a run, with the values that settings which are left open have on this backbone.

    One configuration so has one run id, whether a value was given or is the default. `MethodError` for what does not
    fit.
    """
    return identifying(_resolved(method, canonical_json(config), backbone))


@lru_cache(maxsize=4096)
def _resolved(method: type[Method], config: str, backbone: BackboneSpec) -> Any:
    configured = method.configure(json.loads(config))
    try:
        return configured.resolve(_shapes(backbone))
    except MethodError as error:
        raise MethodError(f"method {method.name!r}: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """What one method is run on: one training list, for as many seeds as were asked for."""

    choice: MethodChoice
    task: str
    shots: int | None
    split_seed: int | None


def _cells(selection: Selection) -> list[_Cell]:
    """Tasks outermost, so that neighbours share their data."""
    suite = selection.suite
    return [
        _Cell(choice=choice, task=task, shots=shots, split_seed=split_seed)
        for task in chosen_tasks(suite, selection.tasks)
        for shots in chosen_shots(suite, selection.shots) or (None,)
        for split_seed in suite.split_seeds or (None,)
        for choice in selection.methods
    ]


def _spec(selection: Selection, cell: _Cell, protocol: str, seed: int) -> RunSpec:
    config, recipe = _settings(selection, cell.choice, cell.task)
    chooses = protocols.get(protocol).every_epoch
    return RunSpec(
        method=cell.choice.method.name,
        config=config,
        backbone=selection.backbone,
        suite=selection.suite.name,
        task=cell.task,
        shots=cell.shots,
        split_seed=cell.split_seed,
        protocol=protocol,
        recipe=recipe,
        preprocessing=selection.preprocessing.id,
        seed=seed,
        chosen_by=selection.suite.task(cell.task).metric if chooses else ACCURACY.name,
    )


def _trials(selection: Selection, cell: _Cell, space: Mapping[str, tuple[Any, ...]]) -> tuple[RunSpec, ...]:
    """The runs that decide a cell's settings."""
    choice = cell.choice
    default = tuning.setting(_spec(selection, cell, "validation", tuning.SEED), tuple(space))
    own = {f.name for f in dataclasses.fields(choice.method.Config)}
    specs = []
    for drawn in tuning.draw(choice.method.name, space, default, selection.trials):
        config = {**choice.config, **{key: value for key, value in drawn.items() if key in own}}
        recipe = {**choice.recipe, **{key: value for key, value in drawn.items() if key not in own}}
        tried = dataclasses.replace(cell, choice=dataclasses.replace(choice, config=config, recipe=recipe))
        specs.append(_spec(selection, tried, "validation", tuning.SEED))
    return tuple(specs)


def finals(selection: Selection) -> list[tuning.TunedRun]:
    """The runs of a selection under `tuned`, each with the trials that will decide it. `HarnessError` for two equal
    runs."""
    runs: list[tuning.TunedRun] = []
    for cell in _cells(selection):
        fixed = {**cell.choice.config, **cell.choice.recipe, **selection.recipe}
        space = {
            key: _distinct(selection, cell.choice, key, values)
            for key, values in cell.choice.method.search_space.items()
            if key not in fixed
        }
        trials = _trials(selection, cell, space)
        runs += [
            tuning.TunedRun(trials=trials, seed=seed, budget=selection.trials, space=space) for seed in selection.seeds
        ]
    _check_distinct([((final.cell, final.seed), final.trials[0].method) for final in runs])
    return runs


def _distinct(selection: Selection, choice: MethodChoice, key: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Candidate values as they are used on the backbone, each once: an open setting and its value are one."""
    if key in RECIPE_KEYS:
        return values
    configs = [canonical_json({**choice.config, key: value}) for value in values]
    used = [getattr(_resolved(choice.method, config, selection.backbone), key) for config in configs]
    return tuple(value for number, value in enumerate(used) if value not in used[:number])


def _check_distinct(runs: list[tuple[Hashable, str]]) -> None:
    """`HarnessError` for two equal runs, given as what they are known by and their method."""
    counts = Counter(identity for identity, _ in runs)
    twice = sorted({method for identity, method in runs if counts[identity] > 1})
    if twice:
        raise HarnessError(
            f"the selection names the same run twice: a seed or one of the methods {', '.join(twice)} is repeated, or "
            "two of its settings amount to the same on this backbone"
        )


def expand(selection: Selection) -> list[RunSpec]:
    """All runs that can be named now: under `tuned` the trials. `HarnessError` for two equal runs."""
    if protocols.get(selection.protocol).tunes:
        trials = [spec for final in finals(selection) for spec in final.trials]
        return list({spec.run_id: spec for spec in trials}.values())
    specs = [_spec(selection, cell, selection.protocol, seed) for cell in _cells(selection) for seed in selection.seeds]
    _check_distinct([(spec.run_id, spec.method) for spec in specs])
    return specs
