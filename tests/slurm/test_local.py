"""Without a cluster: the same command, submitit's local executor, the same records."""

import os
import signal
from pathlib import Path

import pytest

from harness.records.store import PROGRESS_NAME, Store
from slurm import actions
from slurm.schedulers import SCHEDULERS
from slurm.schedulers.base import ClusterError
from slurm.submissions import Log
from tests import tiny
from tests.command import sctbench
from tests.slurm_helpers import LOCAL, ended, send, standing, wait


@pytest.fixture
def without_tables(monkeypatch):
    """No job for the tables: it would import all that a report needs, and nobody would look at it."""
    local = SCHEDULERS["local"]
    submit = local.submit

    def refuse_tables(array, *rest):
        if not array.jobs:
            raise ClusterError("no tables in this test")
        return submit(array, *rest)

    monkeypatch.setattr(local, "submit", refuse_tables)


def task_of(root):
    """Process id of the job that is at work; None between two starts."""
    (controller,) = (job for sub in Log(root).read() for job in SCHEDULERS["local"].job_ids(sub.arrays[0]))
    children = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    return int(children[0]) if children else None


def test_a_job_is_queued_again_and_cancelled_as_on_a_cluster(data, tmp_path, without_tables):
    (spec,) = tiny.specs(epochs=3000)
    folder = Store(tmp_path).folder(spec)
    send(tiny.setup(tmp_path, data), [spec], LOCAL)
    wait((folder / PROGRESS_NAME).is_file)
    assert standing(tmp_path) == {"running": 1}
    first = task_of(tmp_path)
    os.kill(first, signal.SIGUSR2)
    wait(lambda: list((folder / "state").glob("*")) and task_of(tmp_path) not in (first, None))
    (folder / PROGRESS_NAME).unlink()
    wait((folder / PROGRESS_NAME).is_file)
    assert len(actions.cancel(tmp_path, [])) == 1
    wait(lambda: ended(tmp_path))
    assert standing(tmp_path) == {"cancelled": 1}
    assert list((folder / "state").glob("*"))


def test_a_job_submitted_from_a_folder_with_other_methods_runs_ours(
    data, tmp_path, undisturbed, without_tables, monkeypatch
):
    (spec,) = tiny.specs(["linear"])
    for room in ("methods", "slurm"):
        (tmp_path / "there" / room).mkdir(parents=True)
        (tmp_path / "there" / room / "__init__.py").write_text("raise SystemExit('other code')")
    monkeypatch.chdir(tmp_path / "there")
    send(tiny.setup(tmp_path, data), [spec], LOCAL)
    wait(lambda: ended(tmp_path))
    assert tiny.lasting(Store(tmp_path).read(spec)) == undisturbed(spec)


def test_the_commands_as_a_user_types_them(tmp_path):
    """From a selection to tables, in a folder of one's own, with relative paths."""
    what = ["--suite", "demo", "--tasks", "digits", "--methods", "linear", "--recipe", "epochs=1", "--gpus", "0"]
    what += ["--backbone", "test_vit", "--weights", "random", "--image-size", "32"]
    dry = sctbench("submit", *what, "--scheduler", "local", "--dry-run", cwd=tmp_path)
    assert "1 to submit" in dry and "Nothing was submitted." in dry
    assert not list(tmp_path.iterdir())
    sent = sctbench("submit", *what, "--scheduler", "local", "--mem", "1GB", cwd=tmp_path)
    assert "makes no use of mem" in sent and "run(s): process " in sent
    assert "0 to submit" in sctbench("submit", *what, "--scheduler", "local", cwd=tmp_path)
    wait(lambda: (tmp_path / "results" / "report" / "index.html").is_file())
    assert "1 complete" in sctbench("status", cwd=tmp_path)
    (run,) = (tmp_path / "results" / "runs").glob("*/*/*")
    assert "complete" in sctbench("logs", run.name.rpartition("-")[2], cwd=tmp_path)
    refused = sctbench("retry", cwd=tmp_path, ok=False)
    assert "say what to retry: --failed" in refused
