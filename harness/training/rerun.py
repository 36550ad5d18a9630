"""A run repeated from its record alone, and compared with it bit for bit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness import device as devices
from harness.data.lists import Roots
from harness.errors import HarnessError
from harness.plans.experiment import suite_of_run
from harness.schema.keeping import Keeping
from harness.schema.metrics import METRICS
from harness.schema.record import RunRecord
from harness.training.recorded import find_backbone, find_method
from harness.training.run import RunContext, attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that is compared."""

    what: str
    before: str
    now: str

    @property
    def same(self) -> bool:
        return self.before == self.now


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A record and the run that repeated it."""

    results: list[Fact]
    """Status, data, accuracies, losses, curve, weights: digit for digit."""

    surroundings: list[Fact]
    """Facts of the environment that differ."""

    @property
    def identical(self) -> bool:
        return all(fact.same for fact in self.results)


def again(
    record: RunRecord,
    roots: Roots,
    weights: Path | None = None,
    method: str | None = None,
    suite: Path | None = None,
    device: str = "auto",
) -> RunRecord:
    """Repeat a record's run in this process, as a worker would and in the record's precision, writing nothing.

    `weights`, `method`, `suite`: the user's own files, where the run had any. `HarnessError` if one is missing or
    differs from what the run had.
    """
    spec, where = record.spec, devices.choose(device)
    suite_of_run(spec, str(suite) if suite else None)
    find_method(spec, method)
    find_backbone(spec, weights)
    precision = record.environment.get("precision")
    if precision and not devices.can(precision, where):
        raise HarnessError(
            f"the run was computed in {precision}, which {devices.describe(where)} cannot: choose another --device"
        )
    devices.use(where)
    if where.type == "cpu":
        torch.set_num_threads(1)  # as every worker
    ctx = RunContext(
        spec=spec, device=where, roots=roots, tuning=record.tuning, precision=precision, keeping=Keeping(weights="none")
    )
    return attempt(ctx).record


def compare(before: RunRecord, now: RunRecord) -> Comparison:
    """Compare two records of one run. `HarnessError` if they are of different runs."""
    if before.spec.run_id != now.spec.run_id:
        raise HarnessError(f"runs {before.spec.run_id} and {now.spec.run_id} are not the same run")
    old, results = _results(before), _results(now)
    unknown = {f"{split} {name}" for split in before.metrics for name in METRICS} | {"decoded pixels"}
    for name in unknown - old.keys():  # an old record does not know them
        results.pop(name, None)
    surroundings = _facts(_surroundings(before), _surroundings(now))
    return Comparison(results=_facts(old, results), surroundings=[fact for fact in surroundings if not fact.same])


def _facts(before: dict[str, str], now: dict[str, str]) -> list[Fact]:
    names = dict.fromkeys([*before, *now])
    return [Fact(what=name, before=before.get(name, "–"), now=now.get(name, "–")) for name in names]


def _results(record: RunRecord) -> dict[str, str]:
    """Results of a record as texts that are equal only if every bit is."""
    results = {"status": f"{record.status}: {record.reason}" if record.reason else record.status}
    if record.data:
        results |= {"lists": record.data.lists[:12], "images": record.data.files[:12]}
        results |= {"decoded pixels": record.data.pixels[:12]} if record.data.pixels else {}
    for split, metrics in record.metrics.items():
        results |= {f"{split} {name}": repr(value) for name, value in metrics.values.items()}
        results[f"{split} right per class"] = str(metrics.correct_per_class)
    for epoch in record.curve:
        results[f"epoch {epoch.epoch}"] = f"loss {epoch.train_loss!r}, {epoch.train_accuracy!r} %"
    return results | ({"weights": record.weights[:12]} if record.weights else {})


def _surroundings(record: RunRecord) -> dict[str, str]:
    """The environment without what always differs: the time, and where the run was resumed."""
    facts = {key: value for key, value in record.environment.items() if key not in ("finished", "resumed_at_steps")}
    source = {"method source": record.method_source[:12]} if record.method_source else {}
    return dict(_flat(facts, "")) | source


def _flat(value: Any, name: str) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in _flat(item, f"{name} {key}".strip())]
    return [(name, str(value))]


def summary(comparison: Comparison) -> str:
    """One line on the outcome."""
    results = comparison.results
    if comparison.identical:
        return f"bit-identical: all {len(results)} results, curve and weights among them"
    differing = [fact for fact in results if not fact.same]
    epochs = [fact.what for fact in differing if fact.what.startswith("epoch ")]
    since = f"; the curve differs since {epochs[0]}" if epochs else ""
    return f"not identical: {len(differing)} of {len(results)} results differ{since}"
