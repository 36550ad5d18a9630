"""One run, from spec to record: load, attach, train, score once, measure."""

import math
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from harness import device as devices
from harness import environment, sources
from harness.data.held_out_guard import allowed
from harness.data.lists import Roots
from harness.data.splits import Split, TaskData
from harness.errors import DataError, HarnessError, Interrupted
from harness.plans.experiment import suite_of_run
from harness.records import predictions as predictions_file
from harness.records.store import PREDICTIONS_NAME, WEIGHTS_NAME
from harness.schema import failures, protocol
from harness.schema.failures import Diverged, Failure
from harness.schema.keeping import Keeping
from harness.schema.metrics import get as get_metric
from harness.schema.preprocessing import Preprocessing
from harness.schema.record import Cost, Fingerprint, Metrics, RunRecord, StoredFile, Tuning, same_data
from harness.schema.spec import RunSpec
from harness.training import evaluation, weights
from harness.training.attached_model import AttachedModel, Calibration
from harness.training.callbacks import Callback, DecodingReporter, ProgressReporter, Report
from harness.training.checkpointing import Checkpointer
from harness.training.cost import EnergyMeter, PeakMemory, of_inference, state_bytes, state_digest
from harness.training.evaluation import Evaluation
from harness.training.trackers import Trackers
from harness.training.trainer import Trainer, total_steps
from methods import registry
from suites.base import Suite, Task

MEASURED_IMAGES = 8
"""Training images that operations and latencies are measured on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """A run and everything it is done with."""

    spec: RunSpec
    device: torch.device
    roots: Roots | None = None
    """Folders of the data; None for suites that bring their own."""

    report: Report | None = None
    """Called with the training's progress."""

    checkpointer: Checkpointer | None = None
    """Saves the training's state; the run goes on from the newest one."""

    tuning: Tuning | None = None
    """What chose the settings of a tuned run."""

    curve: bool = False
    """Whether val is scored after every epoch, where it is not trained on."""

    trackers: Trackers | None = None
    """Draw the training's curves."""

    precision: str | None = None
    """What to compute in instead of what the recipe's `auto` means on this device."""

    keeping: Keeping = field(default_factory=Keeping)

    @property
    def suite(self) -> Suite:
        return suite_of_run(self.spec, None)

    @property
    def task(self) -> Task:
        return self.suite.task(self.spec.task)

    @property
    def protocol(self) -> protocol.Protocol:
        return protocol.get(self.spec.protocol)

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.from_id(self.spec.preprocessing)

    @property
    def trained_on(self) -> str:
        """Name of the split that is trained on."""
        return self.suite.final_split if self.protocol.final else "train"

    @property
    def precision_in_use(self) -> str:
        return self.precision or devices.precision_in_use(self.spec.recipe.precision, self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """What a run starts from."""

    splits: TaskData
    train: Split
    """On the run's device."""

    scores_val: bool
    """Whether val is scored after every epoch."""

    fingerprint: Fingerprint
    saved: dict[str, Any] | None
    """The training state to go on from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What a trained model scores."""

    outcome: Evaluation
    last_epoch: dict[str, Metrics]
    """Metrics of the last epoch, where `outcome` is that of the best."""

    seconds: float
    looks: int
    """How often the test split was opened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run's record, and what else is to be kept of it."""

    record: RunRecord
    files: dict[str, bytes] = field(default_factory=dict)
    """Content of each file that the record names."""


def run(ctx: RunContext) -> Finished:
    """Do one run, from its saved state if it has one. Errors propagate; `attempt` turns them into failed records."""
    _check_tuning(ctx)
    data = load(ctx)
    evaluator = epoch_evaluator(ctx, data)
    memory, energy = PeakMemory(ctx.device), EnergyMeter(ctx.device)
    with data.splits.guard(ctx.trained_on).enforced():
        model = attach(ctx, data)
        trainer = train(ctx, data, model, evaluator, energy)
    peak = memory.allocated()
    tensors = [p for p in model.model.parameters() if p.requires_grad]
    _check_finite(trainer, "a trained tensor", all(bool(tensor.isfinite().all()) for tensor in tensors))
    scores = score(ctx, data, trainer, evaluator)
    joules = energy.fields()
    files, digest = kept_files(ctx, data, model, scores), state_digest(model.trained_state())
    cost = measure(model, trainer, scores, peak, memory.resident(), joules)  # merges the model
    done = record(ctx, data, model, trainer, scores, digest, cost)
    stored = {name: StoredFile.of(content) for name, content in files.items()}
    return Finished(record=replace(done, files=stored), files=files)


def load(ctx: RunContext) -> RunData:
    """Lists, images and, if the run was stopped, its training state. Whatever is scored later is decoded here, so that
    a missing image shows before the training."""
    rule, split = ctx.protocol, ctx.trained_on
    splits = TaskData(
        ctx.suite,
        ctx.task,
        ctx.preprocessing,
        ctx.roots,
        ctx.spec.shots,
        ctx.spec.split_seed,
        looks=rule.looks(ctx.spec.recipe.epochs),
        val_is_scored=rule.report_split == "val" or (ctx.curve and split == "train"),
    )
    advance = DecodingReporter(ctx.report) if ctx.report else None
    train = splits.train(split, advance).to(ctx.device)
    scores_val = not rule.every_epoch and ctx.curve and split == "train" and splits.has("val")
    splits.decode(rule.report_split, advance)
    if scores_val:
        splits.decode("val", advance)
    fingerprint = splits.fingerprint(advance=advance)  # takes the pixels' digests from the arrays decoded above
    _check_trials(ctx.tuning, fingerprint)
    saved = _saved_state(ctx, fingerprint)
    return RunData(splits=splits, train=train, scores_val=scores_val, fingerprint=fingerprint, saved=saved)


def _saved_state(ctx: RunContext, data: Fingerprint) -> dict[str, Any] | None:
    """The newest training state that this run can go on from exactly."""
    if ctx.checkpointer is None:
        return None
    store = ctx.checkpointer.states
    store.must_match(identity(ctx, data))
    saved = store.newest(ctx.device)
    if saved and saved["precision"] != ctx.precision_in_use and not devices.can(saved["precision"], ctx.device):
        where = f"{ctx.device} cannot go on in {saved['precision']}"
        print(f"{ctx.spec.run_id}: starts from the beginning, {where}", file=sys.stderr)
        return None
    return saved


def identity(ctx: RunContext, data: Fingerprint) -> dict[str, Any]:
    """What a training state must have been made with for this run to go on from it exactly."""
    return {
        "run_id": ctx.spec.run_id,
        "device": ctx.device.type,
        "code": sources.source_digest(),
        "method_source": registry.source_digest(ctx.spec.method),  # the user's own lie outside of our sources
        "data": asdict(data),
        "trained_on": ctx.trained_on,
    }


def epoch_evaluator(ctx: RunContext, data: RunData) -> evaluation.EpochEvaluator | None:
    """What scores every epoch: on test if the protocol chooses by it, on val for a curve; else None."""
    if not ctx.protocol.every_epoch and not data.scores_val:
        return None

    def held_out() -> dict[str, Split]:
        with allowed():
            return {"val": data.splits.train("val")} if data.scores_val else data.splits.open_test()

    return evaluation.EpochEvaluator(held_out, ctx.task, get_metric(ctx.spec.chosen_by), ctx.keeping.logits)


def attach(ctx: RunContext, data: RunData) -> AttachedModel:
    """The backbone with its method attached."""
    memory = data.saved["callbacks"][AttachedModel.name]["memory"] if data.saved else None
    return AttachedModel(
        ctx.spec,
        ctx.task.num_classes,
        device=ctx.device,
        total_steps=total_steps(len(data.train), ctx.spec.recipe),
        calibration=_calibration(data.train, ctx.preprocessing),
        memory=memory,
    )


def _calibration(data: Split, preprocessing: Preprocessing) -> Calibration:
    """Holds the split that is trained on, and nothing from which a method could reach another."""
    device = data.labels.device
    return lambda size: ((preprocessing.normalise(images), labels) for images, labels in data.batches(size, device))


def train(
    ctx: RunContext,
    data: RunData,
    model: AttachedModel,
    evaluator: evaluation.EpochEvaluator | None,
    energy: EnergyMeter | None = None,
) -> Trainer:
    """Train the model to the end of its recipe, from the saved state if there is one, in that state's precision."""
    reporter = ProgressReporter(ctx.report) if ctx.report else None
    # the checkpointer saves what all others did
    followers: list[Callback | None] = [model, evaluator, energy, reporter, ctx.trackers, ctx.checkpointer]
    callbacks = [callback for callback in followers if callback]
    recipe = replace(ctx.spec.recipe, precision=data.saved["precision"] if data.saved else ctx.precision_in_use)
    trainer = Trainer(model.model, model.attachment, data.train, ctx.preprocessing, recipe, ctx.spec.seed, callbacks)
    if data.saved:
        trainer.load_state_dict(data.saved)
    trainer.fit()
    return trainer


def score(ctx: RunContext, data: RunData, trainer: Trainer, evaluator: evaluation.EpochEvaluator | None) -> Scores:
    """The result by the protocol's rule: of the last epoch, or of the best of those looked at."""
    if ctx.protocol.every_epoch and evaluator:
        best, last = evaluator.best, evaluator.last
        return Scores(outcome=best, last_epoch=last, seconds=evaluator.seconds, looks=evaluator.epochs)
    start = time.perf_counter()
    held_out = data.splits.open_test() if ctx.protocol.report_split == "test" else {"val": data.splits.train("val")}
    outcome = evaluation.evaluate(
        trainer.model, held_out, ctx.task, ctx.preprocessing, trainer.precision, ctx.keeping.logits
    )
    losses = [metrics.loss for metrics in outcome.metrics.values()]
    _check_finite(trainer, "the loss on held-out data", all(map(math.isfinite, losses)))
    return Scores(outcome=outcome, last_epoch={}, seconds=time.perf_counter() - start, looks=data.splits.test_looks)


def _check_finite(trainer: Trainer, what: str, finite: bool) -> None:
    """Raise `Diverged` if something is not finite after the last update, which no training loss has seen."""
    if not finite:
        raise Diverged(trainer.step, trainer.recipe.epochs, what)


def kept_files(ctx: RunContext, data: RunData, model: AttachedModel, scores: Scores) -> dict[str, bytes]:
    """Content of the files that lie beside the record. The weights are those of the last epoch."""
    digests = data.splits.list_digests
    predictions = {
        name: replace(one, list_digest=digests[name.removesuffix("/masked")])
        for name, one in scores.outcome.predictions.items()
    }
    files = {PREDICTIONS_NAME: predictions_file.encode(predictions)}
    if content := weights.content(model, ctx.keeping):
        files[WEIGHTS_NAME] = content
    return files


def measure(
    model: AttachedModel,
    trainer: Trainer,
    scores: Scores,
    peak: int | None,
    resident: int | None,
    joules: dict[str, Any],
) -> Cost:
    """What the run cost. `peak`, `resident`: bytes of the device's allocator and of the process; `joules`: fields of
    `Cost`. Merges the model."""
    shown = trainer.data.images[:MEASURED_IMAGES]
    images, labels = trainer.preprocessing.normalise(shown), trainer.data.labels[:MEASURED_IMAGES]
    return Cost(
        attach_seconds=model.attach_seconds,
        train_seconds=trainer.seconds,
        evaluate_seconds=scores.seconds,
        train_images_per_second=trainer.images * trainer.recipe.epochs / trainer.seconds,
        step_seconds=trainer.step_seconds,
        cached_features=trainer.plan.start,
        trained_bytes=state_bytes(model.trained_state()),
        peak_memory_bytes=peak,
        peak_resident_bytes=resident,
        **joules,
        **of_inference(trainer.model, trainer.attachment, images, labels, trainer.precision),
    )


def record(
    ctx: RunContext,
    data: RunData,
    model: AttachedModel,
    trainer: Trainer,
    scores: Scores,
    digest: str,
    cost: Cost,
) -> RunRecord:
    """The record of a complete run. `digest`: of what was trained."""
    resumed = ctx.checkpointer.resumed_at if ctx.checkpointer else []
    steps = {"training_steps": trainer.step_mode} if ctx.device.type == "cuda" else {}
    return RunRecord(
        spec=ctx.spec,
        **of_method(ctx.spec.method),
        status="complete",
        primary_metric=ctx.task.metric,
        class_names=list(ctx.task.class_names),
        metrics=scores.outcome.metrics,
        last_epoch=scores.last_epoch,
        curve=trainer.curve,
        weights=digest,
        parameters=model.parameters,
        cost=cost,
        data=data.fingerprint,
        test_looks=scores.looks,
        method_info=model.attachment.info,
        tuning=ctx.tuning,
        environment=environment.describe(ctx.device, trainer.precision) | {"resumed_at_steps": resumed} | steps,
    )


def _check_tuning(ctx: RunContext) -> None:
    """`HarnessError` for a tuned run without trials, or whose trials all failed or were judged by another metric."""
    if not ctx.protocol.tunes:
        return
    if ctx.tuning is None:
        raise HarnessError(f"a run of the protocol {ctx.protocol.name!r} needs the trials that chose its settings")
    if ctx.tuning.chosen is None:
        trials = ctx.tuning.trials
        raise HarnessError(f"all {len(trials)} trials failed, the first: {trials[0].reason}")
    if ctx.tuning.metric != ctx.task.metric:
        raise DataError(
            f"the trials were judged by {ctx.tuning.metric}, and the metric of task {ctx.task.name!r} is now "
            f"{ctx.task.metric}: take another --out, or delete the trials' folders"
        )


def _check_trials(tuning: Tuning | None, data: Fingerprint) -> None:
    """`DataError` for trials that were tried on other data than the run has."""
    trials = tuning.trials if tuning else []
    other = [trial.run_id for trial in trials if trial.data and not same_data(trial.data, data.digest)]
    if other:
        raise DataError(
            f"{len(other)} of {len(trials)} trials were tried on other lists or images than there are now: "
            f"take another --out, or delete their folders: {', '.join(other)}"
        )


def attempt(ctx: RunContext) -> Finished:
    """`run`, where whatever goes wrong becomes a failed record with reason and class. `Interrupted` passes through."""
    try:
        done = run(ctx)
        done.record.to_json()  # a number that JSON does not have is this run's failure and not its process's end
        return done
    except Interrupted:
        raise
    except Exception as error:  # a defect in a method must not stop the other runs
        reason, failure = failures.describe(error)
        if failure.kind == "memory" and devices.is_shared(ctx.device):
            failure = replace(failure, kind="memory_shared")
    where = environment.describe(ctx.device, ctx.precision_in_use)
    return Finished(record=replace(failed_record(ctx.spec, reason, failure, where), tuning=ctx.tuning))


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
    """What a record says of its method, which its reader may not have."""
    cls = registry.get(name)
    return {
        "method_title": cls.title,
        "method_family": cls.family,
        "method_paper": cls.paper,
        "method_source": registry.source_digest(name),
    }
