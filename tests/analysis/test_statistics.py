"""Statistics against independent implementations: brute force, exact enumeration, printed critical values."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.statistics import (
    Interval,
    average_ranks,
    bootstrap_interval,
    friedman,
    holm,
    nemenyi_difference,
    seeds_interval,
    t_interval,
    verdict,
    wilcoxon,
    win_tie_loss,
)

ACCURACIES = st.integers(0, 1000).map(lambda value: value / 10)


def matrices(max_methods=5, max_tasks=6):
    sizes = st.tuples(st.integers(2, max_methods), st.integers(2, max_tasks))
    return sizes.flatmap(
        lambda size: st.lists(
            st.lists(ACCURACIES, min_size=size[1], max_size=size[1]), min_size=size[0], max_size=size[0]
        )
    ).map(lambda rows: pd.DataFrame(rows, index=[f"m{i}" for i in range(len(rows))]))


def test_one_value_has_no_interval_and_equal_ones_none_of_student():
    assert not t_interval([1.0]).known
    assert not t_interval([2.0, 2.0]).known
    assert not bootstrap_interval([1.0]).known


@given(matrices())
def test_ranks_by_counting(values):
    """Rank = 1 + number of better ones + half the number of other equal ones."""
    ranks = average_ranks(values)
    for name in values.index:
        by_hand = [
            1
            + sum(v > values.at[name, task] for v in values[task])
            + (sum(v == values.at[name, task] for v in values[task]) - 1) / 2
            for task in values
        ]
        assert ranks[name] == pytest.approx(np.mean(by_hand))
    assert ranks.sum() == pytest.approx(len(values) * (len(values) + 1) / 2)


def test_friedman_by_the_formula_and_by_permutation():
    """Demsar 2006, section 3.2.2: 12 N / (k (k + 1)) (sum of R^2 - k (k + 1)^2 / 4), without ties."""
    values = pd.DataFrame([[9, 8, 7, 9, 6.0], [5, 9, 6, 4, 5.5], [4, 3, 5, 6, 2.0]])
    ranks, (k, n) = average_ranks(values), values.shape
    formula = 12 * n / (k * (k + 1)) * ((ranks**2).sum() - k * (k + 1) ** 2 / 4)
    assert friedman(values).statistic == pytest.approx(formula)
    orders = list(itertools.permutations([1, 2, 3]))
    extreme = sum(
        12 * n / (k * (k + 1)) * ((np.mean(draw, axis=0) ** 2).sum() - k * (k + 1) ** 2 / 4) >= formula - 1e-9
        for draw in itertools.product(orders, repeat=n)
    )
    assert friedman(values).p == pytest.approx(extreme / 6**n, abs=0.05)  # chi-squared approximates the exact p


def test_friedman_of_demsars_average_ranks():
    """Demsar 2006, section 3.2.2: ranks 3.143, 2.000, 2.893, 1.964 on 14 data sets give 9.28; CD at 0.05 is 1.25."""
    squares = 3.143**2 + 2.0**2 + 2.893**2 + 1.964**2
    assert 12 * 14 / (4 * 5) * (squares - 4 * 25 / 4) == pytest.approx(9.28, abs=0.01)
    assert nemenyi_difference(4, 14) == pytest.approx(1.25, abs=0.005)


def test_friedman_needs_three_methods_and_two_tasks():
    assert friedman(pd.DataFrame([[1, 2], [3, 4]])) is None
    assert friedman(pd.DataFrame([[1], [3], [4]])) is None
    assert friedman(pd.DataFrame([[1.0, 2], [1, 2], [1, 2]])).p == 1


def test_nemenyi_critical_values_as_printed():
    """Demsar 2006, Table 5a: q at 0.05 for two to ten classifiers."""
    printed = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]
    for k, q in enumerate(printed, start=2):
        assert nemenyi_difference(k, 1) / math.sqrt(k * (k + 1) / 6) == pytest.approx(q, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=3, max_size=9, unique=True), st.integers(0, 2**9 - 1))
def test_wilcoxon_by_enumerating_all_signs(sizes, signs):
    differences = [size if signs >> i & 1 else -size for i, size in enumerate(sizes)]
    ranks = {size: rank for rank, size in enumerate(sorted(sizes), start=1)}
    total = sum(ranks.values())

    def distance(subset):
        return abs(sum(subset) - total / 2)

    seen = distance([ranks[abs(d)] for d in differences if d > 0])
    subsets = [s for k in range(len(sizes) + 1) for s in itertools.combinations(ranks.values(), k)]
    exact = sum(distance(subset) >= seen - 1e-9 for subset in subsets) / len(subsets)
    assert wilcoxon(differences) == pytest.approx(exact)


def test_wilcoxon_of_nothing_but_zeros():
    assert wilcoxon([0.0, 0.0]) == 1
    assert math.isnan(wilcoxon([]))


def test_rounding_noise_does_not_break_ties():
    assert win_tie_loss([0.1 + 0.2 - 0.3, 1, -1]).ties == 1
    assert wilcoxon([0.3 - 0.2, 0.2 - 0.1, 5]) == wilcoxon([0.1, 0.1, 5])


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=7))
def test_holm_by_its_definition(p):
    """The corrected value is the smallest level at which the step-down procedure rejects (Holm 1979)."""
    ordered = sorted(p, key=p.get)
    corrected = holm(p)
    for position, name in enumerate(ordered):
        needed = max((len(p) - i) * p[ordered[i]] for i in range(position + 1))
        assert corrected[name] == pytest.approx(min(1, needed))
        assert corrected[name] >= p[name]


def test_holm_worked_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_t_interval_by_the_table():
    """t(0.975, 4) = 2.776."""
    interval = t_interval([1, 2, 3, 4, 5])
    half = 2.776 * math.sqrt(2.5) / math.sqrt(5)
    assert (interval.low, interval.high) == pytest.approx((3 - half, 3 + half), abs=1e-3)


@pytest.mark.parametrize("method", ["BCa", "percentile"])
def test_bootstrap_is_seeded_and_holds_the_mean(method):
    values = [0.2, 1.5, -0.3, 2.2, 0.9, 1.1, 0.4]
    interval = bootstrap_interval(values, method=method)
    assert interval == bootstrap_interval(values, method=method)
    assert interval != bootstrap_interval(values, method=method, seed=1)
    assert interval.low < np.mean(values) < interval.high


def test_percentile_bootstrap_by_enumerating_all_resamples():
    values = [0.0, 1.0, 2.0, 4.0, 8.0]
    means = sorted(np.mean(draw) for draw in itertools.product(values, repeat=5))
    interval = bootstrap_interval(values, method="percentile")
    assert interval.low == pytest.approx(np.quantile(means, 0.025), abs=0.25)
    assert interval.high == pytest.approx(np.quantile(means, 0.975), abs=0.25)


def test_interval_over_seeds_by_enumerating_all_resamples():
    """Two cells of three seeds: 27 x 27 draws of the mean of both means."""
    cells = [[1.0, 2.0, 4.0], [10.0, 10.5, 13.0]]
    draws = [[np.mean(draw) for draw in itertools.product(cell, repeat=3)] for cell in cells]
    means = [(a + b) / 2 for a, b in itertools.product(*draws)]
    interval = seeds_interval(cells)
    assert interval.low == pytest.approx(np.quantile(means, 0.025), abs=0.1)
    assert interval.high == pytest.approx(np.quantile(means, 0.975), abs=0.1)
    assert interval == seeds_interval(cells) and not seeds_interval([[1.0, 2.0], [3.0]]).known
    assert not seeds_interval([]).known


def test_bootstrap_of_equal_values_is_a_point():
    assert bootstrap_interval([1.5, 1.5, 1.5]) == Interval(1.5, 1.5)


@pytest.mark.parametrize(
    ("low", "high", "p", "text"),
    [(-0.5, 0.5, 0.9, "equal"), (0.1, 0.9, 0.01, "equal"), (0.1, 3, 0.01, "better"), (0.1, 3, 0.2, "undecided"),
     (-3, -0.1, 0.01, "worse"), (-0.5, 3, 0.01, "undecided"), (float("nan"), 1, 0.1, "unknown")],
)  # fmt: skip
def test_verdicts(low, high, p, text):
    assert verdict(Interval(low, high), p, margin=1.0) == text
