"""`status` and `clean`: what is said of a folder is what lies in it, and nothing that counts is deleted."""

import json
import os

import pytest
from typer.testing import CliRunner

from harness import lease
from harness.commands import status as cli_status
from harness.commands.main import app
from harness.records import clean, index, status
from harness.records.store import Store
from harness.schema.failures import Failure
from harness.schema.record import RunRecord, StoredFile
from tests.examples import make_record, make_spec

COMPLETE = make_spec(seed=0)
FAILED = make_spec(seed=1, method="lora")
RUNNING = make_spec(seed=2, task="animals")
STOPPED = make_spec(seed=3, task="animals")
BAD = make_spec(seed=4)
MISSING = make_spec(seed=5)
DEAD = make_spec(seed=6)
ALL = [COMPLETE, FAILED, RUNNING, STOPPED, BAD, MISSING, DEAD]


def dead_lease(folder):
    """As a killed process leaves it: nobody has that process id."""
    with lease.acquire(folder) as held:
        content = json.loads(held.path.read_text())
    folder.joinpath("lease.json").write_text(json.dumps(content | {"pid": 2**22 - 1}))


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    store.write(make_record(spec=COMPLETE))
    failure = Failure(kind="diverged", step=7)
    store.write(RunRecord(spec=FAILED, method_title="LoRA", status="failed", reason="no number", failure=failure))
    (store.folder(STOPPED) / "state").mkdir(parents=True)
    (store.folder(STOPPED) / "state" / "000000001.safetensors").write_bytes(b"x")
    bad = store.write(make_record(spec=BAD))
    bad.write_text(bad.read_text()[:200])
    dead_lease(store.folder(DEAD))
    with lease.acquire(store.folder(RUNNING)):
        progress = {
            "epoch": 2,
            "epochs": 9,
            "step": 8,
            "steps": 36,
            "loss": 1.5,
            "accuracy": 50,
            "images_per_second": 9,
        }
        (store.folder(RUNNING) / "progress.json").write_text(json.dumps(progress))
        yield store


def test_every_state_is_recognised(store):
    found = status.of_specs(store.root, ALL)
    assert [run.state for run in found] == ["complete", "failed", "running", "stopped", "bad", "missing", "stopped"]
    assert (found[1].kind, found[1].reason) == ("diverged", "no number")
    assert f"process {os.getpid()} on" in found[2].holder
    assert found[2].progress["epoch"] == 2
    assert "torn" in found[4].reason
    assert [run.seed for run in found] == [0, 1, 2, 3, 4, 5, 6]
    assert {run.run_id for run in found} == {spec.run_id for spec in ALL}


def test_without_a_selection_all_that_the_folder_holds_is_shown(store):
    states = {run.run_id: run.state for run in status.of_folder(store.root)}
    assert states == {run.run_id: run.state for run in status.of_specs(store.root, ALL) if run.state != "missing"}


def test_a_progress_of_another_version_is_passed_over(store):
    for text in ("{}", "[]", '{"epoch": "two"}', "torn"):
        (store.folder(RUNNING) / "progress.json").write_text(text)
        (run,) = status.of_specs(store.root, [RUNNING])
        assert (run.state, run.progress) == ("running", None)


def test_rows_add_up(store):
    rows = status.counts(status.of_specs(store.root, ALL), ("task", "method"))
    assert sum(row["runs"] for row in rows) == len(ALL)
    assert all(row["runs"] == sum(row[state] for state in status.STATES) for row in rows)
    assert status.failures(status.of_specs(store.root, ALL))[0]["runs"] == 1


def test_a_record_is_read_once_and_again_when_it_changed(store, monkeypatch):
    reads = []
    original = index.read_record
    monkeypatch.setattr(index, "read_record", lambda path: reads.append(path) or original(path))
    for _ in range(2):
        status.of_folder(store.root)
    assert len(reads) == 3
    store.write(make_record(spec=FAILED))
    assert {run.state for run in status.of_folder(store.root) if run.run_id == FAILED.run_id} == {"complete"}
    assert len(reads) == 4


@pytest.mark.parametrize("damage", [b"", b"{}\n{}", b"\x00\xff"])
def test_a_damaged_index_is_made_again(store, damage):
    expected = status.of_folder(store.root)
    (store.root / index.INDEX_NAME).write_bytes(damage)
    assert status.of_folder(store.root) == expected


def test_clean_deletes_what_nobody_needs_and_nothing_else(store):
    (store.folder(COMPLETE) / "state").mkdir()
    (store.folder(COMPLETE) / ".record.json.77.tmp").write_bytes(b"half")
    files = {"predictions.safetensors": b"kept"}
    named = make_record(spec=make_spec(seed=9), files={name: StoredFile.of(files[name]) for name in files})
    store.write(named, files)
    (store.folder(named.spec) / "weights.safetensors").write_bytes(b"of a process that was killed")
    before = {path for path in store.root.rglob("*") if path.is_file()}
    found = clean.litter(store.root)
    assert {path for path in store.root.rglob("*") if path.is_file()} - {store.root / index.INDEX_NAME} == before
    assert sorted(item.what for item in found) == [
        "file of no record",
        "stale lease",
        "temporary file",
        "training state of a complete run",
    ]
    assert clean.remove(found) == found
    gone = before - {path for path in store.root.rglob("*") if path.is_file()}
    assert gone == {
        store.folder(DEAD) / "lease.json",
        store.folder(COMPLETE) / ".record.json.77.tmp",
        store.folder(named.spec) / "weights.safetensors",
    }
    assert store.complete(COMPLETE)
    assert clean.litter(store.root) == []


def test_failed_records_are_deleted_on_request(store):
    assert clean.remove(clean.litter(store.root, failed=True))
    assert store.read(FAILED) is None
    assert store.complete(COMPLETE)


def test_a_folder_that_is_in_use_is_left_alone(store):
    found = clean.litter(store.root)
    assert not any(item.path.parent == store.folder(RUNNING) for item in found)
    with lease.acquire(store.folder(DEAD)):  # somebody took it after the look
        assert clean.remove(found) == [item for item in found if item.path.parent != store.folder(DEAD)]


def test_a_run_that_was_completed_after_the_look_is_kept(store):
    (store.folder(FAILED) / "state").mkdir()
    found = clean.litter(store.root, failed=True)
    store.write(make_record(spec=FAILED))
    assert all(item.path.parent != store.folder(FAILED) for item in clean.remove(found))
    assert store.complete(FAILED)


def test_tuned_runs_of_a_selection_are_shown(store):
    flags = ["--suite", "demo", "--tasks", "digits", "--methods", "linear", "--protocol", "tuned", "--trials", "2"]
    assert "2 missing" in run("status", *flags, "--out", store.root)


def test_brackets_in_a_reason_are_shown_as_they_are(store):
    store.write(RunRecord(spec=MISSING, method_title="L", status="failed", reason="no [/new]/digits [a list]"))
    assert "no [/new]/digits [a list]" in run("status", "--out", store.root)


def run(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_of_many_running_ones_some_are_listed(store, monkeypatch):
    monkeypatch.setattr(cli_status, "RUNNING_SHOWN", 0)
    output = run("status", "--out", store.root)
    assert "2/9" not in output and "0 of 1 running ones are listed" in output
    assert "2/9" in run("status", "--out", store.root, "--all")


def test_the_commands(store):
    output = run("status", "--out", store.root, "--by", "suite,task")
    assert "1 complete, 1 running, 2 stopped, 1 failed, 1 bad" in output
    assert "no number" in output and "2/9" in output
    runs = json.loads(run("status", "--out", store.root, "--suite", "demo", "--tasks", "animals", "--json"))
    assert {one["state"] for one in runs} == {"running", "stopped"}
    selected = run("status", "--out", store.root, "--suite", "demo", "--tasks", "digits", "--methods", "linear")
    assert "1 missing" in selected
    assert "1 would be deleted" in run("clean", "--out", store.root, "--dry-run")
    assert "1 deleted" in run("clean", "--out", store.root)
