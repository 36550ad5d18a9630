"""Tuning: what is drawn, who wins, and which runs may start when."""

import dataclasses

import pytest

from harness.errors import USER_ERRORS
from harness.plans import plan, stages, tuning
from harness.plans.experiment import select
from harness.schema.record import RunRecord
from harness.schema.spec import RunSpec
from methods.registry import all_methods
from suites import SUITES
from suites.base import Suite, Task
from tests.examples import make_metrics, make_record

SPACE = {"lr": (1e-3, 1e-2), "rank": (2, 4, 8)}
DEFAULT = {"lr": 1e-3, "rank": 4}
TUNED = {"suite": "demo", "tasks": ["digits"], "methods": ["lora"], "protocol": "tuned"}


class Records:
    """A store in memory."""

    def __init__(self):
        self.all: dict[str, RunRecord] = {}

    def read(self, spec: RunSpec):
        return self.all.get(spec.run_id)

    def finish(self, spec, accuracy=50.0, status="complete", **changes):
        record = make_record(accuracy, spec=spec, **changes)
        metrics = {"val" if spec.protocol == "validation" else "test": record.metrics["test"]}
        complete = dataclasses.replace(record, metrics=metrics)
        failed = RunRecord(spec=spec, method_title="LoRA", status="failed", reason="diverged")
        self.all[spec.run_id] = complete if status == "complete" else failed


@pytest.fixture
def records():
    return Records()


def selected(**changes):
    return select(TUNED | changes)


def test_the_default_is_tried_first_and_nothing_twice():
    drawn = tuning.draw("lora", SPACE, DEFAULT, 4)
    assert drawn[0] == DEFAULT
    assert len({tuple(setting.values()) for setting in drawn}) == 4
    assert all(value in SPACE[key] for setting in drawn for key, value in setting.items())


def test_a_draw_depends_on_method_and_space_alone_and_a_larger_budget_goes_on():
    drawn = tuning.draw("lora", SPACE, DEFAULT, 4)
    assert drawn == tuning.draw("lora", dict(SPACE), dict(DEFAULT), 4)
    assert drawn == tuning.draw("lora", SPACE, DEFAULT, 6)[:4]
    assert drawn != tuning.draw("sct", SPACE, DEFAULT, 4)


def test_a_small_grid_is_tried_whole():
    assert len(tuning.draw("lora", SPACE, DEFAULT, 100)) == 6
    off_the_grid = {"lr": 5e-3, "rank": 4}
    assert len(tuning.draw("lora", SPACE, off_the_grid, 100)) == 7  # a default off the grid comes on top
    assert tuning.draw("lora", {}, {}, 8) == [{}]


@pytest.mark.parametrize("method", all_methods().values(), ids=lambda m: m.name)
def test_every_method_has_enough_to_try_and_its_default_is_on_the_grid(method):
    (final,) = plan.finals(selected(methods=[method.name]))
    assert len({spec.run_id for spec in final.trials}) == len(final.trials) == tuning.BUDGET
    default = tuning.setting(final.trials[0], tuple(final.space))
    assert all(default[key] in values for key, values in final.space.items())


def test_trials_are_validation_runs_and_what_the_user_fixed_is_not_searched():
    (final,) = plan.finals(selected(methods=["sct:channels=24:lr=4e-3"], recipe={"epochs": 2}))
    assert set(final.space) == {"weight_decay"}
    assert {(s.protocol, s.seed, s.recipe.epochs, s.recipe.lr) for s in final.trials} == {("validation", 0, 2, 4e-3)}
    assert {s.config["channels"] for s in final.trials} == {24}
    assert {s.recipe.weight_decay for s in final.trials} == {1e-4, 1e-2}  # fewer than the budget: all there are


def test_trials_are_those_of_the_validation_protocol():
    default = plan.expand(selected(protocol="validation"))
    assert plan.finals(selected())[0].trials[0] == default[0]


def test_the_best_on_val_wins_then_the_smallest_rate_then_the_first_drawn(records):
    (final,) = plan.finals(selected())
    assert final.spec(records.read) is None
    for spec in final.trials:
        records.finish(spec, 60.0 if spec.recipe.lr in (1e-3, 1e-2) else 50.0)
    found = final.spec(records.read)
    best = next(spec for spec in final.trials if spec.recipe.lr == 1e-3)
    assert (found.recipe, found.config) == (best.recipe, best.config)
    assert (found.protocol, found.seed, found.trials, found.searched) == ("tuned", 0, 8, ("lr", "weight_decay"))
    records.finish(final.trials[5], 60.5)
    assert final.spec(records.read).recipe == final.trials[5].recipe


def test_the_record_gets_what_was_tried(records):
    (final,) = plan.finals(selected(trials=3))
    for number, spec in enumerate(final.trials):
        records.finish(spec, 50.0 + number, status="failed" if number == 2 else "complete")
    found = final.tuning(records.read)
    assert (found.budget, found.chosen, found.seconds) == (3, 1, 8.0)
    assert [trial.score for trial in found.trials] == [50.0, 51.0, None]
    assert found.trials[2].reason == "diverged"
    assert [trial.run_id for trial in found.trials] == [spec.run_id for spec in final.trials]
    record = make_record(spec=final.spec(records.read), tuning=found)
    again = RunRecord.from_json(record.to_json())
    assert again.tuning == found
    assert (again.spec.run_id, again.spec.searched) == (record.spec.run_id, ("lr", "weight_decay"))


def test_the_primary_metric_ranks_in_its_direction(records):
    (final,) = plan.finals(selected(trials=3))
    for spec, accuracy, loss in zip(final.trials, (70.0, 60.0, 50.0), (1.5, 0.5, 1.0), strict=True):
        scored = make_metrics(accuracy)
        metrics = {"test": dataclasses.replace(scored, values=scored.values | {"loss": loss})}
        records.finish(spec, primary_metric="loss", metrics=metrics)
    found = final.tuning(records.read)
    assert (found.metric, found.chosen, [trial.score for trial in found.trials]) == ("loss", 1, [1.5, 0.5, 1.0])


def test_a_trial_without_a_value_of_the_metric_is_none_and_says_so(records):
    (final,) = plan.finals(selected(trials=2))
    for spec in final.trials:
        records.finish(spec, primary_metric="auroc")
    found = final.tuning(records.read)
    assert (found.chosen, {trial.reason for trial in found.trials}) == (None, {"no AUROC on val"})


def test_where_all_trials_failed_nothing_is_chosen(records):
    (final,) = plan.finals(selected())
    for spec in final.trials:
        records.finish(spec, status="failed")
    assert final.tuning(records.read).chosen is None
    assert final.spec(records.read).recipe == final.trials[0].recipe


def test_another_budget_is_another_run(records):
    specs = []
    for trials in (1, 2):
        (final,) = plan.finals(selected(trials=trials))
        for spec in final.trials:
            records.finish(spec)
        specs.append(final.spec(records.read))
    assert specs[0].run_id != specs[1].run_id


def test_finals_wait_for_their_own_trials_and_finished_trials_are_not_repeated(records):
    selection = selected(methods=["lora", "linear"], seeds=2)
    first = stages.stage(selection, records.read)
    assert (len(first.ready), len(first.blocked), first.settled, first.total) == (16, 4, [], 20)
    lora = [spec for spec in first.ready if spec.method == "lora"]
    for spec in lora:
        records.finish(spec)
    then = stages.stage(selection, records.read)
    assert [job.method for job in then.ready if isinstance(job, RunSpec)] == ["linear"] * 8
    assert [job.seed for job in then.ready if isinstance(job, tuning.TunedRun)] == [0, 1]
    assert {spec.run_id for spec in then.settled} == {spec.run_id for spec in lora}
    assert (len(then.blocked), then.total) == (2, 20)


def test_a_failed_trial_is_tried_again_until_a_final_has_counted_it(records):
    selection = selected(trials=2, seeds=2)
    finals = plan.finals(selection)
    records.finish(finals[0].trials[0])
    records.finish(finals[0].trials[1], status="failed")
    again = stages.stage(selection, records.read)
    assert (again.ready, again.blocked) == ([finals[0].trials[1]], finals)
    records.finish(finals[0].spec(records.read))
    decided = stages.stage(selection, records.read)
    assert decided.ready == [finals[1]]
    assert len(decided.settled) == 3


def test_other_protocols_have_one_stage(records):
    selection = selected(protocol="fixed", seeds=2)
    specs = plan.expand(selection)
    records.finish(specs[0])
    records.finish(specs[1], status="failed")
    found = stages.stage(selection, records.read)
    assert (found.ready, found.blocked, found.settled) == ([specs[1]], [], [specs[0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "trials=0 must be at least 1"),
        ({"trials": 4, "protocol": "fixed"}, "for protocol 'tuned' alone"),
        ({"methods": ["lora", "lora"]}, "same run twice"),
    ],
)
def test_mistakes_are_answered(changes, message):
    with pytest.raises(USER_ERRORS, match=message):
        plan.expand(selected(**changes))


def test_a_task_without_a_val_split_cannot_be_tuned(monkeypatch):
    task = Task(name="toy", group="toys", num_classes=3, lists={"train": "train.txt", "test": "test.txt"})
    monkeypatch.setitem(SUITES, "toys", Suite(name="toys", title="Toys", about="", tasks=(task,)))
    with pytest.raises(USER_ERRORS, match="'toy' of suite 'toys' has no val split"):
        plan.expand(selected(suite="toys", tasks=[]))
