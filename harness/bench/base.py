"""Shared by all parts: sizes, the model, timing, a count of live memory, and measurements with targets."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness import device as devices
from harness.models import backbones
from harness.schema.preprocessing import STATISTICS, Preprocessing
from harness.schema.spec import BackboneSpec
from harness.training.cost import seconds

BATCH = 64
CLASSES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured."""

    images: int = 1000
    """Training images, as in VTAB-1K."""

    test_images: int = 1000
    epochs: int = 3
    """Epochs of each whole task."""

    rounds: int = 5
    """Repetitions of what is compared side by side; the median counts."""

    side: int = 1024
    """Side of the square matrices whose product gives the matrix rate."""


SIZES = {
    "small": Sizes(images=64, test_images=64, epochs=1, rounds=1, side=128),
    "cpu": Sizes(),
    "cuda": Sizes(test_images=4000, rounds=20, side=8192),
}
"""By name; `small` proves that everything runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is measured on."""

    device: torch.device
    backbone: BackboneSpec
    sizes: Sizes

    @property
    def precision(self) -> str:
        """`bf16` where the device has it, as in runs."""
        return devices.precision_in_use("auto", self.device)

    @property
    def preprocessing(self) -> Preprocessing:
        """As the backbone was trained."""
        mean, std = STATISTICS["imagenet"]
        return Preprocessing(image_size=self.backbone.image_size, mean=mean, std=std)

    def model(self, classes: int = CLASSES, drop_path: float = 0.0) -> Any:
        """The frozen backbone with a new head that is trained."""
        torch.manual_seed(0)
        model = backbones.build(self.backbone, classes, drop_path).to(self.device)
        model.get_classifier().requires_grad_(True)
        return model

    def images(self, count: int) -> Tensor:
        """Random normalised images [count, 3, H, W] on the device."""
        size = self.backbone.image_size
        return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1)).to(self.device)

    def with_images(self, count: int) -> Setting:
        return replace(self, sizes=replace(self.sizes, images=count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One line of the table."""

    part: str
    what: str
    unit: str
    ours: float
    other: float | None = None
    """The same of what it is compared with: the released way unless `what` says otherwise."""

    judged: float | None = None
    """What the target is about."""

    at_least: float | None = None
    at_most: float | None = None

    @property
    def ratio(self) -> float | None:
        """The other side's number by ours."""
        return self.other / self.ours if self.other is not None and self.ours else None

    @property
    def reached(self) -> bool | None:
        """Whether the target holds; None where there is none."""
        if self.judged is None:
            return None
        return self.judged >= self.at_least if self.at_least is not None else self.judged <= (self.at_most or 0.0)

    def row(self) -> dict[str, Any]:
        bound = {">=": self.at_least, "<=": self.at_most}
        target = next((f"{sign} {limit:g}" for sign, limit in bound.items() if limit is not None), "")
        return {
            "part": self.part,
            "what": self.what,
            "unit": self.unit,
            "ours": f"{self.ours:.4g}",
            "compared with": "" if self.other is None else f"{self.other:.4g}",
            "ratio": "" if self.ratio is None else f"{self.ratio:.3g}",
            "judged": "" if self.judged is None else f"{self.judged:.4g}",
            "target": target,
            "reached": {None: "", True: "yes", False: "NO"}[self.reached],
        }


def side_by_side(
    actions: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int, repeat: int = 1
) -> dict[str, float]:
    """Median seconds of each action. After a warm-up they take turns, every other round in reverse, so that what else
    the machine does hits all; each turn is `repeat` times the action in a row."""
    for action in actions.values():
        action()
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds):
        for name, action in list(actions.items())[:: -1 if turn % 2 else 1]:
            taken[name].append(seconds(action, device, repeat))
    return {name: median(values) for name, values in taken.items()}


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of tensors that are created while active, and keeps the peak of those alive at once."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in before:
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: Any) -> None:
            self.live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


def peak_bytes(action: Callable[[], Any]) -> int:
    """Peak of the memory of tensors that an action makes, on all devices together."""
    gc.collect()
    memory = LiveMemory()
    with memory:
        action()
    return memory.peak


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimiser gets."""
    return [p for p in model.parameters() if p.requires_grad]
