"""A job in this process, under submitit: signals, requeues, what kills leave behind, runs that others hold."""

import os
import pickle
import signal
import time

import pytest
from submitit.core.submission import process_job
from submitit.core.utils import DelayedSubmission, JobPaths, UncompletedJobError

from harness import environment, lease, sources
from harness.errors import HarnessError, Interrupted
from harness.execution import worker
from harness.plans.tuning import TunedRun
from harness.records.store import Store
from harness.schema.failures import Failure
from harness.training import callbacks
from harness.training.checkpointing import StopRequest
from harness.training.run import failed_record
from slurm import job_runner
from slurm.job_payload import Payload
from slurm.job_runner import RunsJob, Unfinished
from tests import tiny
from tests.examples import make_record

JOB = "100"


@pytest.fixture
def setup(tmp_path, data, monkeypatch):
    monkeypatch.setattr(callbacks, "REPORT_EVERY_SECONDS", 0.0)  # a report at every step
    monkeypatch.setattr(environment, "_submitted", {})
    monkeypatch.setattr(job_runner, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(job_runner, "HOLD_SECONDS", 0.0)
    for name, value in {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": JOB, "SLURMD_NODENAME": "n7"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path / "job"))
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    handlers = {
        number: signal.getsignal(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    }
    yield tiny.setup(tmp_path / "out", data)
    signal.alarm(0)
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture
def job(tmp_path, setup, monkeypatch):
    """Start the job once: in the process of a first start, or of a restart."""
    paths = JobPaths(tmp_path / "job", job_id=JOB)
    paths.folder.mkdir()

    def start(*runs, restarts=0, minutes=60, timeouts=3):
        monkeypatch.setattr(worker, "STOP", StopRequest())
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        if not restarts:
            work = RunsJob(setup=setup, items=runs, code={"commit": "old"})
            submitted = DelayedSubmission(Payload(pickle.dumps(work)))
            submitted.set_timeout(minutes, timeouts)
            submitted.dump(paths.submitted_pickle)
        process_job(paths.folder)

    start.paths = paths
    return start


def during_step(monkeypatch, step, action):
    """Let something happen while the run under way is at a step, once."""
    real, done = worker.execute_run, []

    def do(spec, setup, report=None):
        def listen(progress):
            if getattr(progress, "step", None) == step and not done:
                done.append(step)
                action()

        return real(spec, setup, listen)

    monkeypatch.setattr(worker, "execute_run", do)


def send(number):
    return lambda: os.kill(os.getpid(), number)


def record(setup, spec):
    return Store(setup.root).read(spec)


def saved(setup, spec):
    return sorted(path.name for path in (Store(setup.root).folder(spec) / "state").glob("*"))


def requeues(fake):
    return [call for call in fake.calls("scontrol") if call[0] == "requeue"]


def test_a_job_does_its_runs_and_the_record_tells_where(setup, job):
    specs = tiny.specs(["linear"], seeds=2)
    job(*specs)
    for spec in specs:
        told = record(setup, spec).environment
        assert told["slurm"] == {"job": JOB, "node": "n7", "restarts": 0}
        assert told["code_at_submission"] == {"commit": "old"} and told["code_changed"] is True


def test_a_job_that_has_imported_other_sources_than_were_submitted_does_nothing(setup, job, monkeypatch):
    (spec,) = tiny.specs(["linear"])
    monkeypatch.setattr(sources, "source_digest", lambda *_: "0ther")
    with pytest.raises(HarnessError, match="other sources"):
        job(spec)
    assert record(setup, spec) is None


def test_the_warning_signal_saves_the_state_and_queues_the_job_again(setup, job, fake, undisturbed, monkeypatch):
    first, second = tiny.specs(["lora", "linear"])
    during_step(monkeypatch, 4, send(signal.SIGUSR2))
    with pytest.raises(SystemExit):
        job(first, second)
    assert requeues(fake) == [["requeue", JOB]]
    assert saved(setup, first) == ["000000004.safetensors"]
    assert lease.read(Store(setup.root).folder(first)) is None
    job(restarts=1)
    assert tiny.lasting(record(setup, first)) == undisturbed(first)
    told = record(setup, first).environment
    assert (told["slurm"]["restarts"], told["resumed_at_steps"]) == (1, [4])
    assert record(setup, second).status == "complete"


def test_what_a_kill_left_of_submitits_files_does_not_stop_the_next_requeue(setup, job, fake, monkeypatch):
    (spec,) = tiny.specs()
    during_step(monkeypatch, 4, send(signal.SIGUSR2))
    for path in (job.paths.submitted_pickle, job.paths.result_pickle):
        path.with_name(path.name + ".save_tmp").write_text("torn")
    with pytest.raises(SystemExit):
        job(spec)
    assert requeues(fake) == [["requeue", JOB]]
    job(restarts=1)
    assert record(setup, spec).status == "complete"


def test_sigterm_alone_saves_the_state_and_does_not_come_back(setup, job, fake, undisturbed, monkeypatch):
    (spec,) = tiny.specs()
    during_step(monkeypatch, 5, send(signal.SIGTERM))
    with pytest.raises(Interrupted, match="SIGTERM"):
        job(spec)
    assert requeues(fake) == [] and saved(setup, spec) == ["000000005.safetensors"]
    job(restarts=1)
    assert tiny.lasting(record(setup, spec)) == undisturbed(spec)


def test_after_sigterm_a_job_waits_for_what_slurm_does_with_it(setup, job, fake, monkeypatch):
    """A preempted job that ends by itself is not queued again; the warning signal may come after SIGTERM."""
    (spec,) = tiny.specs()
    monkeypatch.setattr(job_runner, "HOLD_SECONDS", 60.0)
    monkeypatch.setattr(job_runner, "_sleep", lambda _: send(signal.SIGUSR2)())
    during_step(monkeypatch, 5, send(signal.SIGTERM))
    with pytest.raises(SystemExit):
        job(spec)
    assert requeues(fake) == [["requeue", JOB]] and saved(setup, spec) == ["000000005.safetensors"]


def test_a_node_without_scontrol_loses_the_job_but_not_the_state(setup, job, fake, monkeypatch):
    (spec,) = tiny.specs()
    monkeypatch.setenv("PATH", "/nowhere")
    during_step(monkeypatch, 4, send(signal.SIGUSR2))
    with pytest.raises(FileNotFoundError, match="scontrol"):
        job(spec)
    assert saved(setup, spec) and record(setup, spec) is None
    job(restarts=1)
    assert record(setup, spec).environment["resumed_at_steps"] == [4]


def test_too_many_time_outs_end_the_job_and_are_no_failure_of_the_run(setup, job, fake, monkeypatch):
    """With ten minutes or less submitit takes every signal for a time-out."""
    (spec,) = tiny.specs()
    during_step(monkeypatch, 4, send(signal.SIGUSR2))
    with pytest.raises(UncompletedJobError, match="timed-out too many times"):
        job(spec, minutes=10, timeouts=0)
    assert saved(setup, spec) and record(setup, spec) is None and requeues(fake) == []


def test_a_run_that_reaches_no_step_boundary_does_not_hold_the_requeue_up(setup, job, fake, monkeypatch):
    (spec,) = tiny.specs()
    monkeypatch.setattr(job_runner, "GRACE_SECONDS", 1)

    def hang():
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(60)

    during_step(monkeypatch, 4, hang)
    with pytest.raises(SystemExit):
        job(spec)
    assert requeues(fake) == [["requeue", JOB]] and record(setup, spec) is None
    job(restarts=1)
    assert record(setup, spec).status == "complete"


def test_a_run_that_another_holds_is_left_to_it(setup, job, monkeypatch):
    mine, other = tiny.specs(["linear", "lora"])
    monkeypatch.setattr(job_runner, "WAIT_SECONDS", 0.1)
    with lease.acquire(Store(setup.root).folder(other)), pytest.raises(Unfinished, match=r"lora .* is held by process"):
        job(other, mine)
    assert record(setup, mine).status == "complete" and record(setup, other) is None


def test_a_run_that_another_lets_go_is_done(setup, job, monkeypatch):
    (spec,) = tiny.specs(["linear"])
    held = lease.acquire(Store(setup.root).folder(spec))
    held.__enter__()
    looks = []

    def look(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            held.__exit__()

    monkeypatch.setattr(job_runner, "_sleep", look)
    job(spec)
    assert record(setup, spec).status == "complete" and len(looks) == 2


def test_a_final_run_gets_its_settings_when_it_starts(setup, job):
    trials = tuple(tiny.specs(["linear"], seeds=1, protocol="validation"))
    final = TunedRun(trials=trials, seed=2, budget=1)
    job(*trials, final)
    spec = final.spec(Store(setup.root).read)
    assert record(setup, spec).status == "complete" and spec.protocol == "tuned"


def test_a_final_run_without_its_trials_says_so(setup, job, monkeypatch):
    monkeypatch.setattr(job_runner, "WAIT_SECONDS", 0.1)
    with pytest.raises(Unfinished, match="waits for trials that have no record"):
        job(TunedRun(trials=tuple(tiny.specs(["linear"], protocol="validation")), seed=0, budget=1))


@pytest.mark.parametrize(("kind", "tries"), [("diverged", 0), ("killed", 1), ("disk_full", 1)])
def test_what_this_job_failed_at_is_not_tried_again_unless_it_may_succeed(setup, job, monkeypatch, kind, tries):
    (spec,) = tiny.specs(["linear"])
    where = {"slurm": {"job": JOB}}
    made = make_record(spec=spec, status="failed", reason="why", failure=Failure(kind=kind), environment=where)
    Store(setup.root).write(made)
    done = []
    monkeypatch.setattr(
        worker, "execute_run", lambda spec, setup: done.append(spec) or failed_record(spec, "why", Failure(kind=kind))
    )
    with pytest.raises(Unfinished, match="failed: why"):
        job(spec)
    assert len(done) == tries


def test_a_broken_gpu_gets_the_job_a_new_start_but_not_for_ever(setup, job, fake, monkeypatch):
    specs = tiny.specs(["linear"], seeds=2)
    monkeypatch.setattr(
        worker, "execute_run", lambda spec, setup: failed_record(spec, "CUDA error", Failure(kind="device"))
    )
    with pytest.raises(SystemExit):
        job(*specs)
    with pytest.raises(Unfinished, match="the runs after it were not started"):
        job(restarts=job_runner.RESTARTS)
    assert len(requeues(fake)) == 1
