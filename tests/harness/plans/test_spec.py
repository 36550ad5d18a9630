"""Run specs: identity, round trip, and what is not part of it."""

import dataclasses
import json
import os
import subprocess
import sys
from typing import ClassVar

import pytest

from harness.errors import HarnessError
from harness.plans import plan, tuning
from harness.plans.experiment import select
from harness.schema.spec import BackboneSpec, Recipe, RunSpec, canonical_json
from methods import registry
from methods.base import added_with
from tests.examples import make_spec


def test_every_field_changes_the_run_id():
    base = make_spec()
    others = [
        make_spec(method="lora"),
        make_spec(config={"channels": 47}),
        make_spec(backbone=dataclasses.replace(base.backbone, digest="cd" * 32)),
        make_spec(suite="demo-full"),
        make_spec(task="animals"),
        make_spec(protocol="validation"),
        make_spec(recipe=Recipe(epochs=2, warmup_epochs=0, lr=2e-3)),
        make_spec(preprocessing="x"),
        make_spec(seed=1),
    ]
    assert len({spec.run_id for spec in [base, *others]}) == len(others) + 1
    assert {f.name for f in dataclasses.fields(RunSpec)} == set(base.as_dict())  # nothing outside the list above


def test_the_name_of_a_checkpoint_file_changes_nothing():
    base = make_spec()
    named = [dataclasses.replace(base.backbone, weights=name) for name in ("a.pth", "b.pth")]
    assert {make_spec(backbone=backbone).run_id for backbone in named} == {base.run_id}
    random = dataclasses.replace(base.backbone, weights="random", digest="")
    assert make_spec(backbone=random).run_id != base.run_id


def test_run_id_is_the_same_in_another_process_with_another_hash_seed():
    spec = make_spec(config={"channels": 48, "blocks": None, "targets": ("qkv", "proj")})
    code = (
        "import json, sys; from harness.schema.spec import RunSpec; "
        "print(RunSpec.from_dict(json.load(sys.stdin)).run_id)"
    )
    as_json = json.dumps(spec.as_dict())
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, input=as_json, capture_output=True, text=True, check=True, env=environment)
        assert done.stdout.strip() == spec.run_id


def test_round_trip_through_json():
    spec = make_spec(config={"targets": ("qkv", "proj")})
    assert RunSpec.from_dict(json.loads(json.dumps(spec.as_dict()))).run_id == spec.run_id


def test_canonical_json_has_one_form():
    assert canonical_json({"b": 1, "a": [1.5]}) == canonical_json({"a": [1.5], "b": 1}) == '{"a":[1.5],"b":1}'
    with pytest.raises(ValueError):
        canonical_json(float("nan"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0.0), ("weight_decay", -1.0), ("epochs", 0), ("warmup_epochs", 200), ("batch_size", 0), ("drop_path", 1.0)],
)
def test_impossible_recipes_are_refused_by_name(field, value):
    with pytest.raises(HarnessError, match=f"recipe {field}="):
        Recipe(**{field: value})


def test_misspelt_choices_are_answered():
    with pytest.raises(HarnessError, match="Did you mean 'adamw'"):
        Recipe(optimizer="adamv")


STORED = {
    "8bfe9b571fa4": make_spec(),
    "259696076dab": make_spec(method="lora", config={"rank": 8, "targets": ("qkv",)}, seed=3),
    "b38e8ed6a234": make_spec(suite="fewshot", task="food101", shots=4, split_seed=1, recipe=Recipe()),
    "4146cc2de372": make_spec(
        protocol="tuned", trials=8, searched=("lr", "weight_decay"), recipe=Recipe(lr=5e-3, precision="bf16")
    ),
    "c2df31148043": make_spec(backbone=BackboneSpec(name="demo_vit", weights="random", digest="", image_size=56)),
}
"""Run ids that stand in records that people have: they must never change."""


@pytest.mark.parametrize("run_id", STORED)
def test_run_ids_are_those_of_the_records_there_are(run_id):
    assert STORED[run_id].run_id == run_id


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LaterRecipe(Recipe):
    """A version with a field more, whose default has changed since it was added."""

    ema: float = dataclasses.field(default=0.99, metadata=added_with(0.0))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LaterSpec(RunSpec):
    """A version with a field more."""

    folds: int = dataclasses.field(default=1, metadata=added_with(1))

    __hash__ = RunSpec.__hash__


def test_a_field_that_is_added_later_changes_an_id_only_with_another_value_than_it_was_added_with():
    base, values = make_spec(), {f.name: getattr(make_spec(), f.name) for f in dataclasses.fields(RunSpec)}
    recipe = dataclasses.asdict(base.recipe)
    same = LaterSpec(**values | {"recipe": LaterRecipe(**recipe, ema=0.0)})
    others = [LaterSpec(**values, folds=5), LaterSpec(**values | {"recipe": LaterRecipe(**recipe)})]
    assert same.run_id == base.run_id
    assert len({spec.run_id for spec in (base, *others)}) == 3
    assert same.as_dict()["recipe"]["ema"] == 0.0  # the record says it all the same


def test_a_record_without_a_field_stands_for_the_value_that_the_field_was_added_with(monkeypatch):
    base = make_spec()
    monkeypatch.setattr("harness.schema.spec.Recipe", LaterRecipe)
    read = LaterSpec.from_dict(base.as_dict())
    assert (read.recipe.ema, read.folds, read.run_id) == (0.0, 1, base.run_id)


def test_a_methods_new_setting_changes_an_id_only_with_another_value_than_it_was_added_with(monkeypatch):
    lora = registry.get("lora")
    before, (tried, *_) = only_spec(), tuned_trials()

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class LaterConfig(lora.Config):
        bias: bool = dataclasses.field(default=True, metadata=added_with(False))

    class Later(lora):
        Config = LaterConfig
        search_space: ClassVar = {"bias": (False, True), **lora.search_space}

    monkeypatch.setattr(registry, "get", lambda name: Later)
    assert only_spec(bias=False).run_id == before.run_id != only_spec().run_id
    assert Later.of_run(before.config).config.bias is False  # as the run was done, whatever the default is by now
    assert {tuning.setting(spec, ["bias"])["bias"] for spec in tuned_trials()} == {False, True}
    assert tried.run_id in {spec.run_id for spec in tuned_trials()}


def selected(protocol="fixed", **settings):
    flags = {"suite": "demo", "tasks": ["digits"], "methods": [{"name": "lora", **settings}], "protocol": protocol}
    return plan.expand(select(flags | ({"trials": 30} if protocol == "tuned" else {})))


def only_spec(**settings):
    (spec,) = selected(**settings)
    return spec


def tuned_trials():
    return selected("tuned")
