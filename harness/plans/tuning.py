"""Tuning: which settings are tried, which of them wins, and the final run that takes the winner's.

Every method gets the same number of trials, the budget. The first trial is the method's default setting; the others are
drawn without repetition from the grid of its declared `search_space`, less what the user fixed. A method whose grid is
smaller than the budget tries all of it, and the record holds the true number. The draw depends on nothing but method,
grid and `SEED`, and a larger budget goes on where a smaller one ended.

A trial is an ordinary run of the protocol `validation`: trained on train, scored on val after the last epoch, with
training seed 0. The best by the task's primary metric wins; among equals the smallest learning rate (as VPT chooses),
then the earliest drawn. A failed trial counts as the worst, unless its failure says nothing about the setting: then it
is repeated before anything is chosen.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.errors import HarnessError
from harness.schema import metrics
from harness.schema.failures import CLASSES
from harness.schema.metrics import Metric
from harness.schema.record import ReadRecord, RunRecord, Trial, Tuning
from harness.schema.spec import RunSpec, digest
from methods.base import added_values

BUDGET = 8
"""Trials per method where the user does not say."""

SEED = 0
"""Of the draw, and of the trials' training."""

INCONCLUSIVE = frozenset(kind.name for kind in CLASSES.values() if not kind.conclusive)
"""Classes of failure that say nothing about the setting that was tried."""


def draw(
    method: str, space: Mapping[str, Sequence[Any]], default: Mapping[str, Any], budget: int
) -> list[dict[str, Any]]:
    """The settings to try, each a value for every key of `space`: `default` first, then others of the grid."""
    grid = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    others = [setting for setting in grid if setting != default]
    # Ordered by hash: the same on every machine and in every version of Python, unlike a shuffle.
    others.sort(key=lambda setting: digest([method, dict(space), setting, SEED]))
    return [dict(default), *others[: budget - 1]]


def setting(spec: RunSpec, keys: Sequence[str]) -> dict[str, Any]:
    """A run's values of `keys`, which are fields of its recipe or knobs of its method."""
    values = {**dataclasses.asdict(spec.recipe), **spec.config}
    if not values.keys() >= set(keys):  # knobs that hold the value they were added with
        from methods import registry  # loads torch

        values |= added_values(registry.get(spec.method).Config)
    return {key: values[key] for key in keys}


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedRun:
    """A run whose settings its trials decide."""

    trials: tuple[RunSpec, ...]
    """In the order drawn."""

    seed: int
    """Training seed of the final run."""

    budget: int
    """Trials allowed; there are fewer where the grid is smaller."""

    space: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """What was searched: recipe fields and knobs with their candidate values."""

    @property
    def cell(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What the finals of one cell share, whatever their seed: run ids of the trials, and what was searched."""
        return tuple(spec.run_id for spec in self.trials), tuple(self.space)

    def tuning(self, read: ReadRecord) -> Tuning | None:
        """What the trials gave and which of them won; None while one of them is open."""
        records = [record for spec in self.trials if (record := read(spec)) and not _is_open(record)]
        if len(records) < len(self.trials):
            return None
        complete = (record.primary_metric for record in records if record.status == "complete")
        metric = metrics.get(next(complete, metrics.ACCURACY.name))
        trials = [_trial(record, tuple(self.space), metric) for record in records]
        return Tuning(
            metric=metric.name,
            budget=self.budget,
            space={key: list(values) for key, values in self.space.items()},
            trials=trials,
            chosen=_best(trials, self.trials, metric),
            seconds=sum(trial.seconds for trial in trials),
        )

    def spec(self, read: ReadRecord) -> RunSpec | None:
        """The final run; None while a trial is open. Where all trials failed it has the default setting, and will fail
        with the reason."""
        tuning = self.tuning(read)
        if tuning is None:
            return None
        return dataclasses.replace(
            self.trials[tuning.chosen or 0],
            protocol="tuned",
            seed=self.seed,
            trials=self.budget,
            searched=tuple(sorted(self.space)),
        )


WorkItem = RunSpec | TunedRun
"""What an executor does: a run, or one whose settings its trials have decided."""


def representative_spec(job: WorkItem) -> RunSpec:
    """A run that costs what the job does: the settings of a final run are not known yet."""
    return job if isinstance(job, RunSpec) else dataclasses.replace(job.trials[0], protocol="tuned", seed=job.seed)


def resolve(job: WorkItem, read: ReadRecord) -> tuple[RunSpec, Tuning | None]:
    """The run that a job stands for now, and what chose its settings. `HarnessError` while a trial is missing."""
    if isinstance(job, RunSpec):
        return job, None
    spec, tuning = job.spec(read), job.tuning(read)
    if spec is None or tuning is None:
        missing = [trial.run_id for trial in job.trials if not (record := read(trial)) or _is_open(record)]
        where = f"{job.trials[0].method} on {job.trials[0].task}"
        raise HarnessError(f"{where}: {len(missing)} of {len(job.trials)} trials are not done: {', '.join(missing)}")
    return spec, tuning


def _is_open(record: RunRecord) -> bool:
    """Whether the trial has to be repeated before its setting can be judged."""
    return record.failure is not None and record.failure.kind in INCONCLUSIVE


def _trial(record: RunRecord, keys: tuple[str, ...], metric: Metric) -> Trial:
    complete, cost = record.status == "complete", record.cost
    score = record.metrics["val"].values.get(metric.name) if complete else None
    return Trial(
        run_id=record.spec.run_id,
        setting=setting(record.spec, keys),
        score=score,
        seconds=cost.seconds if cost else 0.0,
        reason=f"no {metric.title} on val" if complete and score is None else record.reason,
        data=record.data.digest if record.data else "",
    )


def _best(trials: Sequence[Trial], specs: Sequence[RunSpec], metric: Metric) -> int | None:
    """Number of the winning trial; None if none has a score."""
    ranked = [
        (-metric.sign * trial.score, spec.recipe.lr, number)
        for number, (trial, spec) in enumerate(zip(trials, specs, strict=True))
        if trial.score is not None
    ]
    return min(ranked)[2] if ranked else None
