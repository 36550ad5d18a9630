"""A real SLURM for tests marked `slurm`: started once per session, ended with it unless it was up before."""

import os
import subprocess
from pathlib import Path

import pytest

from harness.execution import worker
from harness.records.store import Store
from slurm.schedulers import slurm as slurm_scheduler
from tests import tiny
from tests.fake_slurm import Fake
from tests.slurm_helpers import SCRIPT


def missing_rights():
    """Why the local cluster cannot run here; empty if it can."""
    if os.geteuid() != 0:
        return "the local SLURM cluster needs root"
    probe = subprocess.run(["unshare", "--uts", "--pid", "--fork", "--mount-proc", "true"], capture_output=True)
    return "" if probe.returncode == 0 else "the local SLURM cluster needs CAP_SYS_ADMIN (unshare is not permitted)"


@pytest.fixture(scope="session")
def slurm():
    """The folder of a running cluster, with SLURM_CONF set; skips with the reason where there can be none."""
    reason = missing_rights()
    if reason and os.environ.get("CI") != "true":
        pytest.skip(reason)
    was_up = subprocess.run([SCRIPT, "status"], capture_output=True).returncode == 0
    started = subprocess.run([SCRIPT, "start"], capture_output=True, text=True)
    assert started.returncode == 0, f"{reason}\n{started.stdout}{started.stderr}"
    os.environ["SLURM_CONF"] = started.stdout.split("SLURM_CONF=")[1].strip()
    yield Path(os.environ["SLURM_CONF"]).parent
    del os.environ["SLURM_CONF"]
    if not was_up:
        subprocess.run([SCRIPT, "stop"], check=True)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    roots = tiny.write_data(tmp_path_factory.mktemp("data"))
    os.environ["SCTBENCH_CACHE"] = str(roots.data / "cache")  # the jobs inherit it
    yield roots
    del os.environ["SCTBENCH_CACHE"]


@pytest.fixture(scope="session")
def undisturbed(data, tmp_path_factory):
    """What runs give in this process, by spec; each is done once."""
    made = tiny.setup(tmp_path_factory.mktemp("undisturbed"), data)
    worker.init_worker(made)

    def lasting(spec):
        return tiny.lasting(Store(made.root).complete(spec) or worker.execute_run(spec, made))

    return lasting


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A mocked cluster, see `fake_slurm`."""
    monkeypatch.setattr(slurm_scheduler, "_sleep", lambda _: None)
    (tmp_path / "bin").mkdir()
    return Fake(tmp_path / "bin").install(monkeypatch)


@pytest.fixture
def setup(tmp_path, data, fake):
    """What jobs are told, on a cluster that starts none."""
    return tiny.setup(tmp_path / "out", data)
