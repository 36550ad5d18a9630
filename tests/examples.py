"""A run spec, a run record and a method from outside, for tests that need one."""

import re
from pathlib import Path

from harness.records import index
from harness.schema.record import Cost, Epoch, Fingerprint, Metrics, Parameters, RunRecord
from harness.schema.spec import BackboneSpec, Recipe, RunSpec

METHODS_README = Path(__file__).parents[1] / "methods" / "README.md"


def make_spec(**changes):
    backbone = BackboneSpec(name="demo_vit", weights="pretrained", digest="ab" * 32, image_size=56)
    values = {
        "method": "sct",
        "config": {"channels": 48},
        "backbone": backbone,
        "suite": "demo",
        "task": "digits",
        "protocol": "fixed",
        "recipe": Recipe(epochs=2, warmup_epochs=0),
        "preprocessing": "56px-squash-bicubic-imagenet",
        "seed": 0,
    }
    return RunSpec(**(values | changes))


def make_metrics(accuracy):
    values = {"accuracy": float(accuracy), "loss": 1.25}
    return Metrics(values=values, correct_per_class=[1, 2], images_per_class=[2, 2])


def make_record(accuracy=71.5, data="d", **changes):
    spec = changes.pop("spec", None) or make_spec()
    values = {
        "spec": spec,
        "method_title": spec.method.upper(),
        "status": "complete",
        "metrics": {"test": make_metrics(accuracy)},
        "curve": [Epoch(epoch=1, train_loss=2.0, train_accuracy=50.0, lr=1e-3)],
        "parameters": Parameters(method=10, backbone_trained=0, head=5, total=100),
        "cost": Cost(
            forward_flops=1,
            attach_seconds=0.5,
            train_seconds=3.0,
            train_images_per_second=2.0,
            evaluate_seconds=0.5,
            trained_bytes=4,
            peak_memory_bytes=None,
        ),
        "data": Fingerprint(lists="l", files=data, sizes={"train": 1}),
        "test_looks": 1,
        "environment": {"device": "cpu", "precision": "float32"},
    }
    return RunRecord(**(values | changes))


def write_example_method(folder):
    """The method that methods/README.md shows, as a file in `folder`; returns its reference."""
    file = Path(folder) / "example.py"
    file.write_text(re.findall(r"```python\n(.*?)```", METHODS_README.read_text(), re.DOTALL)[0])
    return f"{file}:Example"


def stored(root):
    """All valid records of a results folder, and the files that were set aside, with the reason."""
    outcomes = index.read_changed(root, index.record_stamps(root), {}, lambda record: record).values()
    valid = [outcome for outcome in outcomes if isinstance(outcome, RunRecord)]
    return valid, [outcome for outcome in outcomes if not isinstance(outcome, RunRecord)]
