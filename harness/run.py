"""One run, from spec to record: data, backbone, attach, train, evaluate once, cost."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from harness import backbones, environment, evaluation, protocol
from harness import device as devices
from harness.cost import Cost, count_parameters, forward_flops, state_bytes, trained_state
from harness.data import Split, TaskData
from harness.errors import USER_ERRORS
from harness.lists import Roots
from harness.preprocessing import Preprocessing
from harness.record import RunRecord
from harness.spec import RunSpec
from harness.trainer import Diverged, Report, Trainer, derived_seed, images_per_epoch, total_steps
from methods import registry
from methods.base import Attachment, Context
from suites import SUITES
from suites.base import Suite, Task


def find_task(spec: RunSpec) -> tuple[Suite, Task]:
    """The suite and task that a spec names."""
    suite = SUITES[spec.suite]
    return suite, suite.task(spec.task)


class Prepared:
    """A model with its method attached, ready to train."""

    def __init__(self, spec: RunSpec, data: Split, num_classes: int, preprocessing: Preprocessing) -> None:
        device = data.labels.device
        torch.manual_seed(derived_seed(spec.seed, "model"))
        self.model: Any = backbones.build(spec.backbone, num_classes, spec.recipe.drop_path).to(device)
        head = self.model.get_classifier()
        self._head = {id(p) for p in head.parameters()}
        self._pretrained = {id(p) for p in self.model.parameters()} - self._head
        self._buffers = {name for name, _ in self.model.named_buffers()}
        context = Context(
            num_classes=num_classes,
            device=device,
            generator=torch.Generator().manual_seed(derived_seed(spec.seed, "method")),
            total_steps=total_steps(len(data), spec.recipe),
            calibration=lambda size: ((preprocessing.normalise(x), y) for x, y in data.batches(size, device)),
        )
        start = time.perf_counter()
        method = registry.get(spec.method).configure(spec.config)
        self.attachment: Attachment = method.attach(self.model, context)
        self.attach_seconds = time.perf_counter() - start
        head.requires_grad_(True)
        self.parameters = count_parameters(self.model, self._pretrained, self._head)

    def trained_state(self) -> dict[str, Tensor]:
        """What must be stored beside the pretrained checkpoint."""
        return trained_state(self.model, self._buffers)


def run(spec: RunSpec, device: torch.device, roots: Roots | None = None, report: Report | None = None) -> RunRecord:
    """Do one run. Errors propagate; `attempt` turns them into failed records."""
    rule = protocol.get(spec.protocol)
    suite, task = find_task(spec)
    preprocessing = Preprocessing.from_id(spec.preprocessing)
    data = TaskData(
        suite, task, preprocessing, roots, spec.shots, spec.split_seed, looks=rule.looks(spec.recipe.epochs)
    )
    split = suite.final_split if rule.final else "train"
    train = data.train(split).to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with data.guard(split).shut():
        prepared = Prepared(spec, train, task.num_classes, preprocessing)
        trainer = Trainer(prepared.model, prepared.attachment, train, preprocessing, spec.recipe, spec.seed)
        start = time.perf_counter()
        curve = trainer.fit(report)
        train_seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None

    start = time.perf_counter()
    held_out = data.open_test() if rule.report_split == "test" else {"val": data.train("val")}
    metrics = evaluation.evaluate(prepared.model, held_out, task, preprocessing, trainer.precision)
    evaluate_seconds = time.perf_counter() - start
    cost = Cost(
        forward_flops=forward_flops(prepared.model, preprocessing),
        attach_seconds=prepared.attach_seconds,
        train_seconds=train_seconds,
        train_images_per_second=images_per_epoch(len(train), spec.recipe) * spec.recipe.epochs / train_seconds,
        evaluate_seconds=evaluate_seconds,
        trained_bytes=state_bytes(prepared.trained_state()),
        peak_memory_bytes=peak,
    )
    return RunRecord(
        spec=spec,
        method_title=registry.get(spec.method).title,
        status="complete",
        metrics=metrics,
        curve=curve,
        parameters=prepared.parameters,
        cost=cost,
        data=data.fingerprint(),
        test_looks=data.test_looks,
        method_info=prepared.attachment.info,
        environment=environment.describe(device, trainer.precision),
    )


def attempt(spec: RunSpec, device: torch.device, roots: Roots | None = None, report: Report | None = None) -> RunRecord:
    """`run`, where whatever goes wrong becomes a failed record with the reason."""
    try:
        return run(spec, device, roots, report)
    except (*USER_ERRORS, Diverged, torch.OutOfMemoryError) as error:
        reason = f"{type(error).__name__}: {error}"
    except Exception as error:  # a defect in a method must not stop the other runs
        reason = f"unexpected {type(error).__name__}: {error}"
    where = environment.describe(device, devices.precision_in_use(spec.recipe.precision, device))
    return RunRecord(
        spec=spec, method_title=registry.get(spec.method).title, status="failed", reason=reason, environment=where
    )
