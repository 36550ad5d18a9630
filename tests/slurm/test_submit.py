"""Submission, state and retry on a mocked cluster: the option space, and what goes wrong in real ones."""

import dataclasses
import json
import re
import time
from collections import Counter
from datetime import UTC, datetime

import pytest
import tiny
from examples import make_record
from fake_slurm import Fake
from slurm_helpers import SMALL, by_key, send, standing
from typer.testing import CliRunner

from harness import lease
from harness.commands.main import app
from harness.errors import HarnessError
from harness.plans import plan
from harness.records import status
from harness.records.store import Store
from harness.schema.failures import Failure
from slurm import actions, scheduler, submit
from slurm.clusters import CLUSTERS
from slurm.errors import ClusterError
from slurm.job_runner import Batch
from slurm.status import as_runs, log_file, places
from slurm.submissions import Log

SLURM = CLUSTERS["slurm"]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    (tmp_path / "bin").mkdir()
    return Fake(tmp_path / "bin").install(monkeypatch)


@pytest.fixture
def setup(tmp_path, fake):
    return tiny.setup(tmp_path / "out", tiny.Roots())


def one_each(**changes):
    return dataclasses.replace(SMALL, runs_per_job=1, **changes)


def todo(setup, **selection):
    asked = tiny.selection(**selection)
    return submit.todo(asked, Store(setup.root), submit.held_keys(Log(setup.root), SLURM))


def complete(setup, spec, **changes):
    made = make_record(spec=spec, **changes)
    Store(setup.root).write(dataclasses.replace(made, environment={"finished": "9999"}))


def test_arrays_keep_to_the_limit_and_share_the_parallelism(setup, fake):
    fake.set(limit=11)
    assert SLURM.limit() == 10
    submission = send(setup, tiny.specs(seeds=25), one_each(parallel=6), limit=SLURM.limit())
    assert [len(array.tasks) for array in submission.arrays] == [10, 10, 5, 0]
    options = [fake.jobs()[f"{array.job}_0"]["options"] for array in submission.arrays[:3]]
    assert [option["array"] for option in options] == ["0-9%2", "0-9%2", "0-4%2"]
    report = fake.jobs()[submission.arrays[3].job]["options"]
    assert report["dependency"] == "afterany:100:101:102"


def test_what_waits_or_runs_is_not_submitted_again(setup, fake):
    specs = tiny.specs(seeds=4)
    submission = send(setup, specs, one_each())
    assert (todo(setup, seeds=4).held, todo(setup, seeds=4).ready) == (4, [])
    fake.change(submission.arrays[0].job_ids()[1], queue="RUNNING")
    fake.change(submission.arrays[0].job_ids()[2], queue="", accounts="COMPLETED")
    complete(setup, specs[2])
    fake.change(submission.arrays[0].job_ids()[3], queue="", accounts="TIMEOUT")
    left = todo(setup, seeds=4)
    assert (left.complete, left.held, left.ready) == (1, 2, [specs[3]])
    assert standing(setup.root) == {"complete": 1, "pending": 2, "failed": 1}


def test_a_refused_array_leaves_the_ones_before_it_submitted(setup, fake):
    fake.set(refuse_after=1)
    with pytest.raises(ClusterError, match=r"sbatch refused .*QOSMaxSubmitJobPerUserLimit"):
        send(setup, tiny.specs(seeds=5), one_each(), limit=3)
    left = todo(setup, seeds=5)
    assert (left.held, len(left.ready)) == (3, 2)


def test_an_array_that_slurm_took_though_sbatch_timed_out_is_not_forgotten(setup, fake):
    program = fake.file.parent / "sbatch"
    late = program.read_text().replace("exec ", "") + "echo 'sbatch: error: Socket timed out' >&2; exit 1\n"
    program.write_text(late)
    with pytest.raises(ClusterError, match="Socket timed out"):
        send(setup, tiny.specs(seeds=2), one_each())
    assert (todo(setup, seeds=2).held, todo(setup, seeds=2).ready) == (2, [])
    program.write_text(late + f"rm {fake.file.parent}/squeue\n")  # nor does the cluster say more
    fake.set(jobs={})
    with pytest.raises(ClusterError, match="Socket timed out"):
        send(setup, tiny.specs(seeds=2), one_each())
    assert [len(submission.arrays) for submission in Log(setup.root).read()] == [1, 1]


def test_with_a_submission_that_cannot_be_read_nothing_is_submitted(setup, fake):
    submission = send(setup, tiny.specs(seeds=2))
    (setup.root / "slurm" / submission.id / "submission.json").write_text("torn")
    with pytest.raises(ClusterError, match=rf"{submission.id}/submission\.json cannot be read"):
        todo(setup, seeds=2)


def test_runs_in_jobs_of_another_cluster_are_not_submitted_again(setup, fake):
    send(setup, tiny.specs(seeds=2))
    held = submit.held_keys(Log(setup.root), CLUSTERS["local"])
    assert held == dict.fromkeys([spec.run_id for spec in tiny.specs(seeds=2)], "")


def test_a_refused_job_for_the_tables_is_told_and_no_more(setup, fake, capsys):
    fake.set(refuse_after=1)
    send(setup, tiny.specs(seeds=2))
    assert "No job for the tables" in capsys.readouterr().out
    assert todo(setup, seeds=2).held == 2


def test_a_submission_that_was_cut_off_is_found_by_its_name(setup, fake):
    """The process died between sbatch and the log: the log has the name alone."""
    submission = send(setup, tiny.specs(seeds=3), one_each())
    job, submission.arrays[0].job = submission.arrays[0].job, ""
    Log(setup.root).write(submission)
    assert todo(setup, seeds=3).held == 3
    assert {state.place.job for state in by_key(setup.root).values()} == {f"{job}_{task}" for task in range(3)}


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


def test_a_task_cancelled_while_it_waited_is_known_though_sacct_has_no_row(setup, fake):
    submission = send(setup, tiny.specs(seeds=3), one_each())
    first, second, _ = tiny.specs(seeds=3)
    assert [s.place.run.key for s in actions.cancel(setup.root, [first.run_id[:8]])] == [first.run_id]
    assert by_key(setup.root)[first.run_id].state == "cancelled"
    scheduler.cancel([submission.arrays[0].job_ids()[1]])  # by hand: no trace anywhere
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
    assert [s.place.run.key for s in actions.cancel(setup.root, [first])] == [first]
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
    assert [s.place.run.key for s in actions.cancel(setup.root, [second.run_id])] == [second.run_id]


def test_the_end_of_the_log_tells_why(setup, fake):
    submission = send(setup, tiny.specs(seeds=1))
    fake.change(submission.arrays[0].job, queue="", accounts="OUT_OF_MEMORY")
    (place,) = places(Log(setup.root)).values()
    log_file(Log(setup.root), place).write_text("one\nKilled\n")
    (state,) = by_key(setup.root).values()
    assert state.detail.splitlines() == ["its job ended without a record (OUT_OF_MEMORY)", "one", "Killed"]


def test_what_would_fail_again_waits_for_retry(setup, fake):
    specs = tiny.specs(seeds=2)
    submission = send(setup, specs, one_each())
    for job in submission.arrays[0].job_ids():
        fake.change(job, queue="", accounts="FAILED")
    complete(setup, specs[0], status="failed", reason="no memory", failure=Failure(kind="memory"))
    complete(setup, specs[1], status="failed", reason="killed", failure=Failure(kind="killed"))
    left = todo(setup, seeds=2)
    assert (left.failed, left.ready) == ([specs[0]], [specs[1]])
    assert actions.retry(setup.root, {"mem": "64GB", "gpus": 1}, print) == (2, [])
    again = Log(setup.root).read()[-1]
    assert again.profile["mem"] == "64GB"
    batch = actions.batch_of(Log(setup.root), places(Log(setup.root))[specs[0].run_id])
    assert (setup.device, batch.setup.device) == ("cpu", "cuda")
    assert todo(setup, seeds=2).held == 2
    assert actions.retry(setup.root, {}, print) == (0, [])


def test_a_submission_that_cannot_be_read_again_does_not_end_the_retry_of_others(setup, fake):
    first, second = (send(setup, [spec]) for spec in tiny.specs(seeds=2))
    for submission in (first, second):
        fake.change(submission.arrays[0].job, queue="", accounts="FAILED")
    for pickled in Log(setup.root).folder(first, first.arrays[0]).glob("*.pkl"):
        pickled.write_bytes(b"torn")
    done = CliRunner().invoke(app, ["retry", "--failed", "--out", str(setup.root)])
    assert done.exit_code == 1 and "1 run(s) submitted again" in done.output
    assert f"1 run(s) of submission {first.id}: job 100 cannot be read again" in done.output
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


def test_the_cluster_of_a_retry_is_that_of_before(setup):
    done = CliRunner().invoke(app, ["retry", "--failed", "--cluster", "local", "--out", str(setup.root)])
    assert "--cluster local" in str(done.exception)


def send_tuned(setup, **selection):
    """Submit what is missing of a tuned selection; returns the submission and the finals."""
    asked = tiny.selection(protocol="tuned", trials=2, **selection)
    left = todo(setup, protocol="tuned", trials=2, **selection)
    made = submit.make_plan(left.ready, left.blocked, lambda _: 1.0, one_each(), SLURM, 1000, left.after_jobs)
    sent = submit.send(made, submit.absolute(setup), one_each(), SLURM, Log(setup.root), print)
    return sent, plan.finals(asked)


def shown(root):
    """What `sctbench status` counts of a folder."""
    runs = status.with_queue(status.of_folder(root), as_runs(root)[0], only=False)
    return Counter((run.protocol, run.state) for run in runs)


def test_what_runs_is_shown_with_its_time_left_and_what_waits_with_the_reason(setup, fake):
    specs = tiny.specs(seeds=2)
    first, second = send(setup, specs, one_each()).arrays[0].job_ids()
    fake.change(first, queue="RUNNING")
    fake.change(second, reason="QOSGrpCpuLimit")
    progress = dict.fromkeys(status.PROGRESS_KEYS, 1)
    with lease.acquire(Store(setup.root).folder(specs[0])) as held:
        (held.path.parent / "progress.json").write_text(json.dumps(progress))
        runs = status.with_queue(status.of_folder(setup.root), as_runs(setup.root)[0], only=False)
    (queued, _), _ = as_runs(setup.root)
    for run in (runs[0], queued):
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


def test_a_final_that_lacks_a_trials_verdict_for_good_is_left_out(setup, fake):
    (final,) = plan.finals(tiny.selection(protocol="tuned", trials=2))
    for kind, left_out in {"data": [final.trials[0], final], "memory": [final.trials[0]], "disk_full": []}.items():
        complete(setup, final.trials[0], status="failed", reason="why", failure=Failure(kind=kind))
        left = todo(setup, protocol="tuned", trials=2)
        assert left.failed == left_out
        assert len(left.ready) + len(left.blocked) + len(left.failed) == 3


def test_a_final_run_is_counted_once_whatever_it_is_called(setup, fake):
    sent, (final, other) = send_tuned(setup, seeds=2)
    assert shown(setup.root) == {("validation", "pending"): 2, ("tuned", "pending"): 2}
    for trial, accuracy in zip(final.trials, (1.0, 2.0), strict=True):
        complete(setup, trial, metrics={"val": make_record(accuracy=accuracy).metrics["test"]})
    first, second = (one.spec(Store(setup.root).read) for one in (final, other))
    fake.change(sent.arrays[1].job_id(0), queue="RUNNING")
    Store(setup.root).folder(first).mkdir()
    (Store(setup.root).folder(first) / "progress.json").write_text("{}")
    assert shown(setup.root) == {
        ("validation", "complete"): 2,
        ("tuned", "running"): 1,
        ("tuned", "pending"): 1,
    }
    complete(setup, first)
    assert by_key(setup.root)[second.run_id].state == "pending"
    assert [s.place.run_id for s in actions.cancel(setup.root, [second.run_id])] == [second.run_id]
    assert shown(setup.root) == {("validation", "complete"): 2, ("tuned", "complete"): 1, ("tuned", "cancelled"): 1}


def test_what_was_submitted_is_the_callable_itself(setup, fake):
    submission = send(setup, tiny.specs(seeds=2), one_each())
    import submitit

    log = Log(setup.root)
    job = submitit.SlurmJob(log.folder(submission, submission.arrays[0]), submission.arrays[0].job_ids()[1])
    assert hasattr(job.submission().function, "checkpoint")
    again = job.submission().function.checkpoint()
    assert again.function == job.submission().function
    assert again.function.checkpoint() is not None
    place = places(log)[tiny.specs(seeds=2)[1].run_id]
    assert actions.batch_of(log, place) == Batch(
        setup=submit.absolute(setup), jobs=(tiny.specs(seeds=2)[1],), code=submission.code
    )


def test_inside_a_job_its_shape_is_not_inherited_but_the_configuration_is(setup, fake, monkeypatch):
    seen = fake.file.parent / "seen"
    program = fake.file.parent / "sbatch"
    program.write_text(program.read_text().replace("exec", f"env > {seen}\nexec"))
    monkeypatch.setenv("SLURM_CONF", "/somewhere/slurm.conf")
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    send(setup, tiny.specs(seeds=1))
    assert re.search("^SBATCH_ACCOUNT=mine$", seen.read_text(), re.M)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "9")
    send(setup, tiny.specs(seeds=2)[1:])
    assert "SLURM_NTASKS" not in seen.read_text() and "SLURM_CONF=/somewhere" in seen.read_text()


def test_other_programs_without_slurm_say_what_to_do(setup, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ClusterError, match="--cluster local"):
        scheduler.live(["x"])
