"""Fixtures shared by all rooms: small real timm models, and a method's context over random images."""

from __future__ import annotations

import gc
import os
from unittest import mock

# One thread per test process: the models are tiny, and pytest-xdist fills the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

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


def pytest_collection_finish():
    """What libraries made on import stays for good, and looking through it for garbage took a tenth of the tests' time:
    leave it out, and look less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def pytest_unconfigure():
    """At exit libraries are cleared away as ever; some complain of leaks otherwise."""
    gc.unfreeze()
