"""How submitted runs stand, on a mocked cluster."""

import dataclasses
import json
from datetime import UTC, datetime

import pytest

from harness import lease
from harness.records import status
from harness.records.store import Store
from harness.schema.failures import Failure
from slurm import actions
from slurm.schedulers.base import ClusterError
from slurm.status import log_file, placements, submitted_runs
from slurm.submissions import Log
from tests import tiny
from tests.examples import make_record
from tests.slurm_helpers import by_key, complete, job_ids, one_each, send, send_tuned, shown, standing, todo


def test_without_an_answer_of_the_controller_nothing_is_submitted(setup, fake):
    send(setup, tiny.specs(seeds=2))
    fake.set(down=True)
    with pytest.raises(ClusterError, match="Unable to contact slurm controller"):
        todo(setup, seeds=2)
    assert standing(setup.root) == {"unknown": 2}


def test_a_node_failure_is_not_the_end_of_a_job_that_is_queued_again(setup, fake):
    submission = send(setup, tiny.specs(seeds=2))
    fake.change(submission.arrays[0].job, queue="PENDING", accounts="NODE_FAIL", reason="BeginTime")
    assert {(s.state, s.detail) for s in by_key(setup.root).values()} == {("pending", "BeginTime")}
    assert todo(setup, seeds=2).held == 2


def test_sacct_lags_and_is_not_believed(setup, fake):
    submission = send(setup, tiny.specs(seeds=1))
    fake.change(submission.arrays[0].job, queue="", accounts="RUNNING")
    (state,) = by_key(setup.root).values()
    assert state.state == "failed" and "ended without a record" in state.detail
    assert len(todo(setup, seeds=1).ready) == 1


def test_the_end_of_the_log_tells_why(setup, fake):
    submission = send(setup, tiny.specs(seeds=1))
    fake.change(submission.arrays[0].job, queue="", accounts="OUT_OF_MEMORY")
    (placement,) = placements(Log(setup.root)).values()
    log_file(Log(setup.root), placement).write_text("one\nKilled\n")
    (state,) = by_key(setup.root).values()
    assert state.detail.splitlines() == ["its job ended without a record (OUT_OF_MEMORY)", "one", "Killed"]


def test_what_runs_is_shown_with_its_time_left_and_what_waits_with_the_reason(setup, fake):
    specs = tiny.specs(seeds=2)
    first, second = job_ids(send(setup, specs, one_each()).arrays[0])
    fake.change(first, queue="RUNNING")
    fake.change(second, reason="QOSGrpCpuLimit")
    progress = dict.fromkeys(status.PROGRESS_KEYS, 1)
    with lease.acquire(Store(setup.root).folder(specs[0])) as held:
        (held.path.parent / "progress.json").write_text(json.dumps(progress))
        queued = [run.as_status() for run in submitted_runs(setup.root)[0]]
        runs = status.with_queue(status.of_folder(setup.root), queued, only=False)
    for run in (runs[0], queued[0]):
        assert (run.state, run.seed, run.progress, run.left) == ("running", 0, progress, "1:00:00")
    assert status.waiting(runs) == [{"pending": 1, "reason": "QOSGrpCpuLimit"}]


def test_a_run_that_is_tried_again_does_not_show_the_failure_of_before(setup, fake):
    (spec,) = tiny.specs(seeds=1)
    fake.change(send(setup, [spec]).arrays[0].job, queue="", accounts="FAILED")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    made = make_record(spec=spec, status="failed", reason="no memory", failure=Failure(kind="memory"))
    Store(setup.root).write(dataclasses.replace(made, environment={"finished": now}))
    assert standing(setup.root) == {"failed": 1}
    again = send(setup, [spec])
    again.time = now
    Log(setup.root).write(again)
    assert standing(setup.root) == {"pending": 1}


def test_when_all_is_complete_nobody_is_asked(setup, fake):
    for spec in tiny.specs(seeds=2):
        send(setup, [spec])
        complete(setup, spec)
    assert standing(setup.root) == {"complete": 2} and fake.calls("squeue") == []


def test_what_was_cut_off_before_slurm_had_it_is_missing(setup, fake):
    submission = send(setup, tiny.specs(seeds=1))
    submission.arrays[0].job = ""
    Log(setup.root).write(submission)
    fake.set(jobs={})
    assert standing(setup.root) == {"missing": 1}
    assert len(todo(setup, seeds=1).ready) == 1


def test_a_line_of_squeue_that_cannot_be_read_is_the_clusters_error(setup, fake):
    send(setup, tiny.specs(seeds=1))
    (fake.file.parent / "squeue").write_text("#!/bin/sh\necho 'CLUSTER: a'; echo '100|x'\n")
    with pytest.raises(ClusterError, match=r"cannot be read: '100\|x'"):
        todo(setup, seeds=1)
    assert standing(setup.root) == {"unknown": 1}


def test_a_final_run_is_counted_once_whatever_it_is_called(setup, fake):
    sent, (final, other) = send_tuned(setup, seeds=2)
    assert shown(setup.root) == {("validation", "pending"): 2, ("tuned", "pending"): 2}
    for trial, accuracy in zip(final.trials, (1.0, 2.0), strict=True):
        complete(setup, trial, metrics={"val": make_record(accuracy=accuracy).metrics["test"]})
    first, second = (one.spec(Store(setup.root).read) for one in (final, other))
    fake.change(job_ids(sent.arrays[1])[0], queue="RUNNING")
    Store(setup.root).folder(first).mkdir()
    (Store(setup.root).folder(first) / "progress.json").write_text("{}")
    assert shown(setup.root) == {
        ("validation", "complete"): 2,
        ("tuned", "running"): 1,
        ("tuned", "pending"): 1,
    }
    complete(setup, first)
    assert by_key(setup.root)[second.run_id].state == "pending"
    assert [run.placement.run_id for run in actions.cancel(setup.root, [second.run_id])] == [second.run_id]
    assert shown(setup.root) == {("validation", "complete"): 2, ("tuned", "complete"): 1, ("tuned", "cancelled"): 1}
