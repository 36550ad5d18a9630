"""Many realistic records out of a seed: whole suites with the spread, holes and accidents of real ones.

By hand, from the repository's root: `PYTHONPATH=. python tests/record_population.py FOLDER --records 100000` writes
that many records of VTAB-1K.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
from pathlib import Path

import numpy as np

from harness.records.store import RECORD_NAME, Store
from harness.schema.record import Cost, Epoch, Parameters, RunRecord
from harness.schema.spec import BackboneSpec, Recipe, digest
from methods.registry import all_methods
from suites import SUITES
from tests.examples import make_metrics, make_record, make_spec

BASE = BackboneSpec(name="vit_base_patch16_224.orig_in21k", weights="pretrained", digest="cd" * 32, image_size=224)
METHODS = {
    "linear": (0, -16.0),
    "bitfit": (102_912, -8.0),
    "sct": (111_744, 1.4),
    "adaptformer": (156_768, -0.1),
    "adapter_pfeiffer": (156_768, -1.0),
    "ssf": (205_056, 0.6),
    "lora": (294_912, 0.0),
    "vpt_deep": (460_800, -3.0),
    "fact_tk": (69_120, 0.7),
    "full": (85_798_656, -7.0),
}
"""Method to parameters without head on ViT-B/16, and points above LoRA's on VTAB-1K, about as published."""


def seeded(*parts):
    """A generator of its own for each thing, so that records do not depend on the order in which they are made."""
    return np.random.default_rng(int(hashlib.sha256(repr(parts).encode()).hexdigest()[:16], 16))


def level(suite, task, method):
    """Accuracy that the method's runs on the task scatter around."""
    base = seeded("task", suite, task).uniform(30, 95)
    gap = METHODS.get(method, (0, seeded("method", method).uniform(-5, 2)))[1]
    return float(np.clip(base + gap * (1.4 - base / 100) + seeded(suite, task, method).normal(0, 1.2), 3, 99.5))


def curve(spec, accuracy):
    """Losses and accuracies that fall and rise with noise."""
    noise = seeded("curve", spec.run_id)
    epochs = np.arange(1, spec.recipe.epochs + 1)
    share = 1 - np.exp(-epochs / (spec.recipe.epochs / 6))
    reached = (accuracy + (100 - accuracy) * 0.6) * share + noise.normal(0, 1.0, len(epochs))
    losses = 0.05 + 3.5 * (1 - share) + 0.05 * noise.random(len(epochs))
    points = zip(epochs.tolist(), losses.round(5).tolist(), reached.clip(0, 100).round(3).tolist(), strict=True)
    return [Epoch(epoch=e, train_loss=loss, train_accuracy=a, lr=1e-3) for e, loss, a in points]


def channels(spec):
    """Twelve choices of channels that tasks share in part."""
    count = spec.config.get("channels") or 96
    usual = seeded("usual").permutation(768)[: int(1.6 * count)]
    return [
        sorted(seeded("channels", spec.task, place).permutation(np.roll(usual, 17 * place))[:count].tolist())
        for place in range(12)
    ]


def record(spec, shift=0.0, **changes):
    """A complete record of the spec: accuracy, curve, cost and parameters to be expected on a GPU."""
    noise = seeded("run", spec.run_id)
    spread = 0.25 if spec.method != "vpt_deep" else 0.9
    accuracy = float(np.clip(level(spec.suite, spec.task, spec.method) + shift + noise.normal(0, spread), 0, 100))
    added = METHODS.get(spec.method, (int(seeded(spec.method).integers(5_000, 900_000)), 0))[0]
    classes = next((t.num_classes for t in SUITES[spec.suite].tasks if t.name == spec.task), 10)
    seconds = (120 + 25 * np.log1p(added / 1e4)) * noise.uniform(0.97, 1.03)
    memory = int((3.1 + 0.4 * np.log1p(added / 1e5)) * 2**30)
    lists = f"{spec.suite}/{spec.task}/{spec.split_seed}/{spec.shots}"
    values = {
        "method_title": all_methods()[spec.method].title if spec.method in all_methods() else spec.method.title(),
        "metrics": {"test": dataclasses.replace(make_metrics(round(accuracy, 4)), **per_class(accuracy, classes))},
        "curve": curve(spec, accuracy),
        "parameters": Parameters(
            method=0 if spec.method == "full" else added,
            backbone_trained=added if spec.method == "full" else 0,
            head=769 * classes,
            total=85_800_000 + added,
        ),
        "cost": Cost(
            forward_flops=35_100_000_000 + 400 * added,
            attach_seconds=4.0 if spec.method == "sct" else 0.2,
            train_seconds=round(float(seconds), 2),
            train_images_per_second=round(1e5 / float(seconds), 1),
            evaluate_seconds=round(float(noise.uniform(8, 30)), 2),
            trained_bytes=4 * (added + 769 * classes),
            peak_memory_bytes=memory,
        ),
        "data": dataclasses.replace(make_record().data, files=lists),
        "environment": {"device": "NVIDIA A100 80GB", "device_type": "cuda", "precision": "bf16"},
        "method_info": {"selection_seconds": 3.6, "channels": channels(spec)} if spec.method == "sct" else {},
    }
    return make_record(spec=spec, **(values | changes))


def per_class(accuracy, classes):
    """Counts per class that fit the accuracy."""
    return {"images_per_class": [40] * classes, "correct_per_class": [round(0.4 * accuracy)] * classes}


def failed(spec, reason="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB"):
    """A record of failure."""
    title = all_methods()[spec.method].title if spec.method in all_methods() else spec.method.title()
    return RunRecord(spec=spec, method_title=title, status="failed", reason=reason)


def spec_of(suite, task, method, seed=0, **changes):
    """The spec of a run on ViT-B/16 with 100 epochs."""
    own = {"sct": {"channels": 96, "mode": "attn"}, "lora": {"rank": 8}}.get(method, {})
    values = {
        "config": own,
        "backbone": BASE,
        "protocol": "fixed",
        "recipe": Recipe(),
        "preprocessing": "224px-squash-bicubic-inception",
    }
    return make_spec(suite=suite, task=task, method=method, seed=seed, **(values | changes))


def vtab(methods=tuple(METHODS), seeds=3, **changes):
    """A whole VTAB-1K."""
    tasks = [task.name for task in SUITES["vtab1k"].tasks]
    return [
        record(spec_of("vtab1k", t, m, s, **changes)) for m, t, s in itertools.product(methods, tasks, range(seeds))
    ]


def ablation(values=(12, 24, 48, 96, 192, 384), seeds=3):
    """SCT with several numbers of channels on three tasks of each group."""
    tasks = ("cifar100", "dtd", "svhn", "eurosat", "resisc45", "kitti", "dmlab", "clevr_count")
    return [
        record(
            spec_of("vtab1k", t, "sct", s, config={"channels": k, "mode": "attn"}, protocol="validation"),
            shift=-1.2 * abs(np.log2(k / 96)),
        )
        for k, t, s in itertools.product(values, tasks, range(seeds))
    ]


def few_shot(methods=("linear", "sct", "lora", "adaptformer", "vpt_deep", "ssf")):
    """The few-shot suite: five data sets, five numbers of shots, three draws."""
    return [
        record(
            spec_of("fewshot", t.name, m, shots=k, split_seed=d),
            shift=9 * np.log2(k) - 25 + seeded("draw", t.name, k, d).normal(0, 1.5),
        )
        for m, t, k, d in itertools.product(methods, SUITES["fewshot"].tasks, (1, 2, 4, 8, 16), range(3))
    ]


def domain(methods=("linear", "sct", "lora", "adaptformer", "vpt_deep", "ssf"), seeds=3):
    """ImageNet 16-shot and its four targets, the masked scores of two of them beside the others."""
    falls = {"test": 0, "imagenetv2": 11, "imagenet-sketch": 46, "imagenet-a": 62, "imagenet-r": 44}
    given = []
    for method, draw in itertools.product(methods, range(seeds)):
        spec = spec_of("domain_generalization", "imagenet", method, shots=16, split_seed=draw)
        noise = seeded("targets", spec.run_id)
        base = 70 + METHODS[method][1] / 4
        values = {name: base - fall + noise.normal(0, 0.3) for name, fall in falls.items()}
        values |= {f"{name}/masked": values[name] + 12 for name in ("imagenet-a", "imagenet-r")}
        given.append(record(spec, metrics={name: make_metrics(round(value, 3)) for name, value in values.items()}))
    return given


def tuned(methods=("linear", "sct", "lora"), seeds=3):
    """VTAB-1K under the protocol `tuned`: a learning rate per method and task."""
    rates = (1e-3, 5e-3, 1e-2)
    return [
        record(
            dataclasses.replace(
                one.spec,
                protocol="tuned",
                trials=9,
                searched=("lr", "weight_decay"),
                recipe=Recipe(lr=rates[int(seeded("lr", one.spec.method, one.spec.task).integers(3))]),
            ),
            shift=0.8,
        )
        for one in vtab(methods, seeds)
    ]


def write(root, records):
    """Lay the records out as `Store` does, without its flushes to disk, which would take hours for so many."""
    store = Store(Path(root))
    for one in records:
        _put(store.folder(one.spec), one.to_json())


def _put(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD_NAME).write_text(text)


def write_many(root, count):
    """`count` records of VTAB-1K: all methods, as many seeds as it takes, one run in a hundred failed.

    Seeds of a cell differ in what tables show and share the rest, for records made one by one take five times as long.
    """
    store, cells = Store(Path(root)), list(itertools.product(all_methods(), [t.name for t in SUITES["vtab1k"].tasks]))
    for number, (method, task) in enumerate(cells):
        first = spec_of("vtab1k", task, method)
        good, bad = json.loads(record(first).to_json()), json.loads(failed(first).to_json())
        base = good["metrics"]["test"]["values"]["accuracy"]
        for seed in range((count - number - 1) // len(cells) + 1):
            noise = seeded(method, task, seed)
            body = {**(bad if noise.random() < 0.01 else good)}
            spec = dataclasses.replace(first, seed=seed)
            body |= {"spec": spec.as_dict(), "run_id": spec.run_id}
            if body["metrics"]:
                accuracy = min(100.0, base + round(noise.normal(0, 0.3), 4))
                body |= {
                    "metrics": {"test": {**body["metrics"]["test"], "values": {"accuracy": accuracy, "loss": 1.25}}}
                }
            del body["digest"]
            _put(store.folder(spec), json.dumps(body | {"digest": digest(body)}, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--records", type=int, default=100_000)
    arguments = parser.parse_args()
    write_many(arguments.folder, arguments.records)
