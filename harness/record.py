"""RunRecord: the one honest account of a run, as a self-digested JSON document."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Self

from harness.cost import Cost, Parameters
from harness.data import Fingerprint
from harness.evaluation import Metrics
from harness.failures import Failure
from harness.spec import RunSpec, digest
from harness.trainer import Epoch

SCHEMA = 1
"""Version of the record's layout."""


_PARTS = {"parameters": Parameters, "cost": Cost, "data": Fingerprint, "failure": Failure}


class BadRecord(ValueError):
    """A record that must not be used; the message is the reason."""

    def __init__(self, reason: str, whole: bool = False) -> None:
        super().__init__(reason)
        self.whole = whole
        """Whether it is as it was written, by another version of this program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One setting that was tried before a final run, and what it gave."""

    run_id: str
    """Of the trial's own record."""

    setting: dict[str, Any]
    """Values of what was searched."""

    accuracy: float | None
    """Top-1 on val after the last epoch, per cent; None for a failed trial."""

    seconds: float
    """Device seconds: attaching, training and evaluating; 0 for a failed trial, whose time is not known."""

    reason: str = ""
    """Why it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How the settings of a final run were chosen."""

    budget: int
    """Trials that every method was allowed."""

    space: dict[str, list[Any]]
    """What was searched: recipe fields and the method's own knobs, with their candidate values."""

    trials: list[Trial]
    """In the order drawn, the default setting first; fewer than the budget where the grid is smaller."""

    chosen: int | None
    """Number of the winner among the trials; None if all failed."""

    seconds: float
    """Device seconds of all trials."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What was asked, what came out, what it cost, and on what it ran."""

    spec: RunSpec
    method_title: str
    """The method's name in tables."""

    status: str
    """`complete` or `failed`."""

    reason: str = ""
    """Why it failed."""

    failure: Failure | None = None
    """What kind of failure it was, and where."""

    metrics: dict[str, Metrics] = field(default_factory=dict)
    """Result by split, for the split that the protocol reports."""

    last_epoch: dict[str, Metrics] = field(default_factory=dict)
    """The same after the last epoch, where the protocol reports the best one; the difference is what looking gained."""

    curve: list[Epoch] = field(default_factory=list)
    weights: str = ""
    """sha256 of the trained state, names and bits: two runs with the same digest ended with the same model."""

    parameters: Parameters | None = None
    cost: Cost | None = None
    data: Fingerprint | None = None
    test_looks: int = 0
    """How often the test split was opened."""

    method_info: dict[str, Any] = field(default_factory=dict)
    """What the method said of itself, e.g. the chosen channels per block."""

    tuning: Tuning | None = None
    """How the settings were chosen, of a final run of the protocol `tuned`."""

    environment: dict[str, Any] = field(default_factory=dict)
    """Package versions, code state, device, precision in use, time."""

    def to_json(self) -> str:
        """The document, with its schema, run id and own digest."""
        body = {"schema": SCHEMA, "run_id": self.spec.run_id, **dataclasses.asdict(self)}
        body["spec"] = self.spec.as_dict()
        body = json.loads(json.dumps(body))
        return json.dumps(body | {"digest": digest(body)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a document. Raises `BadRecord` if it is torn, altered, of another schema, or not a record at all."""
        try:
            body = json.loads(text)
        except json.JSONDecodeError as error:
            raise BadRecord(f"torn: {error}") from None
        if not isinstance(body, dict) or "digest" not in body:
            raise BadRecord("not a run record")
        if body.pop("digest") != digest(body):
            raise BadRecord("altered: its digest does not fit its content")
        if body.pop("schema") != SCHEMA:
            raise BadRecord(f"written by another version (schema is not {SCHEMA})", whole=True)
        try:
            return cls(**_parts(body))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadRecord(f"written by another version ({type(error).__name__}: {error})", whole=True) from None


def _parts(body: dict[str, Any]) -> dict[str, Any]:
    """The record's fields out of a document."""
    parts = {key: value for key, value in body.items() if key != "run_id"}
    parts["spec"] = RunSpec.from_dict(body["spec"])
    for name in ("metrics", "last_epoch"):
        parts[name] = {split: Metrics(**m) for split, m in body[name].items()}
    parts["curve"] = [Epoch(**e) for e in body["curve"]]
    for name, kind in _PARTS.items():
        parts[name] = kind(**body[name]) if body.get(name) else None
    if body.get("tuning"):
        trials = [Trial(**trial) for trial in body["tuning"]["trials"]]
        parts["tuning"] = Tuning(**(body["tuning"] | {"trials": trials}))
    return parts
