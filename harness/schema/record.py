"""RunRecord: the one honest account of a run, as a self-digested JSON document."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from harness.schema.failures import Failure
from harness.schema.metrics import ACCURACY, LOSS
from harness.schema.spec import RunSpec, digest
from harness.schema.upgrades import UPGRADES, upgraded

SCHEMA = 6
"""Version of the record's layout. Records of the versions in `UPGRADES` are read too."""


class BadRecord(ValueError):
    """A record that must not be used; the message is the reason."""

    def __init__(self, reason: str, whole: bool = False) -> None:
        super().__init__(reason)
        self.whole = whole
        """Whether the record is intact, but was written by another version of this program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Result on one split."""

    values: dict[str, float]
    """Of every metric of `harness.schema.metrics.METRICS` that is defined here, by name; earlier records have fewer."""

    correct_per_class: list[int]
    images_per_class: list[int]

    @property
    def accuracy(self) -> float:
        """Top-1, per cent of images."""
        return self.values[ACCURACY.name]

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return self.values[LOSS.name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One point of the learning curve."""

    epoch: int
    """Counted from 1."""

    train_loss: float
    """Mean loss over the epoch's images, with label smoothing if the recipe has it."""

    train_accuracy: float
    """Per cent of the epoch's images classified right, as seen in training (augmented, before each update)."""

    lr: float
    """Learning rate of the epoch's last step."""

    scores: dict[str, float] = field(default_factory=dict)
    """Top-1 after the epoch, per cent, of the splits that were looked at, whatever the task's primary metric is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Numbers of parameters by role."""

    method: int
    """Trained parameters that the method added."""

    backbone_trained: int
    """Pretrained parameters that the method trains."""

    head: int
    """Trained parameters of the head, which the harness owns."""

    total: int
    """All parameters of the model that ran."""

    @property
    def trained_without_head(self) -> int:
        """What papers print."""
        return self.method + self.backbone_trained

    @property
    def trained_with_head(self) -> int:
        """All that the optimiser moves."""
        return self.method + self.backbone_trained + self.head


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Measured cost of a run."""

    forward_flops: int
    """Operations of one image's forward pass in inference, by torch's counter: a multiply-add counts as two."""

    attach_seconds: float
    """Time of the method's `attach`, channel selection included."""

    train_seconds: float
    train_images_per_second: float
    evaluate_seconds: float
    trained_bytes: int
    """Size of what must be stored for the task: trained parameters and the method's buffers, head included."""

    peak_memory_bytes: int | None
    """Peak of the device's allocator during training; None on CPU, which has no such counter."""

    peak_resident_bytes: int | None = None
    """Peak of the process's resident memory during the run, with libraries, mapped images and what earlier runs of
    the process left in its caches; None where the system cannot reset the peak (anywhere but on Linux)."""

    training_flops: int | None = None
    """Operations of one image's forward and backward pass in training, counted as `forward_flops`."""

    step_seconds: float | None = None
    """Time of a training step, with its share of data and schedule: the median over epochs of an epoch's time by its
    steps. An epoch that an interruption cut does not count."""

    cached_features: str = ""
    """Up to where nothing was trained or random, so that its output was computed once for all steps: `head`, or the
    block."""

    latency_seconds: dict[str, float] = field(default_factory=dict)
    """Time of a forward pass in inference, in the run's precision, by number of images; the host's part included."""

    merged_latency_seconds: dict[str, float] = field(default_factory=dict)
    """The same after the method was folded into the backbone; empty where it does not fold."""

    energy_joules: float | None = None
    """Energy that the whole GPU, or all packages of the CPU, took for attaching, training and evaluating, others' work
    in that time included; None where no counter could be read throughout."""

    energy_source: str = ""
    """What counted it: `nvml` or `rapl`."""

    @property
    def seconds(self) -> float:
        """Device time of the run: attaching, training and evaluating."""
        return self.attach_seconds + self.train_seconds + self.evaluate_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What the data were, for the record."""

    lists: str
    """sha256 over the task's lists, names and labels, and over what the suite makes of them: number of classes, final
    split, masked targets."""

    files: str
    """sha256 over the bytes of 16 images per list, evenly spaced."""

    sizes: dict[str, int]
    """Images per split."""

    pixels: str = ""
    """sha256 over the decoded pixels of all images of all lists, in the run's size and fit; empty where they are not
    known, as in records of schema 2."""

    official_sizes: dict[str, int] = field(default_factory=dict)
    """Images per split as the suite defines it, of the splits whose size it states."""

    split_origin: str = ""
    """Who drew the lists, where a file beside them says so; empty for lists as released."""

    @property
    def not_official(self) -> list[str]:
        """How the data differ from the suite's: `test 300 instead of 711`, or who drew the lists."""
        sizes = self._other_sizes(self.official_sizes)
        return [*sizes, self.split_origin] if self.split_origin else sizes

    def _other_sizes(self, sizes: dict[str, int]) -> list[str]:
        return [
            f"{split} {self.sizes.get(split, 0)} instead of {size}"
            for split, size in sizes.items()
            if self.sizes.get(split) != size
        ]

    @property
    def digest(self) -> str:
        """The digests as one text, see `same_data`."""
        return "/".join(filter(None, (self.lists, self.files, self.pixels)))

    def differs_from(self, now: Fingerprint) -> str:
        """`lists differ (train 160 instead of 200)` or `images differ`; empty if nothing does. Pixels are compared
        where both know them."""
        if self.lists == now.lists:
            return "" if same_data(self.digest, now.digest) else "images differ"
        counts = self._other_sizes(now.sizes | {split: 0 for split in self.sizes if split not in now.sizes})
        return f"lists differ ({', '.join(counts)})" if counts else "labels, names, classes or final split differ"


def same_data(one: str, other: str) -> bool:
    """Whether two texts of `Fingerprint.digest` stand for the same data, by the digests that both have."""
    return all(mine == theirs for mine, theirs in zip(one.split("/"), other.split("/"), strict=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One setting that was tried before a final run, and what it gave."""

    run_id: str
    """Of the trial's own record."""

    setting: dict[str, Any]
    """Values of what was searched."""

    score: float | None
    """By `Tuning.metric`, on val after the last epoch; None for a failed trial, and where it is not defined."""

    seconds: float
    """Device seconds: attaching, training and evaluating; 0 for a failed trial, whose time is not known."""

    reason: str = ""
    """Why it has no score."""

    data: str = ""
    """Digests of the data it was tried on, `Fingerprint.digest`; empty where they are not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How the settings of a final run were chosen."""

    metric: str = ACCURACY.name
    """What the trials were judged by: the task's primary metric then."""

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
class StoredFile:
    """A file that lies beside the record, as it was written."""

    size: int
    """In bytes."""

    sha256: str

    @classmethod
    def of(cls, content: bytes) -> Self:
        """The facts of a file with this content."""
        return cls(size=len(content), sha256=hashlib.sha256(content).hexdigest())


_PARTS = {"parameters": Parameters, "cost": Cost, "data": Fingerprint, "failure": Failure}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What was asked for, what came out, what it cost, and where it ran."""

    spec: RunSpec
    method_title: str
    """The method's name in tables."""

    method_family: str = ""
    method_paper: str = ""

    method_source: str = ""
    """sha256 over the source that defines the method; empty where it is not known."""

    status: str
    """`complete` or `failed`."""

    reason: str = ""
    """Why it failed."""

    failure: Failure | None = None
    """What kind of failure it was, and where."""

    primary_metric: str = ACCURACY.name
    """That of the task, which tables show; of a failed run it is not recorded."""

    class_names: list[str] = field(default_factory=list)
    """Name of each class, by label; empty where they have none, and of a failed run."""

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
    """What the method reports about itself, e.g. the chosen channels per block."""

    tuning: Tuning | None = None
    """How the settings were chosen, of a final run of the protocol `tuned`."""

    environment: dict[str, Any] = field(default_factory=dict)
    """Package versions, code state, device, precision in use, time."""

    files: dict[str, StoredFile] = field(default_factory=dict)
    """What else the run left in its folder, by name: predictions, tuned weights. They were whole when the record was
    written; a file that is deleted later takes nothing from the record."""

    def class_name(self, label: int) -> str | int:
        """The name of a class, or its label where it has none."""
        return self.class_names[label] if self.class_names else label

    def to_json(self) -> str:
        """The document, with its schema, run id and own digest."""
        body = {"schema": SCHEMA, "run_id": self.spec.run_id, **dataclasses.asdict(self)}
        body["spec"] = self.spec.as_dict()
        body = json.loads(json.dumps(body))
        return json.dumps(body | {"digest": digest(body)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a document of any schema since 2. Raises `BadRecord` if it is torn, altered, of another schema, or not a
        record at all."""
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadRecord(f"torn: {error}") from None
        return cls.from_document(body)

    @classmethod
    def from_document(cls, document: Any) -> Self:
        """The same from the text's value, which stays as it is."""
        if not isinstance(document, dict) or "digest" not in document:
            raise BadRecord("not a run record")
        body = dict(document)
        if body.pop("digest") != _digest(body):
            raise BadRecord("altered: its digest does not fit its content")
        schema = body.pop("schema", None)
        if schema not in (*UPGRADES, SCHEMA):
            known = ", ".join(map(str, (*UPGRADES, SCHEMA)))
            raise BadRecord(f"written by another version (its schema is {schema}, not one of {known})", whole=True)
        try:
            return cls(**_parts(upgraded(body, schema)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadRecord(f"written by another version ({type(error).__name__}: {error})", whole=True) from None


ReadRecord = Callable[[RunSpec], RunRecord | None]
"""The valid record of a run, complete or failed, or None."""


def _digest(body: dict[str, Any]) -> str:
    try:
        return digest(body)
    except ValueError:  # NaN, which no record holds
        return ""


def _parts(body: dict[str, Any]) -> dict[str, Any]:
    """The record's fields out of a document."""
    parts = {key: value for key, value in body.items() if key != "run_id"}
    parts["spec"] = RunSpec.from_dict(body["spec"])
    for name in ("metrics", "last_epoch"):
        parts[name] = {split: Metrics(**m) for split, m in body[name].items()}
    parts["curve"] = [Epoch(**e) for e in body["curve"]]
    for name, kind in _PARTS.items():
        parts[name] = kind(**body[name]) if body.get(name) else None
    parts["files"] = {name: StoredFile(**file) for name, file in body["files"].items()}
    if body.get("tuning"):
        trials = [Trial(**trial) for trial in body["tuning"]["trials"]]
        parts["tuning"] = Tuning(**(body["tuning"] | {"trials": trials}))
    return parts
