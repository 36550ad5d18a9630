"""Run specs: identity, round trip, and what is not part of it."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
from examples import make_spec

from harness.errors import HarnessError
from harness.schema.spec import Recipe, RunSpec, canonical_json


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
