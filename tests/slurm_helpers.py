"""Submitting tiny runs to a cluster and watching them, for the tests of `slurm`."""

import os
import subprocess
import time
from collections import Counter
from pathlib import Path

from slurm import submit
from slurm.clusters import CLUSTERS
from slurm.profile import Profile
from slurm.status import states
from slurm.submissions import Log

SCRIPT = Path(__file__).parents[1] / "slurm" / "local_cluster.sh"

SMALL = Profile(gpus=0, cpus=1, time=30, signal_delay=60)
"""Two jobs fit on a node of the local cluster."""


def seconds(job):
    return 1.0


def send(setup, runs, profile=SMALL, cluster="slurm", limit=1000):
    """Submit runs; returns the submission."""
    where, log = CLUSTERS[cluster], Log(setup.root)
    plan = submit.make_plan(runs, [], seconds, profile, where, limit)
    return submit.send(plan, submit.absolute(setup), profile, where, log, print)


def wait(until, timeout=300):
    """Wait until a condition holds; returns its value."""
    end = time.monotonic() + timeout
    while not (value := until()):
        assert time.monotonic() < end, f"waited {timeout} s\n{cluster_now()}"
        time.sleep(0.1)
    return value


def cluster_now():
    """What SLURM says of its jobs and nodes, for the message of a test that waited in vain."""
    if "SLURM_CONF" not in os.environ:
        return ""
    jobs = run_slurm("squeue", "-O", "jobid,partition,state,reason,nodelist,restartcnt")
    return jobs + run_slurm("sinfo", "-N", "-o", "%N %P %T %E")


def standing(root):
    """How many runs are in which state."""
    return Counter(state.state for state in states(root)[0])


def by_key(root):
    """The state of each run."""
    return {state.place.run_id: state for state in states(root)[0]}


def ended(root):
    """Whether no run waits or runs any more."""
    return not {"pending", "running"} & set(standing(root))


def run_slurm(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
