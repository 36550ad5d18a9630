"""Two methods on the same images: by how much they differ, and whether that is more than chance.

One training of each. The exact test of McNemar (Psychometrika 12, 1947): of the images that only one of the two has
right, each belongs to either with probability 1/2. It is the test that Dietterich recommends for methods that were
trained once (Neural Computation 10, 1998), and it says whether these two trained models differ on images like these:
not whether other seeds would agree. The interval is a paired bootstrap's over images.

Several trainings of each, paired by seed. Images are alike for all seeds and a seed for all images, so neither the
seeds' tests nor their images may be pooled (Bouthillier et al., MLSys 2021). The mean difference varies as under a
bootstrap over both images and seeds (Owen, Annals of Applied Statistics 1, 2007), whose variance a mean has in closed
form: with V the variance of a mean over the column means of S seeds, over N images, and of both together,

    V(seeds) + V(images) - V(both),  degrees of freedom by Satterthwaite (Biometrics Bulletin 2, 1946).

Interval and p are Student's t with it, not percentiles of resamples, in which two or three seeds show too little
spread. Simulated with two, three and five seeds, t covers 90 to 99 %; where two seeds differ more than images do,
percentiles over images and seeds cover less than 75 %, and those over images alone less than half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special, stats

from analysis.statistics import ALPHA, CONFIDENCE, Interval, holm
from harness.errors import HarnessError
from harness.records.predictions import Predictions

RESAMPLES = 10_000
SEED = 0
"""Of the bootstrap: the same records give the same interval."""

ByReplicate = Mapping[tuple[int, int], Predictions]
"""Predictions of one method on one task, by split seed and seed."""

ReadPredictions = Callable[[pd.DataFrame], list[dict[str, Predictions]]]
"""The predictions of rows, by split. `HarnessError` if those of one cannot be had."""


def none_kept(rows: pd.DataFrame) -> list[dict[str, Predictions]]:
    """The `ReadPredictions` of runs without a folder."""
    raise HarnessError(f"the folder of {len(rows)} runs is not known")


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Two methods on one list of images. Accuracies and shares are in per cent, means over trainings."""

    images: int
    trainings: int
    """How many independent ones of each there are: draws of the training list, where there are several, or seeds."""

    first: float
    second: float
    """Top-1 accuracy."""

    first_only: float
    second_only: float
    """Number of images that only this one has right."""

    agreement: float
    """Share of images to which both give the same class."""

    oracle: float
    """Share of images that at least one has right."""

    averaged: float
    """Top-1 accuracy of the mean of their probabilities; NaN where logits were not kept."""

    interval: Interval
    """Of first - second, in points."""

    p: float
    """Two-sided, that they do not differ."""

    @property
    def difference(self) -> float:
        """First minus second, in points."""
        return self.first - self.second


def mcnemar(first_only: int, second_only: int) -> float:
    """Two-sided p of the exact test; 1 where no image tells the two apart."""
    return min(1.0, 2 * float(stats.binom.cdf(min(first_only, second_only), first_only + second_only, 0.5)))


def bootstrap(first_only: int, second_only: int, images: int) -> Interval:
    """Percentiles of the mean difference in points over images drawn anew.

    An image counts +1, -1 or 0, so that a resample is one draw from a multinomial distribution.
    """
    shares = np.array([first_only, second_only, images - first_only - second_only]) / images
    draws = np.random.default_rng(SEED).multinomial(images, shares, size=RESAMPLES)
    ends = np.quantile(100 * (draws[:, 0] - draws[:, 1]) / images, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(ends[0]), float(ends[1]))


def over_both(differences: NDArray[np.floating]) -> tuple[Interval, float]:
    """Interval of the mean and p, by Student's t over trainings and images (module's head). `differences`: of at least
    two trainings on at least two images [S, N].

    Where nothing varies the interval is the mean, and p that of as many images with one sign, or 1.
    """
    trainings, images = differences.shape
    mean = float(differences.mean())
    by_training, by_image = differences.mean(axis=1), differences.mean(axis=0)
    rest = ((differences - mean) ** 2).sum()
    rest -= images * ((by_training - mean) ** 2).sum() + trainings * ((by_image - mean) ** 2).sum()
    freedoms = np.array([trainings - 1, images - 1, (trainings - 1) * (images - 1)])
    parts = np.array([by_training.var(ddof=1) / trainings, by_image.var(ddof=1) / images, 0.0])
    parts[2] = max(rest, 0.0) / freedoms[2] / (trainings * images)
    variance = max(parts[0] + parts[1] - parts[2], parts[1])
    if not variance:
        return Interval(mean, mean), 2 * 0.5**images if mean else 1.0
    freedom = max(1.0, variance**2 / (parts**2 / freedoms).sum())
    error = np.sqrt(variance)
    half = float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2) * error)
    return Interval(mean - half, mean + half), float(2 * special.stdtr(freedom, -abs(mean) / error))


def compare_images(first: ByReplicate, second: ByReplicate) -> Paired | str:
    """Both methods over the replicates that both have, or the reason why they cannot be paired."""
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return "no seed in common"
    pairs = [(first[key], second[key]) for key in shared]
    if not all(_same_images(pairs[0][0], one) for pair in pairs for one in pair):
        return "their lists of images differ"
    return _paired(pairs, [draw for draw, _ in shared])


def _paired(pairs: list[tuple[Predictions, Predictions]], draws: list[int]) -> Paired:
    """`draws`: each pair's split seed."""
    right = [(a.correct, b.correct) for a, b in pairs]
    only = np.array([(np.count_nonzero(a & ~b), np.count_nonzero(b & ~a)) for a, b in right])
    images, differences = len(pairs[0][0]), _by_training(right, draws)
    if len(differences) > 1:
        interval, p = over_both(100 * differences)
    else:
        one, other = (int(count) for count in only[0])
        interval, p = bootstrap(one, other, images), mcnemar(one, other)
    return Paired(
        images=images,
        trainings=len(differences),
        first=_per_cent(a for a, _ in right),
        second=_per_cent(b for _, b in right),
        first_only=float(only[:, 0].mean()),
        second_only=float(only[:, 1].mean()),
        agreement=_per_cent(a.predicted == b.predicted for a, b in pairs),
        oracle=_per_cent(a | b for a, b in right),
        averaged=_averaged(pairs),
        interval=interval,
        p=p,
    )


def _same_images(first: Predictions, second: Predictions) -> bool:
    return first.list_digest == second.list_digest and np.array_equal(first.labels, second.labels)


def _by_training(right: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]], draws: list[int]) -> NDArray[np.float64]:
    """First right minus second right, by independent training and image: the mean of each draw's seeds, where the
    training list was drawn several times, for they are alike; else every seed."""
    differences = np.stack([a.astype(float) - b for a, b in right])
    if len(set(draws)) == 1:
        return differences
    return np.stack([differences[np.equal(draws, draw)].mean(axis=0) for draw in sorted(set(draws))])


def _per_cent(flags: Iterable[NDArray[np.bool_]]) -> float:
    return 100 * float(np.mean([one.mean() for one in flags]))


def _averaged(pairs: list[tuple[Predictions, Predictions]]) -> float:
    """See `Paired.averaged`."""
    right = []
    for a, b in pairs:
        if a.logits is None or b.logits is None:
            return float("nan")
        together = _probabilities(a.logits) + _probabilities(b.logits)
        right.append(together.argmax(axis=1) == a.labels)
    return _per_cent(right)


def _probabilities(logits: NDArray[np.float16]) -> NDArray[np.float64]:
    return np.asarray(special.softmax(logits.astype(float), axis=1))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the test of one task says after Holm's correction over all tasks."""

    p: float
    """Corrected."""

    reading: str
    """`better`, `worse` or `undecided`, of the first method."""


def outcomes(pairs: Mapping[str, Paired]) -> dict[str, Outcome]:
    """Outcome by task."""
    corrected = holm({task: pair.p for task, pair in pairs.items()})
    return {task: Outcome(p, _reading(p, pairs[task].difference)) for task, p in corrected.items()}


def _reading(p: float, difference: float) -> str:
    if p > ALPHA:
        return "undecided"
    return "better" if difference > 0 else "worse"


def test_text(pairs: Iterable[Paired]) -> str:
    """Which test decided."""
    several = {pair.trainings > 1 for pair in pairs}
    if several == {False}:
        return "exact McNemar over the images"
    whole = "Student's t over images and seeds"
    return whole if several == {True} else f"{whole}, exact McNemar over the images where there is one seed"


def interval_text(pairs: Iterable[Paired]) -> str:
    """How the intervals came about."""
    several = {pair.trainings > 1 for pair in pairs}
    if several == {False}:
        return f"bootstrap over images, {RESAMPLES:,} resamples"
    whole = "Student's t over images and seeds"
    return whole if several == {True} else f"{whole}, bootstrap over images where there is one seed"


def sentence(first: str, second: str, pairs: Mapping[str, Paired]) -> str:
    """`SCT beats LoRA on 7 of 19 tasks, loses on 5, undecided on 7 (exact McNemar ..., Holm over tasks, 5 %).`"""
    readings = [outcome.reading for outcome in outcomes(pairs).values()]
    wins, losses, open_ones = (readings.count(name) for name in ("better", "worse", "undecided"))
    return (
        f"{first} beats {second} on {wins} of {len(pairs)} tasks, loses on {losses}, undecided on {open_ones} "
        f"({test_text(pairs.values())}, Holm over tasks, {ALPHA:.0%}).".replace("%", " %")
    )
