"""Records and sets that the tests of this folder share."""

import dataclasses

import numpy as np

from analysis.columns import frame_of
from analysis.frame import comparable_sets
from analysis.index import Runs
from harness.records.predictions import Predictions, encode
from harness.records.store import PREDICTIONS_NAME, Store
from harness.schema.record import Cost, Parameters, RunRecord, StoredFile
from harness.schema.spec import Recipe
from tests.examples import make_metrics, make_record, make_spec

TASKS = ["photo_crops", "animals", "digits", "dsprites_loc", "dsprites_ori"]


def records(method="sct", accuracies=(10, 20, 30, 40, 50), seed=0, **changes):
    specs = [make_spec(task=task, method=method, seed=seed, **changes) for task in TASKS]
    return [make_record(spec=s, accuracy=float(a)) for s, a in zip(specs, accuracies, strict=False)]


def from_records(given, rejected=()):
    """`analysis.runs.Runs` of records that are in memory."""
    by_id = {record.spec.run_id: record for record in given}
    return Runs(frame_of(by_id.values()), lambda rows: [by_id[name] for name in rows["run_id"]], list(rejected))


def only_set(given):
    (chosen,) = comparable_sets(given)
    return chosen


def cells(table, row):
    """Cells of a row by (group, name) of their column."""
    return dict(zip((column.key for column in table.columns), table.cells(row), strict=True))


def failed(**changes):
    spec = make_spec(**changes)
    return RunRecord(spec=spec, method_title=spec.method.upper(), status="failed", reason="out of memory")


def costed(record, **changes):
    """The record with other costs and parameters: fields of `Cost` and `Parameters` by name."""
    names = {f.name for f in dataclasses.fields(Cost)}
    cost = dataclasses.replace(record.cost, **{k: v for k, v in changes.items() if k in names})
    names = {f.name for f in dataclasses.fields(Parameters)}
    parameters = dataclasses.replace(record.parameters, **{k: v for k, v in changes.items() if k in names})
    return dataclasses.replace(record, cost=cost, parameters=parameters)


def with_holes():
    """Three methods on the demo's tasks: two seeds, one seed on a task, a failed run, and a task that is missing."""
    linear = records("linear", (10.04, 20, 30, 40, 50)) + records("linear", (12, 20, 31, 41, 52), seed=1)
    sct = records("sct", (40.5, 60, 70, 80, 90)) + records("sct", (41.5, 62, 71, 80, 91), seed=1)[:4]
    lora = [r for r in records("lora", (50, 60, 0, 10, 30)) if r.spec.task not in ("digits", "dsprites_loc")]
    lora.append(failed(task="digits", method="lora"))
    title = {"lora": "LoRA & co_100% {<|>} ± † x", "linear": "Linear"}
    named = [dataclasses.replace(r, method_title=title.get(r.spec.method, "SCT")) for r in linear + sct + lora]
    return [costed(r, method=14112, head=385) if r.parameters and r.spec.method == "sct" else r for r in named]


def few_shot(method, values, suite="fewshot", shots=(1, 4), split_seeds=(0, 1)):
    """values: task -> accuracy at the first shots and split seed; the others are 10 and 1 higher."""
    return [
        make_record(
            spec=make_spec(suite=suite, task=task, method=method, shots=k, split_seed=split),
            accuracy=float(value + 10 * i + split),
            data=f"{task}{k}{split}",
        )
        for task, value in values.items()
        for i, k in enumerate(shots)
        for split in split_seeds
    ]


def domain(method="sct", accuracies=(70, 60, 30, 10, 12, 25, 29), **changes):
    names = [
        "test",
        "imagenetv2",
        "imagenet-sketch",
        "imagenet-a",
        "imagenet-a/masked",
        "imagenet-r",
        "imagenet-r/masked",
    ]
    spec = make_spec(suite="domain_generalization", task="imagenet", method=method, shots=16, **changes)
    return make_record(spec=spec, metrics={n: make_metrics(a) for n, a in zip(names, accuracies, strict=True)})


def recipe(**changes):
    return Recipe(**{"epochs": 2, "warmup_epochs": 0, **changes})


def predictions(predicted, of="list", logits=None):
    """Of images of class 0, on the list of that name."""
    classes = np.asarray(predicted, np.uint16)
    unknown = np.full(len(classes), 0.5, np.float32)
    kept = None if logits is None else np.asarray(logits, np.float16)
    return Predictions(
        labels=np.zeros_like(classes),
        predicted=classes,
        probability=unknown,
        label_probability=unknown,
        logits=kept,
        list_digest=of,
    )


def write_with_predictions(root, record, kept):
    """The record, with the predictions' accuracy, and they beside it; returns their file."""
    content = encode({"test": kept})
    changes = {"metrics": {"test": make_metrics(100 * kept.correct.mean())}}
    changes["files"] = {PREDICTIONS_NAME: StoredFile.of(content)}
    path = Store(root).write(dataclasses.replace(record, **changes), {PREDICTIONS_NAME: content})
    return path.with_name(PREDICTIONS_NAME)
