"""On real daemons: what a user's suite meets on a cluster."""

import dataclasses
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from harness.records.store import PROGRESS_NAME, Store
from slurm import actions, submit
from slurm.schedulers import SCHEDULERS
from slurm.status import submitted_runs
from slurm.submissions import Log
from tests import tiny
from tests.slurm_helpers import SCRIPT, SMALL, by_key, ended, run_slurm, send, standing, wait

pytestmark = pytest.mark.slurm

SLOW = f"{Path(__file__).with_name('slow.py')}:Slow"
STEP_SECONDS = 0.2
EPOCHS = 100
"""Of runs that are to be disturbed. At four steps an epoch and with the pauses they are longer than SLURM's shortest
time limit, one minute."""
SAVE_SECONDS = 6
"""slurmctld writes its state at most every 5 s; a crash undoes what the tests asked of it since."""


def test_runs_are_done_as_here_and_the_tables_follow(slurm, data, undisturbed, tmp_path):
    specs = tiny.specs(["linear", "lora"], seeds=2, tasks=tiny.TASKS)
    submission = send(tiny.setup(tmp_path, data), specs)
    assert [len(array.tasks) for array in submission.arrays] == [2, 0]
    wait(lambda: ended(tmp_path))
    assert standing(tmp_path) == {"complete": 8}
    for spec in specs:
        record = Store(tmp_path).read(spec)
        assert tiny.lasting(record) == undisturbed(spec)
        job = record.environment["slurm"]
        assert job["array_job"] == submission.arrays[0].job
        assert job["node"] in ("n1", "n2", "n3", "n4") and job["restarts"] == 0
        assert record.environment["code_changed"] is False
        assert record.environment["code_at_submission"] == submission.code
    wait(lambda: (tmp_path / "report" / "index.html").is_file())


def power_cut(slurm, node):
    os.kill(int((slurm / "run" / f"{node}.pid").read_text()), signal.SIGKILL)


def restart_controller(slurm):
    time.sleep(SAVE_SECONDS)
    os.kill(int((slurm / "run" / "slurmctld.pid").read_text()), signal.SIGKILL)
    time.sleep(1)
    subprocess.run([SCRIPT, "start"], check=True, capture_output=True)


def completions(root):
    """How often each run was brought to its end, by the jobs' logs."""
    lines = [line.split() for path in root.glob("slurm/*/*/*.out") for line in path.read_text().splitlines()]
    return Counter((line[2], line[3], line[5]) for line in lines if line[6:] == ["complete"])


@pytest.fixture
def sent(slurm, data, tmp_path, monkeypatch):
    """Five runs that take a while, each in a job of its own; one of them in a partition that others preempt."""
    monkeypatch.setenv("SLOW_STEP_SECONDS", str(STEP_SECONDS))  # the jobs inherit it
    setup = tiny.setup(tmp_path, data, save_every=0.5, method_files=[SLOW])
    specs = tiny.specs([SLOW], seeds=6, epochs=EPOCHS)[:5]
    profile = dataclasses.replace(SMALL, runs_per_job=1)
    send(setup, specs[:1], dataclasses.replace(profile, partition="low"))
    send(setup, specs[1:], profile)
    for spec in specs:
        wait(lambda spec=spec: (Store(tmp_path).folder(spec) / PROGRESS_NAME).is_file())
    return setup, specs


def test_nothing_is_lost_nor_done_twice_whatever_happens_to_jobs_nodes_and_controller(
    slurm, sent, undisturbed, monkeypatch
):
    setup, specs = sent
    jobs = {key: state.live for key, state in by_key(setup.root).items()}
    preempted, cut, timed_out, *_ = (jobs[spec.run_id] for spec in specs)
    evict = ["sbatch", "-p", "high", "-w", preempted.node, "--exclusive", "--time=5", "--output=/dev/null"]
    run_slurm(*evict, "--wrap", "sleep 5")
    run_slurm("scontrol", "update", f"JobId={timed_out.id}", "TimeLimit=1")
    actions.cancel(setup.root, [specs[3].run_id])
    wait(lambda: int(restarts(timed_out.id)) > 0)
    run_slurm("scontrol", "update", f"JobId={timed_out.id}", "TimeLimit=30")  # or it would time out for ever
    power_cut(slurm, cut.node)
    wait(lambda: all(int(restarts(job.id)) > 0 for job in (preempted, cut, timed_out)))
    wait(lambda: not {"PENDING", "COMPLETING"} & job_states(jobs.values()))
    restart_controller(slurm)  # which also boots the node again; a start that it forgot would hold the run's lease
    wait(lambda: ended(setup.root))
    assert by_key(setup.root)[specs[3].run_id].state == "cancelled"

    asked = tiny.selection([SLOW], seeds=6, epochs=EPOCHS)
    log, profile = Log(setup.root), dataclasses.replace(SMALL, runs_per_job=1)
    missing = submit.todo(asked, Store(setup.root), submit.held_keys(log, "slurm"))
    left = {spec.run_id for spec in missing.ready}
    assert specs[3].run_id in left and len(left) >= 2  # the sixth run was never submitted
    monkeypatch.delenv("SLOW_STEP_SECONDS")
    send(setup, missing.ready, profile)
    wait(lambda: ended(setup.root))
    for spec in tiny.specs([SLOW], seeds=6, epochs=EPOCHS):
        assert tiny.lasting(Store(setup.root).complete(spec)) == undisturbed(spec)
    assert set(completions(setup.root).values()) == {1} and len(completions(setup.root)) == 6
    told = [Store(setup.root).complete(spec).environment for spec in specs]
    assert all(each["resumed_at_steps"] for each in told[:4])
    assert [each["slurm"]["restarts"] > 0 for each in told[1:4]] == [True, True, False]


def job_states(jobs):
    return set(run_slurm("squeue", "-h", "-o", "%T", "-j", ",".join(job.id for job in jobs)).split())


def restarts(job):
    return run_slurm("scontrol", "show", "job", job).split("Restarts=")[1].split()[0]


def test_five_thousand_runs_are_submitted_in_chunks_and_looked_at_in_seconds(slurm, data, tmp_path, capsys):
    run_slurm("scontrol", "update", "PartitionName=debug", "State=DOWN")  # they stay in the queue
    try:
        setup = tiny.setup(tmp_path, data)
        specs = tiny.specs(["linear"], seeds=5000)
        profile = dataclasses.replace(SMALL, runs_per_job=1, parallel=100)
        start = time.monotonic()
        submission = send(setup, specs, profile, limit=SCHEDULERS["slurm"].limit())
        submitted = time.monotonic() - start
        assert [len(array.tasks) for array in submission.arrays] == [1000] * 5 + [0]
        start = time.monotonic()
        runs, problems = submitted_runs(tmp_path)
        looked = time.monotonic() - start
        assert not problems and [run.state for run in runs] == ["pending"] * 5000
        asked = tiny.selection(["linear"], seeds=5000)
        missing = submit.todo(asked, Store(tmp_path), submit.held_keys(Log(tmp_path), "slurm"))
        assert (missing.held, missing.ready) == (5000, [])
        with capsys.disabled():
            print(f"\n5000 runs: submitted in {submitted:.1f} s, status in {looked:.1f} s")
        assert len(actions.cancel(tmp_path, [])) == 5000
        assert standing(tmp_path) == {"cancelled": 5000}
    finally:
        run_slurm("scontrol", "update", "PartitionName=debug", "State=UP")
