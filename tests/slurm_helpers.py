"""Submitting tiny runs to a cluster and watching them, for the tests of `slurm`."""

import dataclasses
import multiprocessing
import os
import pickle
import subprocess
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from harness.children import apart
from harness.plans import plan
from harness.records import status
from harness.records.store import Store
from slurm import submit
from slurm.profile import Profile
from slurm.schedulers import SCHEDULERS
from slurm.status import submitted_runs
from slurm.submissions import Log
from tests import tiny
from tests.examples import make_record

SCRIPT = Path(__file__).with_name("slurm") / "local_cluster.sh"

SMALL = Profile(gpus=0, cpus=1, time=30, signal_delay=60)
"""Two jobs fit on a node of the local cluster."""


LOCAL = dataclasses.replace(SMALL, scheduler="local")


def one_each(**changes):
    """A profile with a job for each run."""
    return dataclasses.replace(SMALL, runs_per_job=1, **changes)


def send(setup, runs, profile=SMALL, limit=1000):
    """Submit runs; returns the submission."""
    plan = submit.make_plan(submit.Missing(ready=runs), lambda _: 1.0, profile, limit)
    return submit.send(plan, setup, Log(setup.root), print)


def send_tuned(setup, **selection):
    """Submit what is missing of a tuned selection; returns the submission and the finals."""
    missing = todo(setup, protocol="tuned", trials=2, **selection)
    made = submit.make_plan(missing, lambda _: 1.0, one_each(), 1000)
    finals = plan.finals(tiny.selection(protocol="tuned", trials=2, **selection))
    return submit.send(made, setup, Log(setup.root), print), finals


def todo(setup, **selection):
    """What a selection lacks in the folder, for the scheduler `slurm`."""
    held = submit.held_keys(Log(setup.root), "slurm")
    return submit.todo(tiny.selection(**selection), Store(setup.root), held)


def complete(setup, spec, **changes):
    """Write a record of a run that ended after everything else."""
    made = make_record(spec=spec, **changes)
    Store(setup.root).write(dataclasses.replace(made, environment={"finished": "9999"}))


def shown(root):
    """What `sctbench status` counts of a folder."""
    queued = [run.as_status() for run in submitted_runs(root)[0]]
    runs = status.with_queue(status.of_folder(root), queued, only=False)
    return Counter((run.protocol, run.state) for run in runs)


def job_ids(array):
    """Ids of the jobs of an array of SLURM's."""
    return SCHEDULERS["slurm"].job_ids(array)


def wait(until, timeout=300):
    """Wait until a condition holds; returns its value. The longer it takes, the rarer it is asked: each question to a
    cluster starts two processes, and the runs need the cores."""
    start = time.monotonic()
    while not (value := until()):
        waited = time.monotonic() - start
        assert waited < timeout, f"waited {timeout} s\n{cluster_now()}"
        time.sleep(min(0.1 + waited / 20, 2))
    return value


def cluster_now():
    """What SLURM says of its jobs and nodes, for the message of a test that waited in vain."""
    if "SLURM_CONF" not in os.environ:
        return ""
    jobs = run_slurm("squeue", "-O", "jobid,partition,state,reason,nodelist,restartcnt")
    return jobs + run_slurm("sinfo", "-N", "-o", "%N %P %T %E")


def standing(root):
    """How many runs are in which state."""
    return Counter(run.state for run in submitted_runs(root)[0])


def by_key(root):
    """The state of each run."""
    return {run.placement.run_id: run for run in submitted_runs(root)[0]}


def ended(root):
    """Whether no run waits or runs any more."""
    return not {"pending", "running"} & set(standing(root))


def start_work(file, log):
    """Do a pickled job in a process of its own, which starts at once: a server has imported what it needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.slurm_helpers", "slurm.job_runner"])
    process = context.Process(target=_work, args=(file, log))
    with apart():
        process.start()
    return process


def _work(file, log):
    with log.open("w") as output, redirect_stdout(output), redirect_stderr(output):
        pickle.loads(file.read_bytes())()


def run_slurm(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
