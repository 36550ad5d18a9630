"""RunSpec: everything that decides a run's result, and nothing else. Its hash is the run's identity."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from harness.errors import HarnessError
from harness.schema.optimizers import OPTIMIZERS
from harness.schema.schedules import SCHEDULES
from methods.base import added_values, added_with, did_you_mean, identifying


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """The same as JSON has it: tuples are lists."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a run is trained. Defaults are those of most VTAB-1K code (NOAH, Convpass): 100 epochs, batch 64.

    A new field is marked with `methods.base.added_with`, so that the runs there are keep their ids.
    """

    optimizer: str = "adamw"
    """A name of `harness.schema.optimizers`: `adamw` or `sgd`."""

    lr: float = 1e-3
    """Peak learning rate."""

    weight_decay: float = 1e-4
    """Decoupled weight decay, on matrices."""

    decay_vectors: bool = False
    """Whether vectors (biases, norms, scales) are decayed too."""

    schedule: str = "cosine"
    """A name of `harness.schema.schedules`: `cosine`, `sct_release` or `hydra_release`."""

    epochs: int = 100
    warmup_epochs: int = 10
    """Epochs of linear warm-up; a cosine follows."""

    warmup_lr: float = 0.0
    """Learning rate that the warm-up starts from."""

    min_lr: float = 0.0
    """Learning rate that the cosine falls to."""

    batch_size: int = 64
    """Images per step."""

    drop_last: bool = False
    """Whether an epoch leaves out its last batch where that is not full."""

    drop_path: float = 0.1
    """Stochastic depth rate of the last block, growing linearly from the first."""

    label_smoothing: float = 0.0
    augmentation: str = "none"
    """`none`; `flip` (horizontal, half of the images); `train_aug` (flip and RandAugment, as in SCT's release);
    `fewshot` (NOAH's: random resized crop, flip, RandAugment, erasing, mixup or cutmix)."""

    precision: str = "auto"
    """`bf16` (autocast), `float32`, or `auto`: bf16 where the device is faster in it, else float32. A run's identity
    says which of the two wherever the device is known beforehand; elsewhere its record's environment does."""

    def __post_init__(self) -> None:
        one_of = {
            "optimizer": tuple(OPTIMIZERS),
            "schedule": tuple(SCHEDULES),
            "augmentation": ("none", "flip", "train_aug", "fewshot"),
            "precision": ("auto", "bf16", "float32"),
        }
        for key, options in one_of.items():
            if getattr(self, key) not in options:
                raise HarnessError(
                    f"recipe {key}={getattr(self, key)!r}: {did_you_mean(str(getattr(self, key)), options)}"
                )
        requirements = {
            "lr": (self.lr > 0, "positive"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "epochs": (self.epochs >= 1, "at least 1"),
            "warmup_epochs": (0 <= self.warmup_epochs <= self.epochs, f"from 0 to epochs={self.epochs}"),
            "warmup_lr": (0 <= self.warmup_lr <= self.lr, f"from 0 to lr={self.lr}"),
            "min_lr": (0 <= self.min_lr <= self.lr, f"from 0 to lr={self.lr}"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "drop_path": (0 <= self.drop_path < 1, "in [0, 1)"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "in [0, 1)"),
        }
        for key, (holds, requirement) in requirements.items():
            if not holds:
                raise HarnessError(f"recipe {key}={getattr(self, key)!r} must be {requirement}")


RECIPE_KEYS = frozenset(f.name for f in dataclasses.fields(Recipe))


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSpec:
    """Which pretrained model, exactly."""

    name: str
    """Name in `harness.models.backbones`: an embedded model, or a timm model with its tag."""

    weights: str
    """`pretrained`, `random`, or the file that the user gave (its name only)."""

    digest: str
    """sha256 of the checkpoint file; empty for random weights."""

    image_size: int
    """Side of the square input in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One run. Folders, host, device and worker count are not in it.

    A new field, here or in `BackboneSpec`, is marked with `methods.base.added_with`.
    """

    method: str
    """The method's own name; also of one that was loaded from a file."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """The method's configuration, defaults included; less settings that hold the value they were added with."""

    backbone: BackboneSpec
    suite: str
    task: str
    shots: int | None = None
    """Training images per class, where the suite has several such lists."""

    split_seed: int | None = None
    """Which of several draws of the training list."""

    protocol: str
    recipe: Recipe
    preprocessing: str
    """Preprocessing id, see `harness.schema.preprocessing`."""

    seed: int
    """Training seed: head and method initialisation, order of images, dropout."""

    trials: int = 0
    """Budget of trials by which the settings were chosen, in the protocol `tuned`; 0 elsewhere."""

    searched: tuple[str, ...] = ()
    """Settings that these trials chose, sorted: recipe fields and the method's own knobs."""

    chosen_by: str = field(default="accuracy", metadata=added_with("accuracy"))
    """Metric that the best epoch is chosen by, in a protocol that looks at every epoch."""

    def __hash__(self) -> int:
        return hash(self.run_id)

    def as_dict(self) -> dict[str, Any]:
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `as_dict`, also of a version that lacked some of the fields."""
        parts = {**added_values(cls), **values}
        parts["backbone"] = BackboneSpec(**{**added_values(BackboneSpec), **parts["backbone"]})
        parts["recipe"] = Recipe(**{**added_values(Recipe), **parts["recipe"]})
        parts["searched"] = tuple(parts["searched"])
        return cls(**parts)

    @property
    def run_id(self) -> str:
        """Twelve hex digits that stand for the whole spec, whichever version computes them. A checkpoint with a digest
        may have any file name."""
        values = _plain(identifying(self))
        if self.backbone.digest:
            values["backbone"]["weights"] = "pretrained"
        return digest(values)[:12]
