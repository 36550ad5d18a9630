"""Runs that take a fraction of a second: two tasks of a few images, and timm's smallest ViT from random weights."""

import dataclasses
import functools
import json

from harness.data.lists import Roots
from harness.execution.worker import Setup
from harness.models.backbones import resolve
from harness.plans import plan
from harness.plans.plan import Selection, choose_method
from harness.schema.preprocessing import Preprocessing
from suites import SUITES
from suites.base import Suite, Task
from tests import layouts

SIZES = {"train": 16, "val": 8, "test": 12}
SIDE = 32
TASKS = ("first", "second")
SUITE = Suite(
    name="tiny",
    title="Tiny",
    about="pieces of photographs",
    tasks=tuple(Task(name=name, group="all", num_classes=3, sizes=SIZES) for name in TASKS),
    recipe={"epochs": 3, "warmup_epochs": 0, "batch_size": 6, "lr": 1e-3, "precision": "float32"},
)


def write_data(root):
    """The tasks' folders below `root`."""
    for task in TASKS:
        layouts.vtab(root, task, sizes=tuple(SIZES.values()))
    return Roots(data=root)


def setup(root, data, **changes):
    """What a worker is told: results in `root`, images in `data`."""
    plain = Setup(device="cpu", root=root, data=data, weight_files={}, method_files=[], suites=[SUITE])
    return dataclasses.replace(plain, **changes)


@functools.cache
def backbone():
    """Found out once: timm builds a model to tell its size."""
    return resolve("test_vit", "random", SIDE)


def selection(methods=("lora",), seeds=1, tasks=("first",), protocol="fixed", trials=8, **recipe):
    """These methods, each a name or `(name, settings)`."""
    SUITES.setdefault(SUITE.name, SUITE)
    pairs = [(method, {}) if isinstance(method, str) else method for method in methods]
    return Selection(
        suite=SUITE,
        tasks=tuple(tasks),
        methods=tuple(choose_method(name, settings) for name, settings in pairs),
        seeds=tuple(range(seeds)),
        protocol=protocol,
        backbone=backbone(),
        preprocessing=Preprocessing(image_size=SIDE, mean=(0.5,) * 3, std=(0.5,) * 3),
        recipe=recipe,
        trials=trials,
    )


def specs(*choices, **further):
    """The runs of a `selection`."""
    return plan.expand(selection(*choices, **further))


def lasting(record):
    """What must be the same however often a run was disturbed: all but times, and where it ran."""
    document = json.loads(record.to_json())
    del document["environment"], document["digest"]
    cost = document["cost"] or {}
    timed = [key for key in cost if key.endswith(("_seconds", "_per_second", "_resident_bytes", "_joules"))]
    for key in timed:
        del cost[key]
    document["method_info"] = {k: v for k, v in document["method_info"].items() if not k.endswith("_seconds")}
    return document
