"""Submission on a mocked cluster: the option space, and what goes wrong on real ones."""

import re

import pytest
import submitit

from harness.plans import plan
from harness.schema.failures import Failure
from slurm import actions, submit
from slurm.job_runner import RunsJob
from slurm.schedulers import SCHEDULERS
from slurm.schedulers.base import ClusterError
from slurm.status import placements
from slurm.submissions import Log
from tests import tiny
from tests.slurm_helpers import by_key, complete, job_ids, one_each, send, standing, todo

SLURM = SCHEDULERS["slurm"]


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
    fake.change(job_ids(submission.arrays[0])[1], queue="RUNNING")
    fake.change(job_ids(submission.arrays[0])[2], queue="", accounts="COMPLETED")
    complete(setup, specs[2])
    fake.change(job_ids(submission.arrays[0])[3], queue="", accounts="TIMEOUT")
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


def test_runs_in_jobs_of_another_scheduler_are_not_submitted_again(setup, fake):
    send(setup, tiny.specs(seeds=2))
    held = submit.held_keys(Log(setup.root), "local")
    assert held == dict.fromkeys([spec.run_id for spec in tiny.specs(seeds=2)], "")


def test_a_refused_job_for_the_tables_is_told_and_no_more(setup, fake, capsys):
    fake.set(refuse_after=1)
    send(setup, tiny.specs(seeds=2))
    assert "no job for the tables" in capsys.readouterr().out
    assert todo(setup, seeds=2).held == 2


def test_a_submission_that_was_cut_off_is_found_by_its_name(setup, fake):
    """The process died between sbatch and the log: the log has the name alone."""
    submission = send(setup, tiny.specs(seeds=3), one_each())
    job, submission.arrays[0].job = submission.arrays[0].job, ""
    Log(setup.root).write(submission)
    assert todo(setup, seeds=3).held == 3
    assert {run.placement.job for run in by_key(setup.root).values()} == {f"{job}_{task}" for task in range(3)}


def test_a_final_that_lacks_a_trials_verdict_for_good_is_left_out(setup, fake):
    (final,) = plan.finals(tiny.selection(protocol="tuned", trials=2))
    for kind, left_out in {"data": [final.trials[0], final], "memory": [final.trials[0]], "disk_full": []}.items():
        complete(setup, final.trials[0], status="failed", reason="why", failure=Failure(kind=kind))
        left = todo(setup, protocol="tuned", trials=2)
        assert left.failed == left_out
        assert len(left.ready) + len(left.blocked) + len(left.failed) == 3


def test_what_was_submitted_is_the_callable_itself(setup, fake):
    submission = send(setup, tiny.specs(seeds=2), one_each())
    log = Log(setup.root)
    job = submitit.SlurmJob(log.folder(submission.arrays[0].name), job_ids(submission.arrays[0])[1])
    assert hasattr(job.submission().function, "checkpoint")
    again = job.submission().function.checkpoint()
    assert again.function == job.submission().function
    assert again.function.checkpoint() is not None
    placement = placements(log)[tiny.specs(seeds=2)[1].run_id]
    assert actions.runs_job(log, placement) == RunsJob(
        setup=submit.absolute(setup), items=(tiny.specs(seeds=2)[1],), code=submission.code
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


def test_complete_runs_on_other_data_are_named(setup, fake):
    """The record's digests of the data are made up, so they are not those of the folder."""
    complete(setup, tiny.specs()[0])
    order = submit.Order(selection=tiny.selection(), profile=one_each(), out=setup.root, roots=setup.data)
    told = []
    submit.rehearse(order, told.append)
    assert any("1 complete run(s) of first were done on other data than there are now" in line for line in told)
