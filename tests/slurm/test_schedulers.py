"""One protocol for all schedulers: a toy one, defined here alone, does what a user sees of SLURM."""

import itertools
import pickle
import shutil
from pathlib import Path

import pytest

from harness.records.store import PROGRESS_NAME, Store
from slurm import actions, submit
from slurm.job_payload import Payload
from slurm.profile import Profile
from slurm.schedulers import SCHEDULERS
from slurm.schedulers.base import ClusterError, LiveJob, Scheduler
from slurm.submissions import ArrayEntry, Log
from tests import tiny
from tests.command import sctbench
from tests.slurm_helpers import by_key, ended, send, standing, start_work, wait


class Toy(Scheduler):
    """Plain processes, one after the other, as long as somebody asks how they stand."""

    name = "toy"
    job_word = "toy"
    on_this_machine = True
    unused = ("partition",)

    def __init__(self):
        self.waiting, self.processes, self.number = [], {}, itertools.count()

    def submit(self, array, works, profile, folder, after):
        if not array.jobs:
            raise ClusterError("toys write no tables")
        folder.mkdir(parents=True, exist_ok=True)
        entry = ArrayEntry(name=array.name, tasks=[[] for _ in works], job=f"t{next(self.number)}")
        for job, work in zip(self.job_ids(entry), works, strict=True):
            (folder / job).write_bytes(pickle.dumps(work))
            self.waiting.append((job, array.name, folder))
        return entry.job

    def job_id(self, array, task):
        return f"{array.job}:{task}"

    def live(self, arrays):
        if self.waiting and not any(process.is_alive() for process in self.processes.values()):
            job, _, folder = self.waiting.pop(0)
            self.processes[job] = start_work(folder / job, folder / self.log_name(job))
        names = {job: array.name for array in arrays for job in self.job_ids(array)}
        running = [job for job, process in self.processes.items() if process.is_alive() and job in names]
        return {job: LiveJob(id=job, name=names[job], runs=True, node="here", left="for ever") for job in running} | {
            job: LiveJob(id=job, name=name, runs=False, reason="one at a time")
            for job, name, _ in self.waiting
            if job in names
        }

    def cancel(self, array, jobs):
        self.waiting = [waiting for waiting in self.waiting if waiting[0] not in jobs]
        for job in set(jobs) & self.processes.keys():
            self.processes[job].terminate()

    def kill(self):
        for process in self.processes.values():
            process.kill()
            process.join()

    def log_name(self, job):
        return f"{job}.txt"

    def payload(self, folder, job):
        return Payload((folder / job).read_bytes())


@pytest.fixture
def toy(monkeypatch):
    toy = Toy()
    monkeypatch.setitem(SCHEDULERS, toy.name, toy)
    yield toy
    toy.kill()


def test_a_scheduler_of_ones_own_submits_is_shown_and_cancels(toy, data, tmp_path, undisturbed):
    root, (short,), (long,) = tmp_path / "results", tiny.specs(["linear"]), tiny.specs(["lora"], epochs=3000)
    profile = Profile(scheduler="toy", gpus=0, partition="none")
    told = []
    for selection in (tiny.selection(["linear"]), tiny.selection(["lora"], epochs=3000)):
        order = submit.Order(selection=selection, profile=profile, out=root, roots=data, track=("tensorboard",))
        submit.submit(order, told.append)
    assert "warning: scheduler 'toy' makes no use of partition" in told
    assert any(line.endswith("1 job(s) with 1 run(s): toy t0") for line in told)
    assert any("no job for the tables: toys write no tables" in line for line in told)
    assert "1 one at a time" in " ".join(sctbench("status", cwd=tmp_path).split())

    wait(lambda: standing(root) == {"complete": 1, "pending": 1} and not toy.waiting, timeout=600)
    assert tiny.lasting(Store(root).read(short)) == undisturbed(short)
    assert list(Store(root).folder(short).glob("tracking/tensorboard/seed0/events.*"))
    assert "complete" in sctbench("logs", short.run_id, cwd=tmp_path)
    wait((Store(root).folder(long) / PROGRESS_NAME).is_file)
    shown = sctbench("status", cwd=tmp_path)
    assert "1 complete, 1 running" in shown and "for ever" in shown
    assert "0 to submit" in sctbench_submit(long, tmp_path, data)

    assert "1 run(s) cancelled" in sctbench("cancel", long.run_id[:8], cwd=tmp_path)
    wait(lambda: ended(root))
    assert by_key(root)[long.run_id].state == "cancelled"


def test_a_scheduler_of_ones_own_is_given_what_failed_again(toy, data, tmp_path):
    root, (spec,) = tmp_path / "results", tiny.specs(["linear"])
    order = submit.Order(
        selection=tiny.selection(["linear"]), profile=Profile(scheduler="toy", gpus=0), out=root, roots=data
    )
    submit.submit(order, print)
    toy.kill()
    assert standing(root) == {"failed": 1}
    assert actions.retry(root, {}, print) == (1, [])
    wait(lambda: standing(root) == {"complete": 1})
    assert Store(root).read(spec).status == "complete"


def test_a_retry_may_go_to_another_scheduler(setup, fake, toy, undisturbed):
    (spec,) = tiny.specs(["linear"])
    fake.change(send(setup, [spec]).arrays[0].job, queue="", accounts="NODE_FAIL")
    assert actions.retry(setup.root, {"scheduler": "toy"}, print) == (1, [])
    assert [submission.scheduler for submission in Log(setup.root).read()] == ["slurm", "toy"]
    wait(lambda: standing(setup.root) == {"complete": 1})
    assert tiny.lasting(Store(setup.root).read(spec)) == undisturbed(spec)


def test_a_submission_of_an_earlier_version_is_read(setup, fake):
    """Its file names the scheduler as `cluster`, beside the profile."""
    stored = Path(__file__).parent / "golden" / "submission_schema_1.json"
    log = Log(setup.root)
    folder = log.root / "20261126-180541-151078-0e"
    folder.mkdir(parents=True)
    shutil.copy(stored, folder / "submission.json")
    (submission,) = log.read()
    assert not log.unreadable and submission.scheduler == "slurm"
    assert Profile.from_dict(submission.profile) == Profile(
        gpus=0, cpus=1, time=30, signal_delay=60, runs_per_job=1, setup=("module load x",), sbatch={"nice": 100}
    )
    jobs = {"name": f"{submission.id}.0", "queue": "PENDING", "accounts": "", "options": {}}
    fake.set(jobs={"101_0": jobs, "101_1": jobs | {"queue": "RUNNING"}})
    trials, finals = (array.tasks for array in submission.arrays[:2])
    held = submit.held_keys(log, "slurm")
    assert held == {trials[0][0]: "101_0", trials[1][0]: "101_1"}
    assert [run.state for run in by_key(setup.root).values()] == ["pending", "pending", "failed"]
    assert {run.placement.run_id for run in actions.cancel(setup.root, [])} == held.keys()
    (again,) = log.read()
    assert (again.arrays[0].cancelled, again.runs, finals) == ([0, 1], submission.runs, again.arrays[1].tasks)


def test_other_programs_without_slurm_say_what_to_do(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ClusterError, match="--scheduler local"):
        SCHEDULERS["slurm"].live([ArrayEntry(name="x", tasks=[])])


def test_a_scheduler_that_is_not_known_is_refused():
    with pytest.raises(ClusterError, match="scheduler='pbs' must be local or slurm"):
        submit.make_plan(submit.Missing(ready=[]), lambda _: 1.0, Profile(scheduler="pbs"), 1000)


def sctbench_submit(spec, folder, data):
    """The command for one run of the tiny suite."""
    what = ["--suite", "tiny", "--methods", spec.method, "--tasks", spec.task, "--backbone", "test_vit"]
    what += ["--weights", "random", "--image-size", "32", "--statistics", "half", "--recipe", "epochs=3000"]
    return sctbench("submit", *what, "--scheduler", "toy", "--gpus", "0", "--root", data.data, cwd=folder)
