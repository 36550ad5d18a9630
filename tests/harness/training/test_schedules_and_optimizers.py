"""Learning-rate schedules and optimisers: their numbers, and that one function is all that a new one takes."""

import copy
import math

import pytest
import torch

from harness.errors import HarnessError
from harness.execution import worker
from harness.schema.optimizers import OPTIMIZERS, make_optimizer, set_rate
from harness.schema.schedules import SCHEDULES, learning_rate
from harness.schema.spec import Recipe
from methods.base import ParameterGroup
from tests import tiny
from tests.conftest import small_vit


@pytest.fixture
def halving(monkeypatch):
    """A schedule of the user's own."""

    def halving(step, recipe, steps_per_epoch):
        return recipe.lr * 0.5 ** (step // steps_per_epoch)

    monkeypatch.setitem(SCHEDULES, "halving", halving)


@pytest.fixture
def signs(monkeypatch):
    """An optimiser of the user's own."""
    monkeypatch.setitem(OPTIMIZERS, "signs", lambda groups, recipe: Signs(groups, {"lr": recipe.lr}))


class Signs(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * parameter.grad.sign())


def test_a_schedule_is_one_function_that_a_recipe_names(setup, halving):
    (spec,) = tiny.specs(["linear"], schedule="halving", lr=0.1)
    record = worker.execute_run(spec, setup)
    assert record.status == "complete", record.reason
    assert [epoch.lr for epoch in record.curve] == [0.1, 0.05, 0.025]
    assert record.spec.run_id != tiny.specs(["linear"], lr=0.1)[0].run_id


def test_an_optimiser_is_one_function_that_a_recipe_names(setup, signs):
    records = [worker.execute_run(*tiny.specs(["linear"], **recipe), setup) for recipe in ({}, {"optimizer": "signs"})]
    assert [record.status for record in records] == ["complete"] * 2
    assert records[0].weights != records[1].weights


def test_a_plan_refuses_unknown_names_and_says_which_there_are(halving):
    with pytest.raises(HarnessError, match=r"recipe schedule='halvin'.*halving"):
        tiny.specs(["linear"], schedule="halvin")
    with pytest.raises(HarnessError, match=r"recipe optimizer='adam'.*adamw"):
        tiny.specs(["linear"], optimizer="adam")


def test_learning_rate_warms_up_linearly_and_falls_as_a_cosine():
    rates = [learning_rate(step, Recipe(lr=2.0, epochs=6, warmup_epochs=2), 2) for step in range(12)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[8] == pytest.approx(1.0)  # half way down
    assert rates[11] == pytest.approx(1 + math.cos(math.pi * 7 / 8))
    assert learning_rate(0, Recipe(lr=1.0, epochs=5, warmup_epochs=0), 1) == 1.0


def test_learning_rate_runs_between_the_floors_that_the_recipe_gives():
    recipe = Recipe(lr=2.0, epochs=8, warmup_epochs=2, warmup_lr=1.0, min_lr=0.5)
    rates = [learning_rate(step, recipe, 2) for step in range(16)]
    assert rates[:5] == [1.25, 1.5, 1.75, 2.0, 2.0]
    assert rates[10] == pytest.approx(1.25)  # half way down
    assert 0.5 < rates[15] < 0.6


def test_vectors_are_decayed_on_demand():
    model = small_vit()
    model.requires_grad_(True)
    (group,) = make_optimizer(model, Recipe(weight_decay=0.3, decay_vectors=True)).param_groups
    assert group["weight_decay"] == 0.3
    assert len(group["params"]) == len(list(model.parameters()))


def test_vectors_are_not_decayed():
    model = small_vit()
    model.requires_grad_(True)
    for group in make_optimizer(model, Recipe(weight_decay=0.3)).param_groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] == 0.3) for p in group["params"])


def test_groups_of_a_method_have_a_rate_and_a_decay_of_their_own():
    model = small_vit()
    model.requires_grad_(True)
    fast, still = model.blocks[0].mlp.fc1, model.norm
    own = (
        ParameterGroup(parameters=(fast.weight, fast.bias), lr_factor=16),
        ParameterGroup(parameters=(still.weight,), weight_decay=0.5, lr_factor=0),
    )
    optimizer = make_optimizer(model, Recipe(weight_decay=0.3), own)
    set_rate(optimizer, 2e-3)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert found[id(fast.weight)] == (32e-3, 0.3) and found[id(fast.bias)] == (32e-3, 0.0)
    assert found[id(still.weight)] == (0.0, 0.5) and found[id(still.bias)] == (2e-3, 0.0)
    assert len(found) == len(list(model.parameters()))
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == set(before) - {"norm.weight"}
