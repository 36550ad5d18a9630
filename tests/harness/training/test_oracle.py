"""The protocol that looks at test after every epoch, and learning curves on val: looking changes nothing of a run."""

import dataclasses

import pytest
import torch

from harness.errors import HarnessError, Interrupted
from harness.execution import worker
from harness.plans import plan
from harness.records.store import Store
from harness.schema.metrics import METRICS
from harness.training import evaluation
from harness.training.run import RunContext, run
from suites import SUITES
from tests import tiny

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("setup")


def done(data, method="sct", curve=False, **choices):
    (spec,) = tiny.specs([method], **choices)
    return run(RunContext(spec=spec, device=CPU, roots=data, curve=curve)).record


@pytest.mark.parametrize("method", ["sct", "lora", "vpt_deep", "linear", "adalora"])
def test_looking_after_every_epoch_leaves_the_training_as_it_was(data, method):
    fixed = done(data, method, drop_path=0.2)
    oracle = done(data, method, protocol="oracle", drop_path=0.2)
    assert oracle.weights == fixed.weights != ""
    assert oracle.last_epoch == fixed.metrics
    assert [(e.train_loss, e.lr) for e in oracle.curve] == [(e.train_loss, e.lr) for e in fixed.curve]
    assert (fixed.last_epoch, [e.scores for e in fixed.curve]) == ({}, [{}] * 3)


def test_the_best_epoch_is_reported_and_every_look_counted(data):
    oracle = done(data, protocol="oracle", lr=0.1)
    scores = [epoch.scores["test"] for epoch in oracle.curve]
    assert oracle.test_looks == len(scores) == 3
    assert oracle.metrics["test"].accuracy == max(scores)
    assert oracle.last_epoch["test"].accuracy == scores[-1]


def test_the_best_epoch_is_that_of_the_primary_metric_in_its_direction(data, monkeypatch):
    task = dataclasses.replace(tiny.SUITE.task("first"), metric="loss")
    suite = dataclasses.replace(tiny.SUITE, tasks=(task,))
    monkeypatch.setitem(SUITES, "tiny", suite)
    (spec,) = plan.expand(dataclasses.replace(tiny.selection(["sct"], protocol="oracle", lr=0.1), suite=suite))
    seen = []
    real = evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", lambda *args: seen.append(real(*args)) or seen[-1])
    oracle = run(RunContext(spec=spec, device=CPU, roots=data)).record
    losses = [outcome.metrics["test"].loss for outcome in seen]
    assert (len(losses), oracle.primary_metric) == (3, "loss")
    assert oracle.metrics["test"].loss == min(losses) != max(losses)
    assert oracle.last_epoch["test"].loss == losses[-1]


def test_a_metric_that_the_test_split_leaves_undefined_chooses_no_epoch(data, monkeypatch):
    monkeypatch.setitem(METRICS, "loss", dataclasses.replace(METRICS["loss"], compute=lambda outputs: None))
    (spec,) = tiny.specs(["linear"], protocol="oracle")
    with pytest.raises(HarnessError, match="cross-entropy cannot choose an epoch: it is not defined on test"):
        run(RunContext(spec=dataclasses.replace(spec, chosen_by="loss"), device=CPU, roots=data))


def test_a_stopped_oracle_run_ends_as_an_undisturbed_one(data, setup):
    (spec,) = tiny.specs(["lora"], protocol="oracle", lr=0.1)
    undisturbed = run(RunContext(spec=spec, device=CPU, roots=data)).record

    def stop(progress):
        if progress.epoch == 2:
            worker.STOP.request("test")

    with pytest.raises(Interrupted):
        worker.execute_run(spec, setup, stop)
    worker.STOP.reason = ""
    assert tiny.lasting(worker.execute_run(spec, setup)) == tiny.lasting(undisturbed)
    assert Store(setup.root).read(spec).test_looks == 3


def test_a_curve_on_val_is_there_on_demand_and_changes_nothing(data):
    plain, curved = done(data, protocol="validation"), done(data, curve=True, protocol="validation")
    assert [list(epoch.scores) for epoch in curved.curve] == [["val"]] * 3
    assert curved.curve[-1].scores["val"] == curved.metrics["val"].accuracy
    assert (curved.weights, curved.metrics, curved.test_looks) == (plain.weights, plain.metrics, 0)
    assert [epoch.scores for epoch in plain.curve] == [{}] * 3


def test_there_is_no_curve_on_what_is_trained_on(data):
    assert [epoch.scores for epoch in done(data, curve=True).curve] == [{}] * 3
