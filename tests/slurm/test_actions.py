"""Cancelling runs and submitting again what failed, on a mocked cluster."""

import dataclasses

import pytest
from typer.testing import CliRunner

from harness.commands.main import app
from harness.errors import HarnessError
from harness.schema.failures import Failure
from slurm import actions
from slurm.schedulers.base import ClusterError
from slurm.schedulers.slurm import call
from slurm.status import placements
from slurm.submissions import Log
from tests import tiny
from tests.slurm_helpers import by_key, complete, job_ids, one_each, send, send_tuned, standing, todo


def test_a_task_cancelled_while_it_waited_is_known_though_sacct_has_no_row(setup, fake):
    submission = send(setup, tiny.specs(seeds=3), one_each())
    first, second, _ = tiny.specs(seeds=3)
    assert [run.placement.entry.key for run in actions.cancel(setup.root, [first.run_id[:8]])] == [first.run_id]
    assert by_key(setup.root)[first.run_id].state == "cancelled"
    call("scancel", job_ids(submission.arrays[0])[1])  # by hand: no trace anywhere
    assert by_key(setup.root)[second.run_id].detail == "its job is gone without a record"
    assert todo(setup, seeds=3).ready == [first, second]


def test_cancel_all_takes_the_tables_along(setup, fake):
    send(setup, tiny.specs(seeds=3), one_each())
    assert len(actions.cancel(setup.root, [])) == 3
    assert not any(job["queue"] for job in fake.jobs().values())


def test_a_submission_that_was_cut_off_is_cancelled(setup, fake):
    submission = send(setup, tiny.specs(seeds=3), one_each())
    for array in submission.arrays:
        array.job = ""
    Log(setup.root).write(submission)
    first = tiny.specs(seeds=3)[0].run_id
    assert [run.placement.entry.key for run in actions.cancel(setup.root, [first])] == [first]
    assert len(actions.cancel(setup.root, [])) == 2
    assert not any(job["queue"] for job in fake.jobs().values())


def test_what_cannot_be_asked_of_or_was_never_submitted_is_not_cancelled(setup, fake):
    for command in (actions.cancel, lambda root, _: actions.retry(root, {}, print)):
        with pytest.raises(HarnessError, match="nothing was ever submitted"):
            command(setup.root, [])
    assert not setup.root.exists()
    send(setup, tiny.specs(seeds=2))
    fake.set(down=True)
    with pytest.raises(HarnessError, match="Unable to contact"):
        actions.cancel(setup.root, [])


def test_what_scancel_did_not_cancel_is_not_called_cancelled(setup, fake):
    submission = send(setup, tiny.specs(seeds=1))
    (fake.file.parent / "scancel").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(ClusterError, match="scancel failed"):
        actions.cancel(setup.root, [])
    fake.change(submission.arrays[0].job, queue="", accounts="OUT_OF_MEMORY")
    assert standing(setup.root) == {"failed": 1}


def test_a_run_that_has_ended_is_not_cancelled_for_its_job_is_at_others(setup, fake):
    first, second = tiny.specs(seeds=2)
    job = send(setup, [first, second]).arrays[0].job
    fake.change(job, queue="RUNNING")
    complete(setup, first)
    with pytest.raises(HarnessError, match=f"{first.run_id} is complete"):
        actions.cancel(setup.root, [first.run_id])
    complete(setup, first, status="failed", reason="no memory", failure=Failure(kind="memory"))
    with pytest.raises(HarnessError, match=f"{first.run_id} is failed"):
        actions.cancel(setup.root, [first.run_id, second.run_id])
    assert fake.jobs()[job]["queue"] == "RUNNING"
    assert [run.placement.entry.key for run in actions.cancel(setup.root, [second.run_id])] == [second.run_id]


def test_what_would_fail_again_waits_for_retry(setup, fake):
    specs = tiny.specs(seeds=2)
    submission = send(setup, specs, one_each())
    for job in job_ids(submission.arrays[0]):
        fake.change(job, queue="", accounts="FAILED")
    complete(setup, specs[0], status="failed", reason="no memory", failure=Failure(kind="memory"))
    complete(setup, specs[1], status="failed", reason="killed", failure=Failure(kind="killed"))
    left = todo(setup, seeds=2)
    assert (left.failed, left.ready) == ([specs[0]], [specs[1]])
    assert actions.retry(setup.root, {"mem": "64GB", "gpus": 1}, print) == (2, [])
    again = Log(setup.root).read()[-1]
    assert again.profile["mem"] == "64GB"
    job = actions.runs_job(Log(setup.root), placements(Log(setup.root))[specs[0].run_id])
    assert (setup.device, job.setup.device) == ("cpu", "cuda")
    assert todo(setup, seeds=2).held == 2
    assert actions.retry(setup.root, {}, print) == (0, [])


def test_a_submission_that_cannot_be_read_again_does_not_end_the_retry_of_others(setup, fake):
    first, second = (send(setup, [spec]) for spec in tiny.specs(seeds=2))
    for submission in (first, second):
        fake.change(submission.arrays[0].job, queue="", accounts="FAILED")
    for pickled in Log(setup.root).folder(first.arrays[0].name).glob("*.pkl"):
        pickled.write_bytes(b"torn")
    done = CliRunner().invoke(app, ["retry", "--failed", "--out", str(setup.root)])
    assert done.exit_code == 1 and "1 run(s) submitted again" in done.output
    assert f"1 run(s) of submission {first.id}: what job 100 was to do cannot be read" in done.output
    assert standing(setup.root) == {"failed": 1, "pending": 1}


def test_finals_that_are_tried_again_wait_for_trials_of_another_submission(setup, fake):
    send_tuned(setup, seeds=1)
    send_tuned(setup, seeds=2)
    before = set(fake.jobs())
    for job in before:
        fake.change(job, queue="", accounts="NODE_FAIL")
    assert actions.retry(setup.root, {}, print) == (4, [])
    again = {values["name"]: values["options"] for job, values in fake.jobs().items() if job not in before}
    trials, first, _, second, _ = (again[name].get("dependency") for name in again)
    assert trials is None and first == second and first.startswith("afterany:")


def test_a_retry_looks_for_the_data_before_it_submits(setup, fake, tmp_path):
    moved = tiny.write_data(tmp_path / "data")
    setup = dataclasses.replace(setup, data=moved)
    gone, there = (send(setup, [spec]) for spec in tiny.specs(tasks=tiny.TASKS))
    for submission in (gone, there):
        fake.change(submission.arrays[0].job, queue="", accounts="FAILED")
    (moved.data / "first").rename(tmp_path / "elsewhere")
    done = CliRunner().invoke(app, ["retry", "--failed", "--out", str(setup.root)])
    assert done.exit_code == 1 and "1 run(s) submitted again" in done.output
    assert f"submission {gone.id}: the data of 1 of 1 tasks cannot be used; nothing was started" in done.output
    assert [len(submission.runs) for submission in Log(setup.root).read()] == [1, 1, 1]
    assert {key: run.state for key, run in by_key(setup.root).items()} == {
        gone.runs[0].key: "failed",
        there.runs[0].key: "pending",
    }


def test_a_run_is_named_by_the_beginning_of_its_id():
    assert actions.find(["abc1", "abd2"], "abc") == "abc1"
    with pytest.raises(HarnessError, match="2 submitted runs have an id that begins with 'ab'"):
        actions.find(["abc1", "abd2"], "ab")
    with pytest.raises(HarnessError, match="no submitted runs have an id that begins with 'x'"):
        actions.find(["abc1", "abd2"], "x")
