"""Runs in the process that asks: the same records as a worker's, and the process is left as it was."""

import dataclasses
import os
import signal
import threading

import pytest
import torch

from harness import lease
from harness.execution import backlog, in_process, local, worker
from harness.execution.worker import Busy
from harness.plans import plan
from harness.plans.stages import stage
from harness.records.store import Store
from harness.schema.record import RunRecord
from harness.training import callbacks, checkpointing
from harness.training.trainer import Progress
from tests import tiny
from tests.examples import stored


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def setup(tmp_path, data, monkeypatch):
    monkeypatch.setenv("SCTBENCH_CACHE", str(data.data / "cache"))
    monkeypatch.setattr(worker, "STOP", checkpointing.StopRequest())
    monkeypatch.setattr(callbacks, "REPORT_EVERY_SECONDS", 0.0)
    return tiny.setup(tmp_path / "out", data)


class Heard(list):
    """A listener that keeps all messages."""

    def __call__(self, spec, message):
        self.append(message)

    def records(self):
        return [tiny.lasting(message) for message in self if isinstance(message, RunRecord)]


def test_the_same_records_as_of_a_worker_and_the_process_is_as_it_was(setup, tmp_path):
    torch.manual_seed(5)
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("high")
    before = torch.get_rng_state(), signal.getsignal(signal.SIGINT)
    here, there = Heard(), Heard()
    try:
        outcome = in_process.execute(tiny.specs(["sct", "linear"]), setup, here)
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (2, "high")
    finally:
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(torch.get_rng_state(), before[0]) and signal.getsignal(signal.SIGINT) is before[1]
    assert any(isinstance(message, Progress) for message in here) and not outcome.not_started
    drawn = dataclasses.replace(setup, root=tmp_path / "other", track=("tensorboard",))
    local.execute(tiny.specs(["sct", "linear"]), [drawn], there)
    assert here.records() == there.records() and len(here.records()) == 2
    assert len(list(drawn.root.glob("runs/tiny/first/*/tracking/tensorboard/seed0/events.*"))) == 2


def test_finals_follow_their_trials(setup):
    tuned = tiny.selection(protocol="tuned", trials=2, seeds=2)
    stages = stage(tuned, Store(setup.root).read)
    heard = Heard()
    in_process.execute(stages.ready, setup, heard, stages.blocked)
    assert [record["spec"]["protocol"] for record in heard.records()] == ["validation"] * 2 + ["tuned"] * 2
    assert all(record["status"] == "complete" for record in heard.records())


def test_an_interrupt_saves_the_state_and_the_next_call_goes_on_from_it(setup, capfd):
    specs = tiny.specs(["linear", "lora"])

    def interrupt(spec, message):
        if isinstance(message, Progress) and message.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    outcome = in_process.execute(specs, setup, interrupt)
    assert outcome.interrupted and "interrupt once more" in capfd.readouterr().err
    assert stored(setup.root) == ([], [])
    heard = Heard()
    assert not in_process.execute(specs, setup, heard).interrupted
    assert [record.environment["resumed_at_steps"] for record in stored(setup.root)[0]] == [[4], []]


def test_a_second_interrupt_stops_at_once(setup):
    def interrupt(spec, message):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        in_process.execute(tiny.specs(["linear"]), setup, interrupt)
    assert not worker.STOP.reason


def test_in_another_thread_too(setup):
    heard = Heard()
    thread = threading.Thread(target=in_process.execute, args=(tiny.specs(["linear"]), setup, heard))
    thread.start()
    thread.join()
    assert [record["status"] for record in heard.records()] == ["complete"]


def test_a_run_that_another_process_holds_is_waited_for(setup, monkeypatch):
    monkeypatch.setattr(in_process, "RETRY_SECONDS", 0.01)
    first, second = tiny.specs(["linear", "lora"])
    held, heard = lease.acquire(Store(setup.root).folder(first)).__enter__(), Heard()

    def listen(spec, message):
        heard(spec, message)
        if isinstance(message, Busy) and len([one for one in heard if isinstance(one, Busy)]) == 3:
            held.__exit__()

    in_process.execute([first, second], setup, listen)
    assert [record["spec"]["method"] for record in heard.records()] == ["lora", "linear"]


def test_what_would_end_all_ends_all(setup, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.training.run.evaluation.evaluate", full)
    outcome = in_process.execute(tiny.specs(["linear", "lora"]), setup, Heard())
    assert (outcome.ended_by.name, outcome.not_started) == ("disk_full", 1)


class TestBacklog:
    """Which run is next."""

    def test_a_process_stays_with_its_data_and_takes_what_nobody_works_on(self, tmp_path):
        specs = plan.expand(tiny.selection(["linear", "lora"], tasks=tiny.TASKS))
        rest = backlog.Backlog(specs, [], Store(tmp_path))
        first = rest.take()
        assert rest.take(None, {backlog.shared(first)}).task != first.task
        assert rest.take(backlog.shared(first)).task == first.task
        rest.put_back(first)
        assert (rest.ready, len(rest), rest.take().task, rest.take(), rest.take()) == (1, 2, "second", first, None)

    def test_an_interrupt_counts_what_was_not_started(self, tmp_path):
        rest = backlog.Backlog(tiny.specs(["linear", "lora"]), [], Store(tmp_path))
        rest.take()
        rest.interrupt()
        assert (rest.outcome.interrupted, rest.outcome.not_started, rest.can_go_on) == (True, 1, False)
