"""Live curves: what trackers are told, that a resumed run goes on with them, and that none of them harms a run."""

import dataclasses
import importlib
import json
import multiprocessing
import struct
import sys
import threading
import time

import pytest
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from wandb.proto import wandb_internal_pb2

from harness.errors import HarnessError, Interrupted
from harness.execution import worker
from harness.execution.worker import execute_run
from harness.records import clean, status
from harness.records.store import Store
from harness.training import trackers
from harness.training.trackers import check_track
from tests import tiny

ALL = ("tensorboard", "wandb", "mlflow")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No server is named, nothing hangs from other tests, and a slow machine is waited for."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(trackers, "_at_work", {})
    monkeypatch.setattr(trackers, "WAIT_SECONDS", 120.0)


@pytest.fixture
def mlflow():
    """Imported by those who look at it: it takes seconds, and every process of the tests reads all files of tests."""
    return importlib.import_module("mlflow")


def tracked(setup, *names, **changes):
    return dataclasses.replace(setup, track=names, **changes)


def folder(setup, spec):
    return Store(setup.root).folder(spec) / "tracking"


def curves(place):
    """Scalars by tag, as TensorBoard shows them: step and value."""
    events = EventAccumulator(str(place))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def wandb_records(place):
    """What the files for `wandb sync` hold, oldest first: LevelDB logs of a few records in one block."""
    for path in sorted(place.glob("wandb/offline-run-*/*.wandb")):
        content, at = path.read_bytes(), 7
        assert content.startswith(b":W&B") and len(content) < 2**15
        while at < len(content):
            size, kind = struct.unpack_from("<HB", content, at + 4)
            assert kind == 1  # a whole record
            yield wandb_internal_pb2.Record.FromString(content[at + 7 : at + 7 + size])
            at += 7 + size


def wandb_history(place):
    for record in wandb_records(place):
        if record.WhichOneof("record_type") == "history":
            yield {
                item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
                for item in record.history.item
            }


def test_every_tracker_has_the_curves_the_settings_and_the_result_and_the_record_is_the_same(setup, mlflow):
    (spec,) = tiny.specs(["linear"], protocol="validation")
    plain = execute_run(spec, dataclasses.replace(setup, root=setup.root / "plain", curve=True))
    record = execute_run(spec, tracked(setup, *ALL, curve=True))
    assert tiny.lasting(record) == tiny.lasting(plain) and record.weights == plain.weights
    place, epochs = folder(setup, spec), [1, 2, 3]
    name = f"first linear seed0 {spec.run_id}"

    drawn = curves(place / "tensorboard/seed0")
    assert [step for step, _ in drawn["train/loss"]] == epochs
    assert [value for _, value in drawn["val/accuracy"]] == pytest.approx([e.scores["val"] for e in record.curve])
    for tag in ("train/accuracy", "train/lr", "train/images_per_second", "memory/resident"):
        assert len(drawn[tag]) == 3 and all(value >= 0 for _, value in drawn[tag])
    assert drawn["final/val/accuracy"] == [(3, pytest.approx(record.metrics["val"].accuracy))]
    (settings,) = place.glob("tensorboard/seed0/*/hparams.yml")
    assert "recipe.epochs: 3\n" in settings.read_text()

    history = list(wandb_history(place))
    assert [row["train/loss"] for row in history[:3]] == [e.train_loss for e in record.curve]
    assert history[-1]["final/val/accuracy"] == record.metrics["val"].accuracy
    (run,) = [r.run for r in wandb_records(place) if r.WhichOneof("record_type") == "run"][:1]
    assert (run.project, run.display_name, run.run_group) == ("sctbench", name, "tiny")

    client = mlflow.MlflowClient((setup.root / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("sctbench").experiment_id])
    assert (run.info.run_name, run.data.params["recipe.epochs"]) == (name, "3")
    assert [m.value for m in client.get_metric_history(run.info.run_id, "train/loss")] == [
        e.train_loss for e in record.curve
    ]
    assert not mlflow.is_tracking_uri_set()  # a notebook goes on with its own


@pytest.mark.parametrize("step", [4, 6])  # inside an epoch and at the end of one
def test_a_resumed_run_goes_on_in_the_same_place(setup, mlflow, step):
    (spec,) = tiny.specs(["linear"])

    def stop(progress):
        if getattr(progress, "step", None) == step:
            worker.STOP.request("test")

    with pytest.raises(Interrupted):
        execute_run(spec, tracked(setup, *ALL), stop)
    worker.STOP.reason = ""
    record = execute_run(spec, tracked(setup, *ALL))
    assert record.environment["resumed_at_steps"] == [step]
    losses = [e.train_loss for e in record.curve]
    place = folder(setup, spec)
    assert curves(place / "tensorboard/seed0")["train/loss"] == list(enumerate(map(pytest.approx, losses), 1))
    runs = EventMultiplexer().AddRunsFromDirectory(str(place / "tensorboard")).Reload().Runs()
    assert len(runs) == 2  # the curves, and the settings, which were told once
    assert [row["train/loss"] for row in wandb_history(place) if "train/loss" in row] == losses
    assert len({r.run.run_id for r in wandb_records(place) if r.WhichOneof("record_type") == "run"}) == 1
    client = mlflow.MlflowClient((setup.root / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("sctbench").experiment_id])
    assert [m.value for m in client.get_metric_history(run.info.run_id, "train/loss")] == losses


def test_epochs_that_a_killed_process_had_drawn_are_drawn_once_and_a_new_beginning_draws_anew(setup):
    (spec,) = tiny.specs(["linear"])

    def die(progress):
        if getattr(progress, "step", None) == 9:  # in the third epoch
            raise KeyboardInterrupt

    setup = tracked(setup, "tensorboard", save_every=0)
    with pytest.raises(KeyboardInterrupt):
        execute_run(spec, setup, die)
    run, place = Store(setup.root).folder(spec), folder(setup, spec) / "tensorboard/seed0"
    assert [step for step, _ in curves(place)["train/loss"]] == [1, 2]
    (run / "state/000000008.safetensors").unlink()  # what is left is of the second epoch
    time.sleep(1.1)  # event files are read in the order of their names, which hold the second of their beginning
    assert execute_run(spec, setup).environment["resumed_at_steps"] == [7]
    assert [step for step, _ in curves(place)["train/loss"]] == [1, 2, 3]
    (run / "record.json").unlink()
    execute_run(spec, setup)
    assert [step for step, _ in curves(place)["train/loss"]] == [1, 2, 3]
    assert len(list(place.glob("events.*"))) == 1


class Quiet(GeneralTracker):
    """A tracker that does nothing."""

    name, requires_logging_directory, tracker = "tensorboard", False, None

    def __init__(self, **settings):
        super().__init__()
        self.at(type(self).where == "__init__")

    where = ""

    def at(self, here):
        if here:
            raise OSError("the server\nis gone")

    def start(self):
        self.at(self.where == "start")

    def store_init_configuration(self, values):
        self.at(self.where == "store_init_configuration")

    def log(self, values, step=None, **further):
        self.at(self.where == "log")

    def finish(self):
        self.at(self.where == "finish")


CALLS = ("__init__", "start", "store_init_configuration", "log", "finish")


@pytest.mark.parametrize("where", CALLS)
def test_a_tracker_that_fails_costs_a_line(setup, where, monkeypatch, capfd):
    (spec,) = tiny.specs(["linear"])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", type("Failing", (Quiet,), {"where": where}))
    record = execute_run(spec, tracked(setup, "tensorboard"))
    assert record.status == "complete" and Store(setup.root).complete(spec)
    line = f"first linear seed0 {spec.run_id}: tensorboard draws no more of this run: OSError: the server is gone"
    assert capfd.readouterr().err.splitlines().count(line) == 1


@pytest.mark.parametrize("where", CALLS)
def test_a_tracker_that_hangs_is_left_behind_and_not_asked_again(setup, where, monkeypatch, capfd):
    first, second = tiny.specs(["linear"], seeds=2)
    free, hung = threading.Event(), []

    class Hanging(Quiet):
        def at(self, here):
            if here:
                hung.append(where)
                free.wait()

    Hanging.where = where
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Hanging)
    monkeypatch.setattr(trackers, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(trackers, "QUEUE_LENGTH", 2)
    try:
        records = [execute_run(spec, tracked(setup, "tensorboard")) for spec in (first, second)]
        assert [record.status for record in records] == ["complete"] * 2 and hung == [where]
        said = capfd.readouterr().err
        assert said.count("tensorboard did not end within 0.1 s, no further run is drawn there until it does") == 1
        assert ("tensorboard is too slow" in said) == (where != "finish")
    finally:
        free.set()


def test_a_process_with_a_tracker_that_hangs_ends(tmp_path, monkeypatch):
    class Hanging(Quiet):
        def start(self):
            threading.Event().wait()

    def work():  # as it ends, a process waits for all threads that are no daemons
        monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Hanging)
        drawn = trackers.Drawn(spec=tiny.specs()[0], root=tmp_path, folder=tmp_path, ids={}, epochs=0)
        line = trackers._Line("tensorboard", drawn)
        line.close(0.0)
        assert line._thread.is_alive()

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_what_cannot_be_tracked_is_refused(monkeypatch):
    assert check_track(None) == () and check_track("wandb, mlflow,wandb") == check_track(["wandb", "mlflow"])
    with pytest.raises(HarnessError, match=r"^--track tensorbord: no such tracker. Did you mean 'tensorboard'\?"):
        check_track("wandb,tensorbord")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(HarnessError, match=r"^--track wandb: wandb is not installed: pip install 'sctbench\[track\]'"):
        check_track("wandb")


def test_processes_that_begin_at_once_share_a_project(setup, mlflow, monkeypatch):
    specs = tiny.specs(["linear"], seeds=2)
    fork = multiprocessing.get_context("fork")  # what takes long is imported here already
    trackers.import_packages(["mlflow"])
    processes = [fork.Process(target=execute_run, args=(spec, tracked(setup, "mlflow"))) for spec in specs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # as they have, to read what they drew
    client = mlflow.MlflowClient((setup.root / "mlruns").as_uri())
    assert [e.name for e in client.search_experiments() if e.name != "Default"] == ["sctbench"]
    runs = client.search_runs([client.get_experiment_by_name("sctbench").experiment_id])
    assert {run.info.run_name.split()[-1] for run in runs} == {spec.run_id for spec in specs}


def test_status_and_clean_leave_curves_alone(setup, monkeypatch):
    (spec,) = tiny.specs(["linear"])
    setup = tracked(setup, "tensorboard")
    with monkeypatch.context() as patch:
        patch.setattr("harness.training.run.evaluation.evaluate", lambda *_: 1 / 0)
        assert execute_run(spec, setup).status == "failed"
    assert [run.state for run in status.of_folder(setup.root)] == ["failed"]
    assert clean.litter(setup.root) == []
    assert "curves of a failed run" in [item.what for item in clean.remove(clean.litter(setup.root, failed=True))]
    assert not folder(setup, spec).exists()
    execute_run(spec, setup)
    assert [run.state for run in status.of_folder(setup.root)] == ["complete"]
    assert clean.litter(setup.root, failed=True) == [] and folder(setup, spec).is_dir()
