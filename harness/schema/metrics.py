"""Metrics of a trained model. A metric is one object: put it into `METRICS`, and every record has it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from harness.errors import HarnessError, did_you_mean

if TYPE_CHECKING:  # so that a command that trains nothing starts without waiting for torch
    from torch import Tensor

BINS = 15
"""Of the expected calibration error."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a model said of a whole split, and what several metrics make of it, each computed once."""

    logits: Tensor
    """float32 [N, C] on the CPU; a masked target's are -inf for classes that it does not have."""

    labels: Tensor
    """int64 [N] on the CPU."""

    @cached_property
    def classes(self) -> list[int]:
        """Those that the model may name: their logits are not all -inf."""
        classes: list[int] = (self.logits.amax(dim=0) != -float("inf")).nonzero().flatten().tolist()
        return classes

    @cached_property
    def predicted(self) -> Tensor:
        """Classes int64 [N], the first of equals."""
        return self.logits.argmax(dim=1)

    @cached_property
    def log_probabilities(self) -> Tensor:
        """float32 [N, C]."""
        return self.logits.log_softmax(dim=1)

    @cached_property
    def probabilities(self) -> Tensor:
        """float32 [N, C]."""
        return self.log_probabilities.exp()

    @cached_property
    def images(self) -> Tensor:
        """Images of each class, int64 [C]."""
        return self.labels.bincount(minlength=self.logits.shape[1])

    @cached_property
    def correct(self) -> Tensor:
        """Images of each class that were classified right, int64 [C]."""
        return self.labels[self.predicted == self.labels].bincount(minlength=self.logits.shape[1])

    @cached_property
    def recalls(self) -> Tensor:
        """Accuracy in [0, 1] among the images of each class that has any, float64, in the classes' order."""
        present = self.images > 0
        return self.correct[present].double() / self.images[present]


ANY = range(1, sys.maxsize)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number that sums up how a model did on a split."""

    name: str
    """Key in `Metrics.values` of the record."""

    title: str
    """Name in tables and messages."""

    unit: str
    """Unit in tables; empty for a plain number."""

    higher_is_better: bool

    classes: range = ANY
    """Numbers of classes for which it is defined."""

    compute: Callable[[Outputs], float | None]
    """Of a split with so many classes; None where it is not defined. The result must be finite for finite logits, and
    where those of classes that no image has are -inf."""

    @property
    def sign(self) -> int:
        """1 if higher is better, else -1."""
        return 1 if self.higher_is_better else -1

    def of(self, outputs: Outputs) -> float | None:
        """Its value; None where it is not defined."""
        return self.compute(outputs) if len(outputs.classes) in self.classes else None


def _accuracy(outputs: Outputs) -> float:
    return 100 * float((outputs.predicted == outputs.labels).sum()) / len(outputs.labels)


def _cross_entropy(outputs: Outputs) -> float:
    from torch.nn.functional import nll_loss

    return float(nll_loss(outputs.log_probabilities, outputs.labels))


def _mean_class_accuracy(outputs: Outputs) -> float:
    return 100 * float(outputs.recalls.mean())


def _worst_class_accuracy(outputs: Outputs) -> float:
    return 100 * float(outputs.recalls.min())


def _top5_accuracy(outputs: Outputs) -> float:
    """Where logits are equal, the class with the lower number comes first, as it does in top-1."""
    logits, labels = outputs.logits.numpy(), outputs.labels[:, None].numpy()
    own = np.take_along_axis(logits, labels, axis=1)
    before = (logits > own) | (logits == own) & (np.arange(logits.shape[1]) < labels)
    return 100 * float((np.count_nonzero(before, axis=1) < 5).mean())


def _macro_f1(outputs: Outputs) -> float:
    """Mean of 2 TP / (2 TP + FP + FN) over the classes that have images."""
    named = outputs.predicted.bincount(minlength=len(outputs.images))
    present = outputs.images > 0
    f1 = 2 * outputs.correct[present].double() / (outputs.images + named)[present]
    return 100 * float(f1.mean())


def _quadratic_kappa(outputs: Outputs) -> float | None:
    """Cohen, Psychological Bulletin 70 (1968): 1 - sum(w O) / sum(w E), with w the squared distance of the classes'
    numbers, O the images by label and prediction, and E what these give if they are independent. Both sums are written
    out, times the number of images, in whole numbers. Not defined if all labels and predictions are one class."""
    label, guess, count = outputs.labels, outputs.predicted, len(outputs.labels)
    observed = count * int((guess - label).square().sum())
    squares = int(label.square().sum() + guess.square().sum())
    expected = count * squares - 2 * int(label.sum()) * int(guess.sum())
    return 1 - observed / expected if expected else None


def _auroc(outputs: Outputs) -> float | None:
    """Chance that an image of the second class has a higher log-odds of it than one of the first class, with ties as
    one half: Mann and Whitney's U. Not defined if one of the classes has no image."""
    low, high = outputs.classes
    odds = outputs.logits[:, high] - outputs.logits[:, low]
    _, place, count = odds.unique(return_inverse=True, return_counts=True)
    rank = (count.cumsum(0) - (count - 1) / 2)[place]  # from 1, ties share the mean of theirs
    positive = outputs.labels == high
    yes, no = int(positive.sum()), int((~positive).sum())
    if not yes or not no:
        return None
    return 100 * (float(rank[positive].double().sum()) - yes * (yes + 1) / 2) / (yes * no)


def _brier(outputs: Outputs) -> float:
    """Brier, Monthly Weather Review 78 (1950): mean over images of the sum over classes of (probability - truth)^2,
    which is from 0 to 2."""
    probabilities = outputs.probabilities
    own = probabilities.gather(1, outputs.labels[:, None]).double()
    return float((probabilities.norm(dim=1).double().square() - 2 * own[:, 0] + 1).mean())


def _ece(outputs: Outputs) -> float:
    """Guo et al., On calibration of modern neural networks, ICML 2017, equation 3: images are binned by the probability
    of the predicted class, at ((m - 1) / 15, m / 15]; mean distance of a bin's accuracy from its mean probability,
    weighted by images."""
    sure = outputs.probabilities.amax(dim=1).double()
    gap = sure - (outputs.predicted == outputs.labels).double()
    bins = (sure * BINS).ceil().long().clamp(1, BINS) - 1
    return 100 * float(bins.bincount(weights=gap, minlength=BINS).abs().sum()) / len(gap)


def _per_cent(name: str, title: str, compute: Callable[[Outputs], float | None], classes: range = ANY) -> Metric:
    return Metric(name=name, title=title, unit="%", higher_is_better=True, compute=compute, classes=classes)


ACCURACY = _per_cent("accuracy", "top-1 accuracy", _accuracy)
LOSS = Metric(name="loss", title="cross-entropy", unit="", higher_is_better=False, compute=_cross_entropy)

_ALL = (
    ACCURACY,
    LOSS,
    _per_cent("mean_class_accuracy", "mean accuracy per class", _mean_class_accuracy),
    _per_cent("worst_class_accuracy", "worst class's accuracy", _worst_class_accuracy),
    _per_cent("top5_accuracy", "top-5 accuracy", _top5_accuracy, classes=range(6, sys.maxsize)),
    _per_cent("macro_f1", "macro-F1", _macro_f1),
    Metric(
        name="quadratic_kappa",
        title="quadratic weighted kappa",
        unit="",
        higher_is_better=True,
        compute=_quadratic_kappa,
    ),
    _per_cent("auroc", "AUROC", _auroc, classes=range(2, 3)),
    Metric(name="brier", title="Brier score", unit="", higher_is_better=False, compute=_brier),
    Metric(
        name="ece",
        title=f"expected calibration error ({BINS} bins)",
        unit="%",
        higher_is_better=False,
        compute=_ece,
    ),
)

METRICS = {metric.name: metric for metric in _ALL}
"""All metrics by name: every evaluation computes each that is defined. Those per class are over the classes that the
split has images of; kappa takes the numbers of the classes for their order."""


def get(name: str) -> Metric:
    """The metric of that name; `HarnessError` if there is none."""
    if name not in METRICS:
        raise HarnessError(f"unknown metric {name!r}. {did_you_mean(name, list(METRICS))}")
    return METRICS[name]
