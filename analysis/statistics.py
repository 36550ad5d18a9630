"""Statistics over seeds and tasks. scipy does the work; our own code stands only where scipy has nothing.

Source of the procedure: J. Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 7 (2006).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999
DECIMALS = 9
"""Differences are rounded to this many digits, so that 0.3 - 0.2 and 0.2 - 0.1 tie in ranks as they should."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there were enough values for one."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))


NO_INTERVAL = Interval(float("nan"), float("nan"))


def bootstrap_interval(
    values: Sequence[float], confidence: float = CONFIDENCE, method: str = "BCa", seed: int = 0
) -> Interval:
    """Bootstrap interval of the mean (`BCa`, Efron 1987, or `percentile`); the same seed gives the same interval.

    Unknown for fewer than two values, a point where all values are equal.
    """
    array = np.asarray(values, dtype=float).round(DECIMALS)
    if len(array) < 2:
        return NO_INTERVAL
    if np.ptp(array) == 0:
        return Interval(float(array[0]), float(array[0]))
    found = stats.bootstrap(
        (array,),
        np.mean,
        confidence_level=confidence,
        n_resamples=RESAMPLES,
        method=method,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def seeds_interval(cells: Sequence[Sequence[float]], confidence: float = CONFIDENCE, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of the mean of cells' means, over seeds: within each cell as many values as it has
    are drawn anew; the tasks stay as they are. Unknown where a cell has fewer than two values.

    With n seeds the spread comes out too small by sqrt((n - 1) / n), as every bootstrap's; the draws are seeded.
    """
    if not cells or min(map(len, cells)) < 2:
        return NO_INTERVAL
    rng = np.random.default_rng(seed)
    means = np.zeros(RESAMPLES)
    for values in cells:
        array = np.asarray(values, dtype=float)
        means += array[rng.integers(0, len(array), (RESAMPLES, len(array)))].mean(axis=1) / len(cells)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Student's interval of the mean: mean ± t(n-1) s / sqrt(n). For few values, e.g. paired differences of seeds.

    Unknown for fewer than two values, and for equal ones: that they show no spread does not say that there is none.
    """
    array = np.asarray(values, dtype=float).round(DECIMALS)
    if len(array) < 2 or np.ptp(array) == 0:
        return NO_INTERVAL
    half = stats.t.ppf((1 + confidence) / 2, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return Interval(float(array.mean() - half), float(array.mean() + half))


def average_ranks(values: pd.DataFrame) -> pd.Series:
    """Average rank of each row (method) over the columns (tasks): 1 is best, ties share the mean of their ranks."""
    ranks = stats.rankdata(-values.to_numpy(dtype=float).round(DECIMALS), axis=0)
    return pd.Series(ranks.mean(axis=1), index=values.index)


@dataclass(frozen=True, slots=True)
class Friedman:
    """Friedman's test that all methods are alike, corrected for ties; chi-squared with methods - 1 degrees."""

    statistic: float
    p: float


def friedman(values: pd.DataFrame) -> Friedman | None:
    """Friedman test of rows (methods) over columns (tasks); None for fewer than three methods or two tasks."""
    if len(values) < 3 or values.shape[1] < 2:
        return None
    rounded = values.to_numpy(dtype=float).round(DECIMALS)
    if (rounded == rounded[0]).all():
        return Friedman(0.0, 1.0)
    statistic, p = stats.friedmanchisquare(*rounded)
    return Friedman(float(statistic), float(p))


def nemenyi_difference(methods: int, tasks: int, alpha: float = 0.05) -> float:
    """Critical difference of average ranks: q sqrt(k (k + 1) / (6 N)), q the studentised range over sqrt(2).

    Demsar 2006, section 3.2.2: k methods, N tasks, two methods differ if their average ranks differ by at least this.
    """
    quantile = stats.studentized_range.ppf(1 - alpha, methods, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(methods * (methods + 1) / (6 * tasks)))


def wilcoxon(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; zeros are dropped, 1 if nothing else is left, NaN for no pairs.

    scipy's rule chooses between the exact distribution (no ties) and the normal approximation.
    """
    array = np.asarray(differences, dtype=float).round(DECIMALS)
    if not len(array):
        return float("nan")
    return float(stats.wilcoxon(array).pvalue) if array.any() else 1.0


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction (Holm 1979): running maximum of (m - i) p over ascending p, at most 1."""
    corrected: dict[str, float] = {}
    running = 0.0
    for position, name in enumerate(sorted(p, key=lambda name: p[name])):
        running = max(running, min(1.0, (len(p) - position) * p[name]))
        corrected[name] = running
    return {name: corrected[name] for name in p}


@dataclass(frozen=True, slots=True)
class WinTieLoss:
    """On how many tasks one method is above, equal to and below another."""

    wins: int
    ties: int
    losses: int

    def __str__(self) -> str:
        return f"{self.wins}/{self.ties}/{self.losses}"


def win_tie_loss(differences: Sequence[float]) -> WinTieLoss:
    """Count the signs of paired differences."""
    array = np.asarray(differences, dtype=float).round(DECIMALS)
    return WinTieLoss(int((array > 0).sum()), int((array == 0).sum()), int((array < 0).sum()))


def verdict(interval: Interval, p: float, margin: float, alpha: float = 0.05) -> str:
    """What a mean difference says: `equal`, `better`, `worse`, or `undecided`; `unknown` without an interval.

    Equal means practically equal: the whole interval lies inside (-margin, margin), zero in it or not. Better or worse
    needs both an interval without zero and p <= alpha; give the corrected p where several methods are compared.
    """
    if not interval.known:
        return "unknown"
    if -margin < interval.low and interval.high < margin:
        return "equal"
    if p <= alpha and (interval.low > 0 or interval.high < 0):
        return "better" if interval.low > 0 else "worse"
    return "undecided"
