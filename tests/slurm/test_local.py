"""Without a cluster: the same command, submitit's local executor, the same records."""

import os
import signal
from pathlib import Path

import tiny
from command import sctbench
from slurm_helpers import ended, send, standing, wait

from harness.store import Store
from harness.worker import PROGRESS_NAME
from slurm import control
from slurm.submissions import Log


def task_of(root):
    """Process id of the job that is at work."""
    (controller,) = (job for sub in Log(root).read() for job in sub.arrays[0].job_ids())
    return int(Path(f"/proc/{controller}/task/{controller}/children").read_text())


def test_a_job_is_requeued_cancelled_and_done_as_on_a_cluster(data, undisturbed, tmp_path):
    (spec,) = tiny.specs(epochs=200)
    setup = tiny.setup(tmp_path, data)
    send(setup, [spec], cluster="local")
    progress = Store(tmp_path).folder(spec) / PROGRESS_NAME
    wait(progress.is_file)
    assert standing(tmp_path) == {"running": 1}
    os.kill(task_of(tmp_path), signal.SIGUSR2)
    wait(lambda: list((Store(tmp_path).folder(spec) / "state").glob("*")))
    wait(lambda: ended(tmp_path))
    record = Store(tmp_path).complete(spec)
    assert record.environment["resumed_at_steps"]
    assert tiny.lasting(record) == undisturbed(spec)
    wait(lambda: (tmp_path / "report" / "index.html").is_file())


def test_cancelled_processes_leave_a_state(data, tmp_path):
    (spec,) = tiny.specs(epochs=1000)
    send(tiny.setup(tmp_path, data), [spec], cluster="local")
    wait((Store(tmp_path).folder(spec) / PROGRESS_NAME).is_file)
    assert len(control.cancel(tmp_path, [])) == 1
    wait(lambda: ended(tmp_path))
    assert standing(tmp_path) == {"cancelled": 1}
    assert list((Store(tmp_path).folder(spec) / "state").glob("*"))


def test_the_commands_as_a_user_types_them(tmp_path):
    """From a selection to tables, in a folder of one's own, with relative paths."""
    what = ["--suite", "demo", "--tasks", "digits", "--methods", "linear", "--recipe", "epochs=1", "--gpus", "0"]
    dry = sctbench("submit", *what, "--cluster", "local", "--dry-run", cwd=tmp_path)
    assert "1 to submit" in dry and "Nothing was submitted." in dry
    sctbench("submit", *what, "--cluster", "local", cwd=tmp_path)
    assert "0 to submit" in sctbench("submit", *what, "--cluster", "local", cwd=tmp_path)
    wait(lambda: (tmp_path / "results" / "report" / "index.html").is_file())
    assert "1 complete" in sctbench("status", cwd=tmp_path)
    (run,) = (tmp_path / "results" / "runs").glob("*/*/*")
    assert "complete" in sctbench("logs", run.name.rpartition("-")[2], cwd=tmp_path)
    refused = sctbench("retry", cwd=tmp_path, ok=False)
    assert "say what to retry: --failed" in refused
