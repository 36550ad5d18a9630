"""One run, from spec to record: data, backbone, attach, train, evaluate once, cost."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from harness import device as devices
from harness import environment
from harness.data.held_out_guard import allowed
from harness.data.lists import Roots
from harness.data.splits import Split, TaskData
from harness.errors import DataError, HarnessError, Interrupted
from harness.schema import failures, protocol
from harness.schema.failures import Diverged, Failure
from harness.schema.preprocessing import Preprocessing
from harness.schema.record import Cost, Fingerprint, Metrics, RunRecord, Tuning, same_data
from harness.schema.spec import RunSpec
from harness.training import evaluation
from harness.training.attached_model import AttachedModel
from harness.training.checkpointing import Checkpointer
from harness.training.cost import PeakMemory, of_inference, state_bytes, state_digest
from harness.training.epoch_evaluator import EpochEvaluator
from harness.training.trainer import Report, Trainer, images_per_epoch
from methods import registry
from suites import SUITES
from suites.base import Suite, Task

Splits = Callable[[], dict[str, Split]]


def find_task(spec: RunSpec) -> tuple[Suite, Task]:
    """The suite and task that a spec names."""
    suite = SUITES[spec.suite]
    return suite, suite.task(spec.task)


def identity(spec: RunSpec, device: torch.device, data: Fingerprint, trained_on: str) -> dict[str, Any]:
    """What a training state must have been made with for this run to go on from it exactly."""
    return {
        "run_id": spec.run_id,
        "device": device.type,
        "code": environment.source_digest(),
        "method_source": registry.source_digest(spec.method),  # one of the user's own lies outside of our sources
        "data": asdict(data),
        "trained_on": trained_on,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """A training that has ended."""

    prepared: AttachedModel
    trainer: Trainer
    watch: EpochEvaluator | None
    """What was seen after each epoch, where something was looked at."""

    resumed: list[int]
    """Steps at which it was resumed."""


def _looked_at(rule: protocol.Protocol, data: TaskData, trained_on: str, curve: bool) -> Splits | None:
    """What is scored after every epoch: test if the protocol chooses by it; for a curve val, where it is not trained
    on; else nothing."""
    on_val = curve and trained_on == "train" and data.has("val")
    if not rule.every_epoch and not on_val:
        return None

    def splits() -> dict[str, Split]:
        with allowed():
            return data.open_test() if rule.every_epoch else {"val": data.train("val")}

    return splits


def _train(
    spec: RunSpec,
    data: Split,
    task: Task,
    preprocessing: Preprocessing,
    looked_at: Splits | None,
    report: Report | None,
    keep: Checkpointer | None,
    precision: str | None = None,
) -> _Trained:
    """A trained model, from the newest saved state if there is one; it goes on in the precision of that state."""
    device = data.labels.device
    saved = keep.states.newest(device) if keep else None
    precision = precision or devices.precision_in_use(spec.recipe.precision, device)
    if saved and saved["precision"] != precision:
        if devices.can(saved["precision"], device):
            precision = saved["precision"]
        else:
            print(f"{spec.run_id}: begun anew, {device} cannot go on in {saved['precision']}", file=sys.stderr)
            saved = None
    recipe = replace(spec.recipe, precision=precision)
    prepared = AttachedModel(spec, data, task.num_classes, preprocessing, saved["model"]["memory"] if saved else None)
    trainer = Trainer(prepared.model, prepared.attachment, data, preprocessing, recipe, spec.seed)

    def score() -> dict[str, Metrics]:
        assert looked_at is not None
        return evaluation.evaluate(prepared.model, looked_at(), task, preprocessing, trainer.precision)

    watch = EpochEvaluator(score) if looked_at else None
    resumed: list[int] = []
    if saved:
        prepared.load_state(saved["model"])
        trainer.load_state(saved["trainer"])
        if watch and saved["watch"]:
            watch.load_state(saved["watch"])
        resumed = [*saved["resumed"], trainer.step]

    def state() -> dict[str, Any]:
        seen = watch.state() if watch else None
        made = {"precision": trainer.precision, "resumed": resumed}
        return {"model": prepared.state(), "trainer": trainer.state(), "watch": seen, **made}

    def boundary(epoch_ends: bool) -> None:
        assert keep is not None
        keep(trainer.step, epoch_ends, state)

    trainer.fit(report, boundary if keep else None, watch.look if watch else None)
    return _Trained(prepared=prepared, trainer=trainer, watch=watch, resumed=resumed)


def run(
    spec: RunSpec,
    device: torch.device,
    roots: Roots | None = None,
    report: Report | None = None,
    keep: Checkpointer | None = None,
    tuning: Tuning | None = None,
    curve: bool = False,
    precision: str | None = None,
) -> RunRecord:
    """Do one run, from where `keep` has it if it has. Errors propagate; `attempt` turns them into failed records.

    `tuning`: what chose the settings of a tuned run. `curve`: score val after every epoch, where it is not trained on.
    `precision`: what to compute in, where the recipe leaves it to the device and this is to be another's.
    """
    rule = protocol.get(spec.protocol)
    _check_tuning(rule, tuning)
    suite, task = find_task(spec)
    preprocessing = Preprocessing.from_id(spec.preprocessing)
    split = suite.final_split if rule.final else "train"
    data = TaskData(
        suite,
        task,
        preprocessing,
        roots,
        spec.shots,
        spec.split_seed,
        looks=rule.looks(spec.recipe.epochs),
        val_is_scored=rule.report_split == "val" or (curve and split == "train"),
    )
    train = data.train(split).to(device)
    looked_at = _looked_at(rule, data, split, curve)
    data.decode(rule.report_split)
    if looked_at and not rule.every_epoch:
        data.decode("val")
    fingerprint = data.fingerprint()  # behind the arrays, out of which it takes the pixels' digests
    if tuning:
        _check_trials(tuning, fingerprint)
    if keep:
        keep.states.must_match(identity(spec, device, fingerprint, split))
    memory = PeakMemory(device)
    with data.guard(split).enforced():
        trained = _train(spec, train, task, preprocessing, looked_at, report, keep, precision)
    peak = memory.allocated()
    _check_finite(trained)
    scored = _score(rule, data, trained, task, preprocessing)
    resident, state = memory.resident(), trained.prepared.trained_state()
    weights, stored = state_digest(state), state_bytes(state)  # before the measurements, which merge the model
    cost = Cost(
        evaluate_seconds=scored.seconds,
        trained_bytes=stored,
        peak_memory_bytes=peak,
        peak_resident_bytes=resident,
        step_seconds=trained.trainer.step_seconds,
        computed_once=trained.trainer.path.start,
        **_measured(trained, len(train), preprocessing),
    )
    return RunRecord(
        spec=spec,
        **of_method(spec.method),
        status="complete",
        metrics=scored.metrics,
        last_epoch=scored.last_epoch,
        curve=trained.trainer.curve,
        weights=weights,
        parameters=trained.prepared.parameters,
        cost=cost,
        data=fingerprint,
        test_looks=scored.looks,
        method_info=trained.prepared.attachment.info,
        tuning=tuning,
        environment=environment.describe(device, trained.trainer.precision) | {"resumed_at_steps": trained.resumed},
    )


def _check_finite(trained: _Trained, metrics: Mapping[str, Metrics] | None = None) -> None:
    """Raise `Diverged` if a trained tensor or a loss of `metrics` is not finite: no training loss has seen the last
    update."""
    if metrics is None:
        values = [bool(p.isfinite().all()) for p in trained.prepared.model.parameters() if p.requires_grad]
    else:
        values = [math.isfinite(one.loss) for one in metrics.values()]
    if not all(values):
        what = "a trained tensor" if metrics is None else "the loss on held-out data"
        raise Diverged(trained.trainer.step, trained.trainer.recipe.epochs, what)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    """What a trained model is worth."""

    metrics: dict[str, Metrics]
    last_epoch: dict[str, Metrics]
    seconds: float
    looks: int


def _score(
    rule: protocol.Protocol, data: TaskData, trained: _Trained, task: Task, preprocessing: Preprocessing
) -> _Scored:
    """The result by the protocol's rule: of the last epoch, or of the best of those looked at."""
    watch = trained.watch
    if rule.every_epoch and watch:
        return _Scored(metrics=watch.best, last_epoch=watch.last, seconds=watch.seconds, looks=watch.epochs)
    start = time.perf_counter()
    held_out = data.open_test() if rule.report_split == "test" else {"val": data.train("val")}
    metrics = evaluation.evaluate(trained.prepared.model, held_out, task, preprocessing, trained.trainer.precision)
    _check_finite(trained, metrics)
    return _Scored(metrics=metrics, last_epoch={}, seconds=time.perf_counter() - start, looks=data.test_looks)


def _measured(trained: _Trained, images: int, preprocessing: Preprocessing) -> dict[str, Any]:
    """Fields of `Cost` that a trained model gives: seconds so far, operations and latencies. The model is merged."""
    prepared, trainer = trained.prepared, trained.trainer
    seen = images_per_epoch(images, trainer.recipe) * trainer.recipe.epochs
    return {
        "attach_seconds": prepared.attach_seconds,
        "train_seconds": trainer.seconds,
        "train_images_per_second": seen / trainer.seconds,
        **of_inference(prepared.model, prepared.attachment.merge, preprocessing, trainer.precision),
    }


def _check_tuning(rule: protocol.Protocol, tuning: Tuning | None) -> None:
    """`HarnessError` for a tuned run without trials, or whose trials all failed."""
    if not rule.tunes:
        return
    if tuning is None:
        raise HarnessError(f"a run of the protocol {rule.name!r} needs the trials that chose its settings")
    if tuning.chosen is None:
        raise HarnessError(f"all {len(tuning.trials)} trials failed, the first: {tuning.trials[0].reason}")


def _check_trials(tuning: Tuning, data: Fingerprint) -> None:
    """`DataError` for trials that were tried on other data than the run has."""
    other = [trial.run_id for trial in tuning.trials if trial.data and not same_data(trial.data, data.digest)]
    if other:
        raise DataError(
            f"{len(other)} of {len(tuning.trials)} trials were tried on other lists or images than there are now: "
            f"take another --out, or delete their folders: {', '.join(other)}"
        )


def attempt(
    spec: RunSpec,
    device: torch.device,
    roots: Roots | None = None,
    report: Report | None = None,
    keep: Checkpointer | None = None,
    tuning: Tuning | None = None,
    curve: bool = False,
    precision: str | None = None,
) -> RunRecord:
    """`run`, where whatever goes wrong becomes a failed record with reason and class. `Interrupted` passes through."""
    try:
        record = run(spec, device, roots, report, keep, tuning, curve, precision)
        record.to_json()  # what JSON has no number for is this run's failure and not its process's end
        return record
    except Interrupted:
        raise
    except Exception as error:  # a defect in a method must not stop the other runs
        reason, failure = failures.describe(error)
        if failure.kind == "memory" and devices.is_shared(device):
            failure = replace(failure, kind="memory_shared")
    where = environment.describe(device, precision or devices.precision_in_use(spec.recipe.precision, device))
    return replace(failed_record(spec, reason, failure, where), tuning=tuning)


def failed_record(spec: RunSpec, reason: str, failure: Failure, environment: dict[str, Any] | None = None) -> RunRecord:
    """The record of a run that failed."""
    return RunRecord(
        spec=spec,
        **of_method(spec.method),
        status="failed",
        reason=reason,
        failure=failure,
        environment=environment or {},
    )


def of_method(name: str) -> dict[str, Any]:
    """What a record says of its method, which whoever reads it may not have."""
    cls = registry.get(name)
    return {
        "method_title": cls.title,
        "method_family": cls.family,
        "method_paper": cls.paper,
        "method_source": registry.source_digest(name),
    }
