"""One run, from spec to record: data, backbone, attach, train, evaluate once, cost."""

from __future__ import annotations

import hashlib
import inspect
import time
from pathlib import Path
from typing import Any

import torch

from harness import device as devices
from harness import environment, evaluation, failures, protocol
from harness.cost import Cost, PeakMemory, of_inference, state_bytes
from harness.data import Split, TaskData
from harness.errors import Interrupted
from harness.failures import Failure
from harness.lists import Roots
from harness.prepared import Prepared
from harness.preprocessing import Preprocessing
from harness.record import RunRecord
from harness.resume import Keeper
from harness.spec import RunSpec
from harness.trainer import Report, Trainer, images_per_epoch
from methods import registry
from suites import SUITES
from suites.base import Suite, Task


def find_task(spec: RunSpec) -> tuple[Suite, Task]:
    """The suite and task that a spec names."""
    suite = SUITES[spec.suite]
    return suite, suite.task(spec.task)


def identity(spec: RunSpec, device: torch.device) -> dict[str, Any]:
    """What a training state must have been made with for this run to go on from it exactly."""
    source = inspect.getsourcefile(registry.get(spec.method))
    return {
        "run_id": spec.run_id,
        "device": device.type,
        "precision": devices.precision_in_use(spec.recipe.precision, device),
        "method_code": hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else "",
    }


def _train(
    spec: RunSpec,
    data: Split,
    classes: int,
    preprocessing: Preprocessing,
    report: Report | None,
    keep: Keeper | None,
) -> tuple[Prepared, Trainer, list[int]]:
    """A trained model, from the newest saved state if there is one; and the steps at which it was resumed."""
    saved = keep.states.newest(data.labels.device) if keep else None
    prepared = Prepared(spec, data, classes, preprocessing, saved["model"]["memory"] if saved else None)
    trainer = Trainer(prepared.model, prepared.attachment, data, preprocessing, spec.recipe, spec.seed)
    resumed: list[int] = []
    if saved:
        prepared.load_state(saved["model"])
        trainer.load_state(saved["trainer"])
        resumed = [*saved["resumed"], trainer.step]

    def boundary(epoch_ends: bool) -> None:
        assert keep is not None
        keep(
            trainer.step,
            epoch_ends,
            lambda: {"model": prepared.state(), "trainer": trainer.state(), "resumed": resumed},
        )

    trainer.fit(report, boundary if keep else None)
    return prepared, trainer, resumed


def run(
    spec: RunSpec,
    device: torch.device,
    roots: Roots | None = None,
    report: Report | None = None,
    keep: Keeper | None = None,
) -> RunRecord:
    """Do one run, from where `keep` has it if it has. Errors propagate; `attempt` turns them into failed records."""
    rule = protocol.get(spec.protocol)
    suite, task = find_task(spec)
    preprocessing = Preprocessing.from_id(spec.preprocessing)
    data = TaskData(
        suite, task, preprocessing, roots, spec.shots, spec.split_seed, looks=rule.looks(spec.recipe.epochs)
    )
    split = suite.final_split if rule.final else "train"
    train = data.train(split).to(device)
    memory = PeakMemory(device)
    with data.guard(split).shut():
        prepared, trainer, resumed = _train(spec, train, task.num_classes, preprocessing, report, keep)
    peak = memory.allocated()

    start = time.perf_counter()
    held_out = data.open_test() if rule.report_split == "test" else {"val": data.train("val")}
    metrics = evaluation.evaluate(prepared.model, held_out, task, preprocessing, trainer.precision)
    evaluate_seconds = time.perf_counter() - start
    resident, stored = memory.resident(), state_bytes(prepared.trained_state())
    cost = Cost(
        attach_seconds=prepared.attach_seconds,
        train_seconds=trainer.seconds,
        train_images_per_second=images_per_epoch(len(train), spec.recipe) * spec.recipe.epochs / trainer.seconds,
        evaluate_seconds=evaluate_seconds,
        trained_bytes=stored,
        peak_memory_bytes=peak,
        peak_resident_bytes=resident,
        **of_inference(prepared.model, prepared.attachment.merge, preprocessing, trainer.precision),
    )
    return RunRecord(
        spec=spec,
        method_title=registry.get(spec.method).title,
        status="complete",
        metrics=metrics,
        curve=trainer.curve,
        parameters=prepared.parameters,
        cost=cost,
        data=data.fingerprint(),
        test_looks=data.test_looks,
        method_info=prepared.attachment.info,
        environment=environment.describe(device, trainer.precision) | {"resumed_at_steps": resumed},
    )


def attempt(
    spec: RunSpec,
    device: torch.device,
    roots: Roots | None = None,
    report: Report | None = None,
    keep: Keeper | None = None,
) -> RunRecord:
    """`run`, where whatever goes wrong becomes a failed record with reason and class. `Interrupted` passes through."""
    try:
        return run(spec, device, roots, report, keep)
    except Interrupted:
        raise
    except Exception as error:  # a defect in a method must not stop the other runs
        reason, failure = failures.describe(error)
    where = environment.describe(device, devices.precision_in_use(spec.recipe.precision, device))
    return failed_record(spec, reason, failure, where)


def failed_record(spec: RunSpec, reason: str, failure: Failure, environment: dict[str, Any] | None = None) -> RunRecord:
    """The record of a run that failed."""
    title = registry.get(spec.method).title
    return RunRecord(
        spec=spec, method_title=title, status="failed", reason=reason, failure=failure, environment=environment or {}
    )
