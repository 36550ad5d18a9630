"""Statistics over seeds and tasks. scipy does the work; our own code stands only where scipy has nothing.

Source of the procedure: J. Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 7 (2006).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special, stats

CONFIDENCE = 0.95
ALPHA = 0.05
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


def seeds_interval(cells: Sequence[Sequence[float]]) -> Interval:
    """Student's interval of the mean of cells' means, over seeds: the tasks stay as they are, their variances add up.

    mean ± t(f) sqrt(sum of v) / T, with v = s^2 / n of each of T cells. Cells' variances differ, so f is estimated.
    Satterthwaite's (sum of v)^2 / sum of v^2 / (n - 1) (Biometrics Bulletin 2, 1946) is too low with few seeds, for
    s^4 is (n + 1) / (n - 1) of sigma^4 on average; without that, (sum of v)^2 / (sum of v^2 / (n + 1)) - 2, it is too
    high where one cell makes up most. f is half way between: simulated, 93 to 97 % with two, three and five seeds.

    Of one cell this is mean ± t(n-1) s / sqrt(n). Unknown where a cell has fewer than two values, and where no cell
    has different ones: that they show no spread does not say that there is none.
    """
    if not cells or min(map(len, cells)) < 2:
        return NO_INTERVAL
    arrays = [np.asarray(values, dtype=float).round(DECIMALS) for values in cells]
    counts = np.array([len(values) for values in arrays])
    variances = np.array([values.var(ddof=1) if np.ptp(values) else 0.0 for values in arrays]) / counts
    whole = variances.sum()
    if not whole:
        return NO_INTERVAL
    lowest = whole**2 / (variances**2 / (counts - 1)).sum()
    highest = whole**2 / (variances**2 / (counts + 1)).sum() - 2
    freedom = (lowest + np.clip(highest, lowest, (counts - 1).sum())) / 2
    half = special.stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(whole) / len(arrays)
    mean = float(np.mean([values.mean() for values in arrays]))
    return Interval(mean - float(half), mean + float(half))


def tasks_interval(differences: Sequence[float]) -> Interval:
    """Student's interval of the mean of paired differences, over tasks.

    Unknown for one task; a point where all are the same, as of two folders that agree to the bit.
    """
    array = np.asarray(differences, dtype=float).round(DECIMALS)
    if len(array) > 1 and np.ptp(array) == 0:
        return Interval(float(array[0]), float(array[0]))
    return seeds_interval([list(array)])


def independent(replicates: pd.Series) -> list[float]:
    """What intervals may take for independent draws, of values by (split seed, training seed).

    Where the training list was drawn several times: the mean of each draw, for runs on one list are alike. Else every
    training seed.
    """
    draws = replicates.groupby(level=0).mean()
    return list(draws if len(draws) > 1 else replicates)


def average_ranks(values: pd.DataFrame, higher_is_better: bool = True) -> pd.Series:
    """Average rank of each row (method) over the columns (tasks): 1 is best, ties share the mean of their ranks."""
    rounded = values.to_numpy(dtype=float).round(DECIMALS)
    ranks = stats.rankdata(-rounded if higher_is_better else rounded, axis=0)
    return pd.Series(ranks.mean(axis=1), index=values.index)


def friedman(values: pd.DataFrame) -> tuple[float, float] | None:
    """Friedman's test that rows (methods) are alike over columns (tasks), corrected for ties: chi-squared with methods
    - 1 degrees, and p. None for fewer than three methods or two tasks."""
    if len(values) < 3 or values.shape[1] < 2:
        return None
    rounded = values.to_numpy(dtype=float).round(DECIMALS)
    if (rounded == rounded[0]).all():
        return 0.0, 1.0
    statistic, p = stats.friedmanchisquare(*rounded)
    return float(statistic), float(p)


def nemenyi_difference(methods: int, tasks: int) -> float:
    """Critical difference of average ranks at `ALPHA`: q sqrt(k (k + 1) / (6 N)), q the studentised range over sqrt(2).

    Demsar 2006, section 3.2.2: k methods, N tasks, two methods differ if their average ranks differ by at least this.
    """
    quantile = stats.studentized_range.ppf(1 - ALPHA, methods, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(methods * (methods + 1) / (6 * tasks)))


def wilcoxon(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; zeros are dropped, 1 if nothing else is left, NaN for no pairs.

    scipy's rule chooses between the exact distribution (no ties) and the normal approximation.
    """
    array = np.asarray(differences, dtype=float).round(DECIMALS)
    if not len(array):
        return float("nan")
    return float(stats.wilcoxon(array).pvalue) if array.any() else 1.0


def smallest_wilcoxon(tasks: int) -> float:
    """The smallest two-sided p that Wilcoxon's signed-rank test can give: that of one sign on all tasks."""
    return float(min(1.0, 2 * 0.5**tasks))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction (Holm 1979): running maximum of (m - i) p over ascending p, at most 1."""
    ascending = pd.Series(p, dtype=float).sort_values()
    corrected = (ascending * np.arange(len(p), 0, -1)).clip(upper=1).cummax()
    return {name: float(corrected[name]) for name in p}


class WinTieLoss(NamedTuple):
    """On how many tasks one method is better than, equal to and worse than another."""

    wins: int
    ties: int
    losses: int


def win_tie_loss(differences: Sequence[float], higher_is_better: bool = True) -> WinTieLoss:
    """Count the signs of paired differences."""
    array = np.asarray(differences, dtype=float).round(DECIMALS)
    above, ties, below = (int(n) for n in ((array > 0).sum(), (array == 0).sum(), (array < 0).sum()))
    return WinTieLoss(above, ties, below) if higher_is_better else WinTieLoss(below, ties, above)


def verdict(interval: Interval, p: float, margin: float, higher_is_better: bool = True) -> str:
    """What a mean difference says: `equal`, `better`, `worse`, or `undecided`; `unknown` without an interval.

    Equal means practically equal: the whole interval lies inside (-margin, margin), zero in it or not. Better or worse
    needs both an interval without zero and p <= `ALPHA`; give the corrected p where several methods are compared.
    """
    if not interval.known:
        return "unknown"
    if -margin < interval.low and interval.high < margin:
        return "equal"
    if p <= ALPHA and (interval.low > 0 or interval.high < 0):
        return "better" if (interval.low > 0) == higher_is_better else "worse"
    return "undecided"
