"""The protocol `tuned` as it is executed: real processes, stopped and started again."""

import dataclasses
import os
import signal

import pytest

from harness.errors import DataError, HarnessError
from harness.execution import local
from harness.execution.backlog import Backlog
from harness.execution.worker import execute_run
from harness.plans import plan, stages, tuning
from harness.records.store import Store
from harness.schema.failures import Failure
from harness.schema.record import Fingerprint, RunRecord, Trial, Tuning
from harness.schema.spec import RunSpec
from harness.training import run
from suites import SUITES
from tests import tiny


def selection(**changes):
    return tiny.selection(**({"methods": ["linear", "lora"], "protocol": "tuned", "trials": 3, "seeds": 2} | changes))


def execute(chosen, setup, listen=lambda spec, message: None):
    found = stages.stage(chosen, Store(setup.root).read)
    return local.execute(found.ready, [setup], listen, found.blocked)


def finals(chosen, setup):
    store = Store(setup.root)
    return [store.read(final.spec(store.read)) for final in plan.finals(chosen)]


def test_trials_choose_and_finals_follow_in_one_go(setup):
    order = []

    def listen(spec, message):
        if isinstance(message, RunRecord):
            order.append((spec.method, spec.protocol))

    outcome = execute(selection(), setup, listen)
    assert (outcome.interrupted, outcome.not_started) == (False, 0)
    assert len(order) == 2 * (3 + 2)
    records, store = finals(selection(), setup), Store(setup.root)
    for record in records:
        assert (record.status, record.test_looks, record.spec.trials) == ("complete", 1, 3)
        trials = [store.read(spec) for spec in plan.expand(selection()) if spec.method == record.spec.method]
        assert [trial.run_id for trial in record.tuning.trials] == [trial.spec.run_id for trial in trials]
        best = max(trial.metrics["val"].accuracy for trial in trials)
        assert record.tuning.trials[record.tuning.chosen].score == best
        assert all((trial.test_looks, set(trial.metrics)) == (0, {"val"}) for trial in trials)
        spent = [trial.cost.seconds for trial in trials]
        assert record.tuning.seconds == pytest.approx(sum(spent))
    assert stages.stage(selection(), store.read).ready == []


def test_trials_judged_by_another_metric_than_the_task_has_now_are_refused(setup, monkeypatch):
    chosen = selection(methods=["linear"], trials=1, seeds=1)
    for trial in plan.expand(chosen):
        execute_run(trial, setup)
    task = dataclasses.replace(tiny.SUITE.task("first"), metric="macro_f1")
    monkeypatch.setitem(SUITES, "tiny", dataclasses.replace(tiny.SUITE, tasks=(task,)))
    record = execute_run(*plan.finals(chosen), setup)
    assert "the trials were judged by accuracy, and the metric of task 'first' is now macro_f1" in record.reason


def test_stopped_half_way_and_started_again_repeats_no_finished_trial(setup):
    done = []

    def stop(spec, message):
        if isinstance(message, RunRecord) and message.status == "complete":
            done.append(spec.run_id)
            if len(done) == 4:
                os.kill(os.getpid(), signal.SIGINT)

    assert execute(selection(), setup, stop).interrupted
    store = Store(setup.root)
    before = {spec.run_id: store.read(spec) for spec in plan.expand(selection())}
    finished = {run_id for run_id, record in before.items() if record}
    assert 4 <= len(finished) < 6
    execute(selection(), setup, stop)
    for spec in plan.expand(selection()):
        if spec.run_id in finished:
            assert store.read(spec).environment == before[spec.run_id].environment  # with the time in it
    assert all(record.status == "complete" for record in finals(selection(), setup))
    assert len(done) == len(set(done)) == 10


def test_a_trial_whose_process_is_killed_gives_no_verdict_and_holds_up_its_finals_alone(setup):
    chosen = selection(methods=["linear", "lora"], seeds=1)
    victim = plan.expand(chosen)[0]
    Store(setup.root).write(killed(victim))
    found = stages.stage(chosen, Store(setup.root).read)
    assert victim in found.ready
    rest = Backlog(found.ready, found.blocked, Store(setup.root))
    for spec in found.ready:
        if spec.method == victim.method:
            rest.settle(spec)
    assert (rest.outcome.not_started, len(rest) - rest.ready) == (1, 1)


def killed(spec):
    return RunRecord(
        spec=spec, method_title="L", status="failed", reason="killed", failure=Failure(kind="killed"), environment={}
    )


def test_a_diverged_trial_is_a_verdict_and_not_done_again(setup):
    chosen = selection(methods=[("lora", {"weight_decay": 1e-4})], seeds=1)
    store, trials = Store(setup.root), plan.expand(chosen)
    for trial in trials:
        store.write(dataclasses.replace(killed(trial), reason="NaN", failure=Failure(kind="diverged", step=3)))
    found = stages.stage(chosen, store.read)
    assert found.ready == plan.finals(chosen)
    assert [spec.run_id for spec in found.settled] == [trial.run_id for trial in trials]
    final = execute_run(*found.ready, setup)
    assert (final.status, final.failure.kind) == ("failed", "config")
    assert final.reason == "all 3 trials failed, the first: NaN"
    assert (final.tuning.chosen, [trial.score for trial in final.tuning.trials]) == (None, [None] * 3)


def test_a_final_is_refused_while_a_trial_is_missing(setup):
    (final, *_) = plan.finals(selection())
    with pytest.raises(HarnessError, match="linear on first: 3 of 3 trials are not done"):
        execute_run(final, setup)


def test_a_tuned_run_needs_its_trials(setup):
    for trial in plan.expand(selection(methods=["linear"])):
        execute_run(trial, setup)
    (final, *_) = plan.finals(selection(methods=["linear"]))
    spec = final.spec(Store(setup.root).read)
    assert isinstance(spec, RunSpec)
    record = execute_run(spec, setup)
    assert (record.status, record.reason) == (
        "failed",
        "a run of the protocol 'tuned' needs the trials that chose its settings",
    )
    assert execute_run(final, setup).status == "complete"


@pytest.mark.parametrize("before", [1, 3])  # trials that were done before the lists changed
def test_trials_on_other_data_decide_nothing(setup, tmp_path, before):
    setup = dataclasses.replace(setup, data=tiny.write_data(tmp_path / "data"))
    chosen = selection(methods=["linear"], seeds=1)
    trials = plan.expand(chosen)
    for trial in trials[:before]:
        execute_run(trial, setup)
    test = tmp_path / "data/first/test.txt"
    test.write_text(test.read_text().replace("0.png 0", "0.png 1"))
    for trial in trials[before:]:
        execute_run(trial, setup)
    record = execute_run(*plan.finals(chosen), setup)
    assert (record.status, record.failure.kind, record.test_looks) == ("failed", "data", 0)
    assert record.reason.startswith(f"{before} of 3 trials were tried on other lists or images")
    assert ", ".join(trial.run_id for trial in trials[:before]) in record.reason


def test_jobs_are_picklable(setup):
    import pickle

    for final in plan.finals(selection()):
        assert pickle.loads(pickle.dumps(final)).cell == final.cell
        assert tuning.resolve(final.trials[0], Store(setup.root).read) == (final.trials[0], None)


def test_trials_on_other_pixels_are_refused_and_those_that_know_none_are_not():
    now = Fingerprint(lists="l", files="f", sizes={}, pixels="p")

    def tried(data):
        trial = Trial(run_id="a1", setting={}, score=50.0, seconds=1.0, data=data)
        return Tuning(budget=1, space={}, trials=[trial], chosen=0, seconds=1.0)

    for known in ("", "l/f", "l/f/p"):
        run._check_trials(tried(known), now)
    with pytest.raises(DataError, match="1 of 1 trials were tried on other lists or images"):
        run._check_trials(tried("l/f/q"), now)
