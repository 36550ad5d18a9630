"""Fixtures shared by all rooms: small real timm models, and a method's context over random images."""

# ruff: noqa: E402 (what is set before an import is for it)

from __future__ import annotations

import atexit
import gc
import os
from unittest import mock

# One thread per test process: the models are tiny, and pytest-xdist fills the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What imports make stays, and looking through it took a tenth of their time, see `pytest_collection_finish`.
gc.disable()

import pytest
import torch

# Triton decides when it is imported (timm does) whether kernels are compiled or interpreted.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from methods import registry
from methods.testbed import CLASSES, batch, make_context, small_swin, small_vit

__all__ = ["CLASSES", "batch", "make_context", "small_swin", "small_vit"]


@pytest.fixture
def vit():
    return small_vit()


@pytest.fixture
def swin():
    return small_swin()


@pytest.fixture
def context():
    return make_context()


@pytest.fixture(scope="module", autouse=True)
def forgotten_afterwards():
    """Methods that a file of tests made known by path are not known to the next file."""
    with mock.patch.dict(registry._external):
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """As many as there are cores: processes that share one take a third more of its time each."""
    return len(os.sched_getaffinity(0))


TESTS_APART = ("test_conformance.py", "test_every_option.py", "test_fast_path.py")
"""Files of many tests that share nothing but what those of one method do, which differ after the last hyphen."""

LONGEST = ("test_main_job.py", "test_wheel.py", "test_door.py", "test_local.py", "test_weights.py", "test_trackers.py")
"""Files whose tests take tens of seconds."""


def pytest_collection_modifyitems(items):
    """The longest come first, and what can be split comes last: no process has a long file to itself in the end."""
    items.sort(key=lambda item: (item.path.name in TESTS_APART, item.path.name not in LONGEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay in one process, so that what they share is made once, but for `TESTS_APART`."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return file if not file.endswith(TESTS_APART) else nodeid.rpartition("-")[0] or nodeid

    return ByFile(config, log)


def pytest_collection_finish():
    """What libraries made on import stays for good, and looking through it for garbage took a tenth of the tests' time:
    leave it out, and look less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    gc.enable()
    atexit.register(gc.unfreeze)  # libraries are cleared away as ever; some complain of leaks otherwise
