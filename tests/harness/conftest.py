"""Tiny runs in this process: their images, and what a worker is told."""

import pytest

from harness.execution import worker
from harness.training import callbacks
from harness.training.checkpointing import StopRequest
from tests import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders of the tiny suite's images; a test that alters them writes its own."""
    return tiny.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def setup(tmp_path, data, monkeypatch):
    """Setup of a worker, which this process is from now on: no stop is requested, every step is reported."""
    monkeypatch.setenv("SCTBENCH_CACHE", str(data.data / "cache"))
    monkeypatch.setattr(worker, "STOP", StopRequest())
    monkeypatch.setattr(callbacks, "REPORT_EVERY_SECONDS", 0.0)
    made = tiny.setup(tmp_path / "results", data)
    worker.init_worker(made)
    return made
