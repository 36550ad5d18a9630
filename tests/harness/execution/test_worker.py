"""One process at work: runs are done once, failures are recorded, a stop leaves a state to go on from."""

import dataclasses
import errno
import os
import signal
import subprocess

import pytest
import torch

from harness import lease
from harness.errors import Interrupted
from harness.execution import worker
from harness.execution.worker import Busy, execute_run
from harness.records.store import Store
from harness.training import run, trainer
from harness.training.callbacks import Decoding, Progress
from suites import SUITES
from tests import layouts, tiny
from tests.examples import stored


def files(setup, spec):
    folder = Store(setup.root).folder(spec)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def stop_at(step):
    def report(progress):
        if isinstance(progress, Progress) and progress.step == step:
            worker.STOP.request("test")

    return report


def test_a_run_leaves_its_record_and_what_it_names(setup):
    (spec,) = tiny.specs()
    record = execute_run(spec, setup)
    assert record.status == "complete", record.reason
    assert tiny.lasting(Store(setup.root).read(spec)) == tiny.lasting(record)
    assert files(setup, spec) == ["predictions.safetensors", "record.json", "weights.safetensors"]


def test_a_complete_run_is_not_done_again(setup):
    (spec,) = tiny.specs(["linear"])
    first = execute_run(spec, setup)
    assert execute_run(spec, setup).environment == first.environment  # with the time in it


def test_two_do_not_do_one_run(setup):
    (spec,) = tiny.specs(["linear"])
    with lease.acquire(Store(setup.root).folder(spec)):
        answer = execute_run(spec, setup)
    assert isinstance(answer, Busy)
    assert f"process {os.getpid()}" in answer.holder
    assert execute_run(spec, setup).status == "complete"


def test_a_dead_process_of_another_machine_of_the_same_name_holds_its_lease(tmp_path, monkeypatch):
    gone = subprocess.Popen(["true"])
    gone.wait()
    holder = dataclasses.replace(lease.myself(), pid=gone.pid, born="1")
    assert lease.is_stale(lease.Held(holder, age=20.0))
    (tmp_path / "machine-id").write_text("another\n")
    monkeypatch.setattr(lease, "MACHINE_ID", tmp_path / "machine-id")
    assert not lease.is_stale(lease.Held(holder, age=20.0))
    assert lease.is_stale(lease.Held(holder, age=400.0))


@pytest.mark.parametrize("step", [2, 4, 8])  # in the first epoch, at the end of one, in the last
def test_a_stop_leaves_a_state_from_which_the_run_ends_as_if_undisturbed(setup, step):
    (spec,) = tiny.specs(["sct"], drop_path=0.2)
    undisturbed = execute_run(spec, dataclasses.replace(setup, root=setup.root / "undisturbed"))
    with pytest.raises(Interrupted, match="test"):
        execute_run(spec, setup, stop_at(step))
    assert files(setup, spec) == ["progress.json", f"state/{step:09d}.safetensors"]
    with pytest.raises(Interrupted):  # a process that is to stop begins nothing
        execute_run(spec, setup)
    worker.STOP.reason = ""
    record = execute_run(spec, setup)
    assert record.environment["resumed_at_steps"] == [step]
    assert tiny.lasting(record) == tiny.lasting(undisturbed)
    assert files(setup, spec) == ["predictions.safetensors", "record.json", "weights.safetensors"]


def test_a_missing_test_image_shows_before_the_training_and_costs_no_state(setup, tmp_path):
    (spec,) = tiny.specs(["linear"])
    setup = dataclasses.replace(setup, data=tiny.write_data(tmp_path / "data"))
    image = tmp_path / "data/first/images/test/000011.png"  # not in the sample
    content, steps = image.read_bytes(), []
    image.unlink()
    record = execute_run(spec, setup, steps.append)
    assert (record.failure.kind, [at for at in steps if not isinstance(at, Decoding)]) == ("data", [])
    assert "test/000011.png: listed, but there is no such file" in record.reason
    layouts.random_image(image)
    with pytest.raises(Interrupted, match="test"):
        execute_run(spec, setup, stop_at(4))
    worker.STOP.reason = ""
    image.write_bytes(content[:40])
    assert execute_run(spec, setup).failure.kind == "data"
    assert "state/000000004.safetensors" in files(setup, spec)


@pytest.mark.parametrize("change", ["a label", "an image", "the classes", "the code"])
def test_a_state_made_on_other_data_or_with_other_code_is_not_gone_on_from(setup, tmp_path, monkeypatch, capfd, change):
    (spec,) = tiny.specs(["linear"])
    setup = dataclasses.replace(setup, data=tiny.write_data(tmp_path / "data"))
    with pytest.raises(Interrupted, match="test"):
        execute_run(spec, setup, stop_at(4))
    worker.STOP.reason = ""
    folder = tmp_path / "data" / "first"
    if change == "a label":
        for name in ("train800.txt", "val200.txt", "train800val200.txt"):
            list_file = folder / name
            list_file.write_text(list_file.read_text().replace("000000.png 0", "000000.png 1"))
    if change == "an image":
        layouts.random_image(folder / "images" / "train" / "000000.png")
    if change == "the classes":
        more = dataclasses.replace(tiny.SUITE.tasks[0], num_classes=4)
        monkeypatch.setitem(SUITES, "tiny", dataclasses.replace(tiny.SUITE, tasks=(more,)))
    if change == "the code":
        monkeypatch.setattr(run.sources, "source_digest", lambda: "other")
    record = execute_run(spec, setup)
    assert record.environment["resumed_at_steps"] == []
    assert "not used, made with other " + ("code\n" if change == "the code" else "data\n") in capfd.readouterr().err
    assert tiny.lasting(record) == tiny.lasting(
        execute_run(spec, dataclasses.replace(setup, root=tmp_path / "undisturbed"))
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_request_a_stop(setup, number):
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    worker.stop_on_signals()
    try:
        with pytest.raises(Interrupted, match=number.name):
            execute_run(*tiny.specs(["linear"]), setup, lambda progress: os.kill(os.getpid(), number))
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


ERRORS = {
    "memory_shared": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "disk_full": OSError(errno.ENOSPC, "No space left on device"),
    "device": RuntimeError("CUDA error: an illegal memory access was encountered"),
    "unexpected": ZeroDivisionError("a defect"),
}


@pytest.mark.parametrize("kind", ["memory_shared", "disk_full", "device", "unexpected"])
def test_a_failure_is_recorded_with_its_class_and_the_next_try_succeeds(setup, monkeypatch, kind):
    (spec,) = tiny.specs(["linear"])

    def fail(*_):
        raise ERRORS[kind]

    with monkeypatch.context() as patch:
        patch.setattr(run.evaluation, "evaluate", fail)
        record = execute_run(spec, setup)
    assert record.status == "failed"
    assert record.failure.kind == kind
    assert str(ERRORS[kind]) in record.reason
    assert ("in fail" in record.failure.where) == (kind == "unexpected")
    assert Store(setup.root).read(spec).failure == record.failure
    assert execute_run(spec, setup).status == "complete"


def test_a_loss_that_is_not_finite_fails_at_the_right_step(setup, monkeypatch):
    (spec,) = tiny.specs(["linear"])
    original = trainer.Trainer._train_step

    def poisoned(self, images, targets):
        loss, hits = original(self, images, targets)
        return (loss * float("nan") if self.step == 6 else loss), hits

    monkeypatch.setattr(trainer.Trainer, "_train_step", poisoned)
    record = execute_run(spec, setup)
    assert (record.failure.kind, record.failure.step) == ("diverged", 6)
    assert "since step 6 (epoch 2)" in record.reason


@pytest.mark.parametrize(("lr", "message"), [(1e37, "the loss on held-out data"), (float("inf"), "a trained tensor")])
def test_divergence_in_the_last_update_is_no_result(setup, monkeypatch, lr, message):
    (spec,) = tiny.specs(["linear"], epochs=1, batch_size=100)
    monkeypatch.setattr(trainer, "learning_rate", lambda *_: lr)
    record = execute_run(spec, setup)
    assert (record.failure.kind, record.failure.step) == ("diverged", 1)
    assert record.reason == f"{message} is no longer finite since step 1 (epoch 1)"


def test_a_number_that_no_record_can_hold_fails_the_run_alone(setup, monkeypatch):
    (spec,) = tiny.specs(["linear"])
    monkeypatch.setattr(run, "of_inference", lambda *_: {"forward_flops": float("nan")})
    record = execute_run(spec, setup)
    assert (record.status, record.failure.kind) == ("failed", "unexpected")
    assert Store(setup.root).read(spec).status == "failed"


def test_a_bad_record_is_moved_away_before_the_run_is_done_again(setup):
    (spec,) = tiny.specs(["linear"])
    store, first = Store(setup.root), execute_run(spec, setup)
    path = store.folder(spec) / "record.json"
    torn = path.read_text()[:-50]
    path.write_text(torn)
    assert tiny.lasting(execute_run(spec, setup)) == tiny.lasting(first)
    reason, moved = sorted((setup.root / "corrupt").iterdir(), key=lambda p: p.suffix, reverse=True)
    assert moved.read_text() == torn
    assert "record.json: torn" in reason.read_text()
    assert stored(store.root)[1] == []


def test_a_record_of_a_newer_version_is_left_alone(setup, monkeypatch):
    (spec,) = tiny.specs(["linear"])
    with monkeypatch.context() as patch:
        patch.setattr("harness.schema.record.SCHEMA", 99)
        execute_run(spec, setup)
    path = Store(setup.root).folder(spec) / "record.json"
    newer = path.read_bytes()
    record = execute_run(spec, setup)
    assert record.status == "failed"
    assert "another version" in record.reason
    assert path.read_bytes() == newer
