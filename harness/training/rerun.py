"""A run done again from its record alone, and compared with it: to the bit, or in what it differs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness import device as devices
from harness.data.lists import Roots
from harness.errors import HarnessError
from harness.models import backbones
from harness.plans.experiment import find_suite
from harness.records.store import RECORD_NAME, read_record
from harness.schema.record import BadRecord, Epoch, RunRecord
from harness.schema.spec import RunSpec
from harness.training.run import attempt
from methods import registry
from suites import SUITES


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that is compared."""

    what: str
    before: str
    now: str

    @property
    def same(self) -> bool:
        """Whether it came out the same."""
        return self.before == self.now


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A record and the run that repeated it."""

    results: list[Fact]
    """Status, data, accuracies, losses, curve, weights: digit for digit."""

    surroundings: list[Fact]
    """Facts of the environment that are not the same."""

    @property
    def identical(self) -> bool:
        """Whether everything came out bit for bit."""
        return all(fact.same for fact in self.results)


def read(path: Path) -> RunRecord:
    """The record in a file, or in a run's folder. `HarnessError` if there is no valid one."""
    file = path / RECORD_NAME if path.is_dir() else path
    try:
        return read_record(file)
    except OSError as error:
        raise HarnessError(f"{file}: cannot be read ({error.strerror})") from None
    except BadRecord as error:
        raise HarnessError(f"{file}: no valid record: {error}") from None


def again(
    record: RunRecord,
    roots: Roots,
    weights: Path | None = None,
    method: str | None = None,
    suite: Path | None = None,
    device: str = "auto",
) -> RunRecord:
    """Do a record's run again in this process, as a worker would and in the precision of the record, writing nothing.

    `weights`, `method`, `suite`: the user's own files, where the run had any. `HarnessError` if one is missing or is
    another than the run had.
    """
    spec, place = record.spec, devices.choose(device)
    if method is not None and (given := registry.add_file(method).name) != spec.method:
        raise HarnessError(f"--method {method} is {given!r}, and the run's method is {spec.method!r}")
    if suite is not None and (named := find_suite(str(suite)).name) != spec.suite:
        raise HarnessError(f"--suite {suite} is {named!r}, and the run's suite is {spec.suite!r}")
    if spec.suite not in SUITES:
        raise HarnessError(f"suite {spec.suite!r} is not known here: give its file with --suite")
    registry.get(spec.method)
    found = backbones.resolve(spec.backbone.name, str(weights) if weights else _weights(spec), spec.backbone.image_size)
    if found.digest != spec.backbone.digest:
        raise HarnessError(
            f"the run had a checkpoint {spec.backbone.weights!r} with sha256 {spec.backbone.digest[:12]}..., "
            f"not {found.digest[:12]}...: give the file with --weights"
        )
    precision = record.environment.get("precision")
    if precision and not devices.can(precision, place):
        raise HarnessError(
            f"the run was computed in {precision}, which {devices.describe(place)} cannot: choose another --device"
        )
    devices.use(place)
    if place.type == "cpu":
        torch.set_num_threads(1)  # as every worker
    return attempt(spec, place, roots, tuning=record.tuning, precision=precision)


def _weights(spec: RunSpec) -> str:
    """What `backbones.resolve` is told where the user names no file. `HarnessError` if the run had one."""
    if spec.backbone.weights not in ("pretrained", "random"):
        raise HarnessError(f"the run had its checkpoint from a file {spec.backbone.weights!r}: give it with --weights")
    return spec.backbone.weights


def compare(before: RunRecord, now: RunRecord) -> Comparison:
    """What is the same in two records of one run. `HarnessError` if they are not of one run."""
    if before.spec.run_id != now.spec.run_id:
        raise HarnessError(f"runs {before.spec.run_id} and {now.spec.run_id} are not the same run")
    found = _results(now)
    if before.data and not before.data.pixels:  # a record of before, which does not know them
        found.pop("decoded pixels", None)
    facts = [(_results(before), found), (_surroundings(before), _surroundings(now))]
    results, surroundings = (
        [Fact(what=what, before=one.get(what, "–"), now=other.get(what, "–")) for what in dict.fromkeys([*one, *other])]
        for one, other in facts
    )
    return Comparison(results=results, surroundings=[fact for fact in surroundings if not fact.same])


def _results(record: RunRecord) -> dict[str, str]:
    """Results of a record as texts that are equal only if every bit of them is."""
    found = {"status": f"{record.status}: {record.reason}" if record.reason else record.status}
    if record.data:
        found |= {"lists": record.data.lists[:12], "images": record.data.files[:12]}
        found |= {"decoded pixels": record.data.pixels[:12]} if record.data.pixels else {}
    for split, metrics in record.metrics.items():
        found |= {f"{split} {name}": repr(value) for name, value in metrics.values.items()}
        found[f"{split} right per class"] = str(metrics.correct_per_class)
    found |= {f"epoch {epoch.epoch}": _point(epoch) for epoch in record.curve}
    return found | ({"weights": record.weights[:12]} if record.weights else {})


def _point(epoch: Epoch) -> str:
    return f"loss {epoch.train_loss!r}, {epoch.train_accuracy!r} %"


def _surroundings(record: RunRecord) -> dict[str, str]:
    """The environment without what differs from run to run: the time, and where it was resumed."""
    facts = {key: value for key, value in record.environment.items() if key not in ("finished", "resumed_at_steps")}
    source = {"method source": record.method_source[:12]} if record.method_source else {}
    return dict(_flat(facts, "")) | source


def _flat(value: Any, name: str) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in _flat(item, f"{name} {key}".strip())]
    return [(name, str(value))]


def summary(comparison: Comparison) -> str:
    """One line on how it ended."""
    results = comparison.results
    if comparison.identical:
        return f"bit-identical: all {len(results)} results, curve and weights among them"
    other = [fact for fact in results if not fact.same]
    epochs = [fact.what for fact in other if fact.what.startswith("epoch ")]
    since = f"; the curve differs since {epochs[0]}" if epochs else ""
    return f"not identical: {len(other)} of {len(results)} results differ{since}"
